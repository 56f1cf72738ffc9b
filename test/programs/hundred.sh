#!/bin/bash
# A hundred programs at once under one server: all attached at the same moment, every one pages, and
# checks each of its bytes, again and again.
source "$(dirname "$0")/../lib/program.sh"
count=100
BUDGET=$((2 * MIB)) NEED=$((8 * MIB))
walker=$EDM_BUILD/test/hosts/walker
pids=()

# everybody_works: they are all there, and each was paged and has checked all that it wrote
everybody_works() {
    server_answers && [[ $(jq "[.instances[] | select(.faults.existing > 500)] | length" "$CASE_TMP/stat.json") == "$count" ]] &&
        (($(tail -q -n 1 walker.*.out | grep -cE 'round [0-9]+,') == count))
}

server_start memory_store=512M disk_store=1G
for ((i = 0; i < count; i++)); do
    "$EDM" run -m "$BUDGET" -o attach_threshold=0 -- "$walker" 8 "$CASE_TMP/end" >"walker.$i.out" 2>"walker.$i.err" &
    pids+=("$!")
done
until everybody_works; do
    ((SECONDS < 200)) || fail "of $(jq '.instances | length' stat.json) programs not all work:" \
        "$(tail -q -n 1 walker.*.out | wc -l) went round: $(cat walker.*.err | head -3)"
    pause 0.5 # looking is work, too
done
cp stat.json together.json
touch end
for ((i = 0; i < count; i++)); do
    wait "${pids[i]}" || fail "program $i ended with $?: $(tail -n 1 "walker.$i.out" "walker.$i.err")"
done
! grep -v ', 0 wrong$' walker.*.out || fail "a wrong byte"
over=$(jq "[.instances[] | select(.resident_max_bytes > $((BUDGET + IN_FLIGHT)))] | length" together.json)
((over == 0)) || fail "$over programs passed their budget"
server_expect_idle
server_expect_quiet
server_stop
echo "note: evicted $(jq '[.instances[].evictions.pages] | add' together.json) pages," \
    "came back $(jq '[.instances[].faults.existing] | add' together.json)"
