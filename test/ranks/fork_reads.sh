#!/bin/bash
# fork_reads.sh libc|raw: a forked child kills its rank and then reads its parent's pages, which are on
# another rank, each round while `edm restart` brings the next: right bytes, never zeros.
source "$(dirname "$0")/../lib/program.sh"
source "$TEST_ROOT/test/lib/ranks.sh"
BUDGET=$((16 * MIB))

pid_publish() {
    rank_stat 0 .server.pid >"$CASE_TMP/pid.new"
    most=$(rank_stat 0 '[.server.peers[].pages] | add')
    mv "$CASE_TMP/pid.new" "$CASE_TMP/server.pid"
}

is_killed() {
    [[ ! -e $CASE_TMP/server.pid ]] && ! rank_answers 0
}

ranks_start 2 memory_store=256M disk_store=0
pid_publish
"$EDM" run -m "$BUDGET" -o placement=remote -o reconnect_timeout=40 -- \
    "$EDM_BUILD/test/restart/fork_reads" "$1" "$CASE_TMP/server.pid" >"$CASE_TMP/out" 2>&1 &
program=$!
for ((round = 1; round <= 4; round++)); do
    until_true 30 is_killed || fail "round $round: nobody killed rank 0: $(tail -3 "$CASE_TMP/out")"
    EDM_LOG_LEVEL=info timeout 60 "$EDM" restart "${SERVER_SET[@]}" >"$CASE_TMP/again" 2>&1 ||
        fail "round $round: edm restart: $(cat "$CASE_TMP/again")"
    pid_publish
    ((most > 1000)) || fail "round $round: only $most pages are on the other rank"
done
wait "$program" || fail "status $?: $(tail -3 "$CASE_TMP/out"); server: $(tail -3 "$CASE_TMP/server.log")"
(($(grep -c '^first page after' "$CASE_TMP/out") == 4)) || fail "not four children: $(cat "$CASE_TMP/out")"
! grep 'is lost\|were lost' "$CASE_TMP/server.log" || fail "pages were lost"
ranks_expect_idle 0 1
ranks_stop
echo "note: $(sed -n 's/first page after //p' "$CASE_TMP/out" | paste -sd' ')"
