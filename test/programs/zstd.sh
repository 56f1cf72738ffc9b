#!/bin/bash
# zstd at its highest level with a window of 128 MiB (its input is a stream: the tables are whole).
source "$(dirname "$0")/../lib/program.sh"
need zstd
size=$((SCALE * 6000000))
shared_file "text.$size" text "$size"
input=$SHARED/text.$size
native zstd --ultra -22 --long=27 -q -c <"$input" >native.out
budget_from_need
managed zstd --ultra -22 --long=27 -q -c <"$input" >managed.out 2>program.err || fail "zstd: $?"
expect_same native.out managed.out
zstd -dcq --long=27 managed.out | cmp -s - "$input" || fail "does not unpack to what went in"
expect_paged
program_end
