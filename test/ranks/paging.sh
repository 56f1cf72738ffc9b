#!/bin/bash
# paging.sh RANKS "OPTIONS" COMMAND...: a program that checks its own memory, with its pages on other
# ranks. By counters: pages crossed, none is left anywhere.
source "$(dirname "$0")/../lib/program.sh"
source "$TEST_ROOT/test/lib/ranks.sh"
ranks=$1 options=$2
shift 2
BUDGET=$((16 * MIB))

opts=()
for o in $options; do
    opts+=(-o "$o")
done
ranks_start "$ranks" memory_store=256M disk_store=0 ${EDM_TEST_SERVER_OPTIONS:-}
cg_limit "$CASE_CG/prog" $((BUDGET * 200 + 64 * MIB)) || fail "cannot limit the cgroup"
(cg_exec "$CASE_CG/prog" "$EDM" run -m "$BUDGET" "${opts[@]}" --stats "$CASE_TMP/stats.json" -- "$@") &
program=$!
most=0
while kill -0 "$program" 2>/dev/null; do
    pages=$(rank_stat 0 '[.server.peers[].pages] | add')
    ((pages <= most)) || most=$pages
    pause 0.2
done
wait "$program" || fail "status $?; server: $(tail -3 "$CASE_TMP/server.log")"
((most * 4096 > BUDGET)) || fail "only $most pages were on other ranks at a time"
(($(stats 'map(.faults.existing) | add // 0') > 0)) || fail "no page came back"
all=$(seq 0 $((ranks - 1)))
ranks_expect_idle $all
ranks_stop
echo "note: up to $most pages on other ranks," \
    "evicted $(stats 'map(.evictions.pages) | add // 0'), came back $(stats 'map(.faults.existing) | add // 0')"
