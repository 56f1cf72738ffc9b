#!/bin/bash
# Two copies of each page on four ranks; one rank is killed, and when every page has two copies again,
# another: the program still has all its bytes.
source "$(dirname "$0")/../lib/program.sh"
source "$TEST_ROOT/test/lib/ranks.sh"
source "$TEST_ROOT/test/ranks/keep.sh"

# every_page_has_two [RANK...]: and these ranks are known to be lost
every_page_has_two() {
    local lost=$*
    rank_answers 0 && [[ $(jq -r '"\(.instances[0].missing_copies) \([.server.peers[] |
        select(.alive | not) | .rank] | join(" "))"' "$CASE_TMP/rank.0.json") == "0 $lost" ]]
}

two_ranks_are_lost() {
    [[ $(rank_stat 0 '[.server.peers[] | select(.alive | not)] | length') == 2 ]]
}

kill_rank() {
    (($(rank_stat 0 "[.server.peers[] | select(.rank == $1) | .pages] | add") > 500)) ||
        fail "rank $1 has no pages: $(rank_stat 0 .server)"
    kill -KILL "$(rank_stat "$1" .server.pid)"
}

ranks_start 4 memory_store=256M disk_store=0
keep_start placement=remote replicas=2
until_true 20 every_page_has_two || fail "not two copies: $(rank_stat 0 .)"
kill_rank 1
until_true 20 every_page_has_two 1 || fail "copies are not made again: $(rank_stat 0 .)"
kill_rank 2
until_true 20 two_ranks_are_lost || fail "the second loss is not noticed: $(rank_stat 0 .)"
(($(rank_stat 0 '.instances[0].missing_copies') > 500)) || fail "one rank cannot have two copies"
keep_end
ranks_expect_idle 0 3
ranks_stop
