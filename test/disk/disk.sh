# What the tests of disks share: a real small file system at $DISK, in a mount namespace of the
# test's own: with its last process the mount and its loop device go, however the test ends.

if [[ -z ${DISK_IS_OWN:-} ]]; then
    DISK_IS_OWN=1 exec unshare --mount --propagation private "$0" "$@"
fi
unset DISK_IS_OWN

source "$(dirname "${BASH_SOURCE[0]}")/../lib/program.sh"
need mkfs.ext4 losetup
DISK=$CASE_TMP/disk
IMAGE=$CASE_TMP/disk.image

# disk_mount tmpfs|ext2|ext4 MIB
disk_mount() {
    mkdir -p "$DISK"
    if [[ $1 == tmpfs ]]; then
        mount -t tmpfs -o "size=$2m,mode=700" tmpfs "$DISK" || fail "cannot mount a tmpfs"
        return
    fi
    truncate -s "$2M" "$IMAGE" && "mkfs.$1" -q -m 0 "$IMAGE" || fail "cannot make an $1"
    mount -t "$1" -o loop "$IMAGE" "$DISK" || skip "this kernel has no loop devices, or no $1"
    chmod 700 "$DISK"
}

# disk_down: the file system (ext4) fails every access from now on, as if its device had gone
disk_down() {
    /usr/bin/python3 "$TEST_ROOT/test/disk/shut_down.py" "$DISK" || fail "ext4 cannot be shut down"
}

# pages_on_disk N: the server has more than that there
pages_on_disk() {
    server_answers && (($(jq .server.disk_store.pages "$CASE_TMP/stat.json") > $1))
}

# said_once PATTERN: one line of the server's log has it
said_once() {
    local n
    n=$(grep -c "$1" server.log)
    ((n == 1)) || fail "$n lines, not one, say \"$1\": $(tail -3 server.log)"
}
