#!/bin/bash
# managed.sh MIB PROGRAM [ARGUMENT...]: a test program that makes its own assertions, under EDM with
# a budget of MIB MiB and a server of its own.
source "$(dirname "$0")/program.sh"
BUDGET=$(($1 * MIB))
NEED=$((BUDGET * 4))
# some of these programs fork: a child has a budget of its own, that of a raw clone has none
INSTANCES=${EDM_TEST_INSTANCES:-8}
MAY_COMPLAIN=1 # about what some of these programs do on purpose
shift
export EDM_TEST_BUDGET=$BUDGET
server_start ${EDM_TEST_SERVER_OPTIONS:-}
cg_limit "$CASE_CG/prog" $((BUDGET * INSTANCES + 64 * MIB)) || fail "cannot limit the cgroup"
opts=()
for o in ${EDM_TEST_OPTIONS:-}; do
    opts+=(-o "$o")
done
(cg_exec "$CASE_CG/prog" "$EDM" run -m "$BUDGET" "${opts[@]}" --stats "$CASE_TMP/stats.json" -- "$@")
rc=$?
((rc == 77)) && exit 77
((rc == 0)) || fail "status $rc; server: $(tail -3 "$CASE_TMP/server.log")"
server_expect_idle
server_stop
echo "note: evicted $(stats 'map(.evictions.pages) | add // 0') pages, came back" \
    "$(stats 'map(.faults.existing) | add // 0')"
