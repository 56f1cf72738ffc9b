#!/bin/bash
# A rank that gives older pages, each with a right checksum (EDM_TEST_STALE): every one is refused, and
# whoever wants it gets SIGBUS, since there is no other copy. Never an older byte.
source "$(dirname "$0")/../lib/program.sh"
source "$TEST_ROOT/test/lib/ranks.sh"

export EDM_TEST_STALE=1
ranks_start 2 memory_store=256M disk_store=0
unset EDM_TEST_STALE
"$EDM" run -m 16M -o placement=remote -- timeout -s KILL 60 "$EDM_BUILD/test/programs/fill" \
    128 4 0 >"$CASE_TMP/out" 2>&1
rc=$?
((rc == 135)) || fail "status $rc instead of SIGBUS: $(tail -2 "$CASE_TMP/out")"
log_says 'a damaged or older page is refused' || fail "no word of it in the log"
log_says 'is lost (damaged, rank 1 slot [0-9]*)' || fail "no word of what is lost"
ranks_expect_idle 0 1
ranks_stop
echo "note: $(grep -c 'is refused' "$CASE_TMP/server.log") pages refused"
