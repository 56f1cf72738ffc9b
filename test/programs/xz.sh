#!/bin/bash
# xz -9e with two threads: two encoders with dictionaries that are touched at random.
source "$(dirname "$0")/../lib/program.sh"
need xz
size=$((SCALE * 3000000))
shared_file "text.$size" text "$size"
input=$SHARED/text.$size
native xz -9e -T2 --block-size=$((size / 2)) -k -c "$input" >native.out
budget_from_need
managed xz -9e -T2 --block-size=$((size / 2)) -k -c "$input" >managed.out 2>program.err || fail "xz: $?"
expect_same native.out managed.out
xz -dc managed.out | cmp -s - "$input" || fail "does not unpack to what went in"
expect_paged
program_end
