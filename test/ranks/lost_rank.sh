#!/bin/bash
# lost_rank.sh REPLICAS SIGNAL: a rank that has pages of a running program is killed (KILL), or only
# says nothing any more (STOP). With two copies the program ends right; with one, by SIGBUS and with a
# message, when the rank was not brought back in time: no wrong byte, no hang. Calls whose arguments
# are lost fail instead (EFAULT), so with one copy it makes none.
source "$(dirname "$0")/../lib/program.sh"
source "$TEST_ROOT/test/lib/ranks.sh"
replicas=$1 signal=$2
BUDGET=$((16 * MIB))
TORTURE=(timeout -s KILL 60 "$EDM_BUILD/test/torture/torture" --seed "${SEED:-7}" --seconds 8 --bytes 160M --threads 4)
((replicas > 1)) || TORTURE+=(--without pipe,file,populate_read,populate_write,lock)

enough_away() {
    (($(rank_stat 0 '[.server.peers[] | select(.rank == 1) | .pages] | add') > 2000))
}

ranks_start 4 memory_store=256M disk_store=0
"$EDM" run -m "$BUDGET" -o placement=remote -o "replicas=$replicas" -o reconnect_timeout=4 \
    -- "${TORTURE[@]}" >"$CASE_TMP/out" 2>&1 &
program=$!
until_true 20 enough_away || fail "no pages went to rank 1"
victim=$(rank_stat 1 .server.pid)
kill "-$signal" "$victim"
killed=$SECONDS
wait "$program"
rc=$?
kill -KILL "$victim" 2>/dev/null
((SECONDS - killed < 40)) || fail "it took $((SECONDS - killed)) s"
! grep -q '^not ok' "$CASE_TMP/out" || fail "$(grep -A12 '^not ok' "$CASE_TMP/out")"
log_says 'rank 1 .* taken for dead' || fail "nobody noticed: $(tail -3 "$CASE_TMP/server.log")"
if ((replicas > 1)); then
    ((rc == 0)) || fail "status $rc: $(tail -2 "$CASE_TMP/out"); server: $(tail -3 "$CASE_TMP/server.log")"
else
    ((rc == 135)) || fail "status $rc instead of SIGBUS, though pages are lost: $(tail -2 "$CASE_TMP/out")"
    grep -q '^lost: torture: SIGBUS' "$CASE_TMP/out" || fail "the program did not see it: $(tail -2 "$CASE_TMP/out")"
    log_says 'is lost .*rank 1 slot [0-9]*): .* SIGBUS' ||
        fail "no word of what is lost: $(tail -3 "$CASE_TMP/server.log")"
fi
[[ $("$EDM" start 2>&1) == *"already runs, but 1 of its ranks died"*"edm restart"* ]] ||
    fail "edm start does not see the dead rank: $("$EDM" start 2>&1)"
ranks_expect_idle 0 2 3
ranks_stop
echo "note: status $rc, $(grep -c 'is lost' "$CASE_TMP/server.log") pages lost"
