#!/bin/bash
# full.sh ext4|ext2|tmpfs: disk_path is on a file system that is smaller than disk_store (on ext2
# space cannot be had before it is written). The program goes on in a larger resident set, nothing is
# lost, one line says what is full; what the program frees can be used by the next.
source "$(dirname "$0")/disk.sh"
fill=$EDM_BUILD/test/programs/fill
BUDGET=$((32 * MIB))

# fill_once MIB
fill_once() {
    "$EDM" run -m "$BUDGET" --stats stats.json -- "$fill" "$1" 2 0 >managed.out || fail "fill $1: status $?"
    [[ $(<managed.out) == "0 words wrong, 0 children failed" ]] || fail "fill $1: $(<managed.out)"
    server_expect_idle
}

disk_mount "$1" 48
server_start memory_store=16M disk_store=1G compression=none
fill_once 192
(($(stats 'map(.evictions.pages) | add // 0') * 4096 >= 50 * MIB)) || fail "the disk was not filled"
(($(stats 'map(.resident_max_bytes) | max // 0') > BUDGET + IN_FLIGHT)) ||
    fail "192 MiB fit into 32 MiB, a store of 16 and a disk of 48: something is not counted"
case $1 in
ext2) said_once 'writing failed (No space left on device): nothing more is written there' ;;
*) said_once 'no more than [34][0-9] MiB can be had on disk_path (No space left on device)' ;;
esac
said_once 'are full: programs keep their pages'
fill_once 64
[[ $(grep -c 'disk store:' server.log) == 1 ]] || fail "it is said again: $(grep 'disk store:' server.log)"
! grep 'is lost' server.log || fail "pages were lost"
server_stop
echo "note: evicted $(stats 'map(.evictions.pages) | add // 0') pages by the second program"
