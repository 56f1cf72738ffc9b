#!/bin/bash
# eio.sh down|cut: the disk fails under a program whose pages are there: all of it, for reading and
# writing (down), or a part that cannot be read any more (cut). Whoever touches what is lost gets
# SIGBUS, with a word of what it was; no byte is ever wrong; the next program has the memory store.
source "$(dirname "$0")/disk.sh"
BUDGET=$((8 * MIB))

disk_mount ext4 256
server_start memory_store=16M disk_store=1G compression=none
timeout -s KILL 60 "$EDM" run -m "$BUDGET" --stats stats.json -- "$EDM_BUILD/test/hosts/walker" 96 \
    "$CASE_TMP/never" >walker.out 2>program.err &
program=$!
until_true 20 pages_on_disk 16000 || fail "nothing goes to the disk: $(tail -1 program.err)"
case $1 in
down) disk_down ;;
cut) truncate -s 32M "$IMAGE" ;;
esac
wait "$program"
rc=$?
((rc == 135)) || fail "status $rc instead of SIGBUS, though pages are lost: $(tail -qn 2 walker.out program.err)"
! grep -v ', 0 wrong' walker.out || fail "a wrong byte"
why='Input\/output error'
[[ $1 == down ]] || why='\(Input\/output error\|damaged\)' # holes, where the disk is written again
grep -q "pid [0-9]*: page 0x[0-9a-f]* is lost ($why, rank 0 slot [0-9]*): .* SIGBUS" server.log ||
    fail "no word of what is lost: $(tail -3 server.log)"
server_expect_idle
if [[ $1 == down ]]; then
    "$EDM" run -m "$BUDGET" -- "$EDM_BUILD/test/programs/fill" 64 2 0 >next.out || fail "the next program: $?"
    [[ $(<next.out) == "0 words wrong, 0 children failed" ]] || fail "the next program: $(<next.out)"
    said_once 'writing failed (Input/output error): nothing more is written there'
    server_expect_idle
fi
server_stop 2>stop.err
echo "note: $(grep -c 'is lost' server.log) pages lost"
