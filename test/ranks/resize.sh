#!/bin/bash
# A server grows from one rank to three under a program, and copies of pages go to the new ones; it does not shrink
# while a rank that would be left out keeps pages; when the program has ended, it does.
source "$(dirname "$0")/../lib/program.sh"
source "$TEST_ROOT/test/lib/ranks.sh"

again() {
    EDM_LOG_LEVEL=info timeout 60 "$EDM" restart "${SERVER_SET[@]}" "$@" >"$CASE_TMP/again" 2>&1
}

pages_on_both() {
    rank_answers 0 && [[ $(jq '[.server.peers[] | select(.pages > 100)] | length' "$CASE_TMP/rank.0.json") == 2 ]]
}

ranks_start 1 memory_store=256M disk_store=0
"$EDM" run -m 16M -o replicas=2 -o reconnect_timeout=40 -- timeout -s KILL 90 \
    "$EDM_BUILD/test/torture/torture" --seed "${SEED:-7}" --seconds 14 --bytes 160M --threads 2 >"$CASE_TMP/out" 2>&1 &
program=$!
pause 2
again -n 3 || fail "growing: $(cat "$CASE_TMP/again")"
until_true 15 pages_on_both || fail "no pages went to the new ranks: $(tail -2 "$CASE_TMP/out")"
! again -n 2 || fail "it shrank though rank 2 keeps pages"
grep -q 'dms.sock.2 .*cannot be left out' "$CASE_TMP/again" || fail "refused, but: $(cat "$CASE_TMP/again")"
kill -KILL "$(rank_stat 2 .server.pid)"
! again -n 2 || fail "it shrank though rank 2, which was killed, kept pages"
grep -q 'dms.sock.2 was killed' "$CASE_TMP/again" || fail "refused, but: $(cat "$CASE_TMP/again")"
again || fail "as it was: $(cat "$CASE_TMP/again")"
[[ $(rank_stat 0 .server.ranks) == 3 ]] || fail "without -n it has $(rank_stat 0 .server.ranks) ranks"
wait "$program" || fail "status $?: $(tail -3 "$CASE_TMP/out")"
ranks_expect_idle 0 1 2
again -n 2 || fail "shrinking: $(cat "$CASE_TMP/again")"
[[ $(rank_stat 0 .server.ranks) == 2 ]] || fail "it still has $(rank_stat 0 .server.ranks) ranks"
ranks_expect_idle 0 1
ranks_stop
