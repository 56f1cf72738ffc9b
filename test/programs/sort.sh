#!/bin/bash
# GNU sort of 300 MB of real text, all of it in memory.
source "$(dirname "$0")/../lib/program.sh"
need sort
size=$((SCALE * 300000000))
shared_file "text.$size" text "$size"
input=$SHARED/text.$size
native sort -S 4G --parallel=2 -T "$CASE_TMP" -o native.out "$input"
budget_from_need
managed sort -S 4G --parallel=2 -T "$CASE_TMP" -o managed.out "$input" 2>program.err || fail "sort: $?"
expect_same native.out managed.out
expect_paged
program_end
