#!/bin/bash
# attach_cycles.sh N: a process that attaches, pages and ends, N times; the server must be after it
# as it was before: descriptors, threads, memory.
source "$(dirname "$0")/program.sh"
cycles=$1
BUDGET=$((8 * MIB)) NEED=$((32 * MIB))
worker=$EDM_BUILD/test/programs/attach_once

# run_cycles N
run_cycles() {
    EDM_ATTACH_THRESHOLD=0 EDM_LOCAL_MEMORY=$BUDGET LD_PRELOAD=$EDM_SHIM "$worker" "$1" ||
        fail "a cycle ended with $?"
}

# state of the server: descriptors and threads on one line
server_shape() {
    echo "$(ls "/proc/$SERVER_PID/fd" | wc -l) descriptors, $(ls "/proc/$SERVER_PID/task" | wc -l) threads"
}

# memory of the server in KiB, without the store's, whose pages server_is_idle counts
server_memory() {
    awk '/^(Anonymous|Swap):/ {n += $2} END {print n}' "/proc/$SERVER_PID/smaps_rollup"
}

settled() {
    server_is_idle && [[ $(server_shape) == "$shape" ]]
}

server_start
EDM_ATTACH_THRESHOLD=0 "$EDM" run -m "$BUDGET" --stats stats.json -- "$worker" 0 || fail "the worker ended with $?"
(($(stats 'map(.evictions.pages) | add // 0') > 0)) || fail "the worker was not paged"
shape=$(server_shape)
run_cycles 100 # the server's own caches are warm then
until_true 10 server_is_idle || fail "instances stay: $(<stat.json)"
until_true 10 settled
shape=$(server_shape)
memory=$(server_memory)
run_cycles "$cycles"
until_true 10 settled || fail "before: $shape; after $cycles cycles: $(server_shape)"
grown=$(($(server_memory) - memory))
((grown <= 2048)) || fail "the server grew by $grown KiB in $cycles cycles"
server_stop
echo "note: $cycles cycles, $shape, memory $((grown)) KiB more"
