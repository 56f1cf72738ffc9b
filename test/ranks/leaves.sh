#!/bin/bash
# A rank is stopped while it keeps pages of a running program: they go to the other rank, and when that
# is stopped, too, home. The program has all its bytes.
source "$(dirname "$0")/../lib/program.sh"
source "$TEST_ROOT/test/lib/ranks.sh"
source "$TEST_ROOT/test/ranks/keep.sh"

# away RANK: pages of the program there
away() {
    rank_stat 0 "[.server.peers[] | select(.rank == $1) | .pages] | add"
}

has_ended() {
    ! kill -0 "$1" 2>/dev/null
}

leave() {
    (($(away "$1") > 500)) || fail "rank $1 has no pages: $(rank_stat 0 .server)"
    local pid
    pid=$(rank_stat "$1" .server.pid)
    kill -TERM "$pid"
    until_true 30 has_ended "$pid" || fail "rank $1 does not end"
    ! grep -q 'did not take back' "$CASE_TMP/server.log" || fail "rank $1 left with pages"
    (($(away "$1") == 0)) || fail "pages are still thought to be on rank $1"
}

ranks_start 3 memory_store=256M disk_store=0
keep_start placement=remote
leave 1
leave 2
keep_end
ranks_expect_idle 0
ranks_stop
