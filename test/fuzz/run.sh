#!/bin/bash
# One fuzz target: its kept corpus through the replay program, then libFuzzer from there: RUNS inputs,
# always the same, or for some SECONDS others with each SEED. An input that fails is kept in
# test-results of the build folder.
# usage: run.sh TARGET RUNS | run.sh TARGET SECONDS SEED
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"

target=$1
if (($# == 2)); then
    bounds=(-runs="$2" -seed=1)
else
    bounds=(-max_total_time="$2" -seed="$(($3 + 1))")
fi
corpus=$TEST_ROOT/test/fuzz/corpus/$target
kept=$EDM_BUILD/test-results/fuzz.$target.
replay=$EDM_BUILD-asan/test/fuzz/fuzz_$target
fuzzer=$EDM_BUILD-fuzz/test/fuzz/fuzz_$target
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TMPDIR=$CASE_TMP

"$replay" "$corpus"/* 2>"$CASE_TMP/replay" || {
    tail -60 "$CASE_TMP/replay"
    last=$(sed -n 's/: [0-9]* bytes$//p' "$CASE_TMP/replay" | tail -1)
    cp "$last" "${kept}corpus-${last##*/}"
    fail "an input of the corpus: $last"
}
mkdir "$CASE_TMP/new"
"$fuzzer" "${bounds[@]}" -max_len=1024 -timeout=60 \
    -rss_limit_mb=3000 -artifact_prefix="$kept" -print_final_stats=1 -verbosity=0 \
    "$CASE_TMP/new" "$corpus" 2>&1 || fail "an input is kept as $kept*"
echo "note: $(ls "$corpus" | wc -l) inputs kept, $(ls "$CASE_TMP/new" | wc -l) new"
