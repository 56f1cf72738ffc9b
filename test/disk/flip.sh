#!/bin/bash
# flip.sh memory|disk one|remote|local: bits flip in the store files of a rank while a program sleeps
# whose pages are there. The only copy (one): SIGBUS, and a word of what was lost. The copy on one of
# two other ranks (remote), or of this rank and another (local): the other copy is used, and nobody
# notices but the log and the counter.
source "$(dirname "$0")/../lib/program.sh"
source "$TEST_ROOT/test/lib/ranks.sh"
source "$TEST_ROOT/test/ranks/keep.sh"
where=$1 copies=$2

# flip_bits PID: a bit of every 512 bytes of its store that are not zeros; prints how many
flip_bits() {
    local folder=/dev/shm
    [[ $where == memory ]] || folder=$CASE_TMP/disk
    /usr/bin/python3 - "$1" "$folder/" <<'PY' || fail "the store of $1 cannot be written"
import errno, glob, os, stat, sys
flipped = 0
for path in glob.glob(f"/proc/{sys.argv[1]}/fd/*"):
    if not os.readlink(path).startswith(sys.argv[2]) or not stat.S_ISREG(os.stat(path).st_mode):
        continue
    fd = os.open(path, os.O_RDWR)
    at = 0
    try:
        while True:  # until there is no data behind it
            at = os.lseek(fd, at, os.SEEK_DATA)
            data = bytearray(os.pread(fd, 1 << 20, at))
            for i in range(0, len(data), 512):
                if any(data[i : i + 512]):
                    data[i + 256] ^= 8
                    flipped += 1
            at += os.pwrite(fd, data, at)
    except OSError as e:
        if e.errno != errno.ENXIO:
            raise
    os.fsync(fd)
print(flipped)
PY
}

# Nothing is under way: every page is where it is to stay
is_settled() {
    local now before=$settled
    now=$(rank_stat 0 '"\(.instances[0].missing_copies) \(.instances[0].evictions.pages) \(.server.memory_store.pages)"')
    [[ $where == memory ]] || now+=" $(rank_stat "$victim" .server.disk_store.pages)"
    settled=$now
    [[ $now == "0 "* && $now == "$before" ]]
}

store=(memory_store=256M disk_store=0 compression=none)
[[ $where == memory ]] || store=(memory_store=8M disk_store=1G compression=none)
victim=0 settled=
case $copies in
one) ranks=1 options=() ;;
local) ranks=2 options=(replicas=2) ;;
remote) ranks=3 options=(placement=remote replicas=2) victim=1 ;;
esac
ranks_start "$ranks" "${store[@]}"
KEEP_FLAGS=(--stats "$CASE_TMP/stats.json")
keep_start "${options[@]}"
until_true 20 is_settled || fail "it does not come to rest: $(rank_stat 0 .)"
pages=$(rank_stat "$victim" ".server.${where}_store.pages")
((pages > 1000)) || fail "rank $victim has only $pages pages in $where"
flipped=$(flip_bits "$(rank_stat "$victim" .server.pid)")
((flipped > 1000)) || fail "only $flipped bits were flipped"
if [[ $copies != one ]]; then
    keep_end
    log_says 'a damaged or older page is refused\|a damaged page is refused' || fail "no word of it in the log"
    ! grep 'is lost' "$CASE_TMP/server.log" || fail "pages were lost though there are two copies"
    refused=$(rank_stat 0 .server.refused_pages)
    ((refused > 1000 && $(stats 'map(.poisoned) | add') == 0)) || fail "$refused pages refused: $(stats 'map(.poisoned)')"
else
    echo >&"$KEEP_GO"
    wait "$KEEP_PID"
    rc=$?
    ((rc == 135)) || fail "status $rc instead of SIGBUS: $(<"$CASE_TMP/out")"
    ! grep '^wrong' "$CASE_TMP/out" || fail "it read what was damaged"
    log_says 'pid [0-9]*: page 0x[0-9a-f]* is lost (damaged, rank 0 slot [0-9]*): .* SIGBUS' ||
        fail "no word of what is lost: $(tail -3 "$CASE_TMP/server.log")"
    (($(stats 'map(.poisoned) | add') > 0)) || fail "not counted: $(stats 'map(.poisoned)')"
fi
ranks_expect_idle $(seq 0 $((ranks - 1)))
ranks_stop
echo "note: $pages pages, $flipped bits flipped, ${refused:-0} pages refused, $(stats 'map(.poisoned) | add') lost"
