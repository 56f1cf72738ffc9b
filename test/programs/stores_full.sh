#!/bin/bash
# Both stores full: nothing is lost, one warning says so, the program goes on in a larger resident set.
source "$(dirname "$0")/../lib/program.sh"
fill=$EDM_BUILD/test/programs/fill
server_start memory_store=16M disk_store=32M compression=none
native "$fill" 256 2 0 >native.out
BUDGET=$((32 * MIB))
"$EDM" run -m "$BUDGET" --stats stats.json -- "$fill" 256 2 0 >managed.out || fail "fill: $?"
expect_same native.out managed.out
(($(stats 'map(.evictions.pages) | add // 0') * 4096 >= 40 * MIB)) || fail "the stores were not filled"
(($(stats 'map(.resident_max_bytes) | max // 0') > BUDGET + IN_FLIGHT)) ||
    fail "256 MiB fit into 32 MiB and 48 MiB of stores: something is not counted"
warnings=$(grep -c 'are full' server.log)
((warnings == 1)) || fail "$warnings lines say that the stores are full, not one"
echo '{"compared": 0}' >sampler.json
MAY_COMPLAIN=1
program_end
