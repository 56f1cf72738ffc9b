# Running a real program natively and under EDM, in a memory cgroup that only real paging fits into.
# Settings of a matrix come in EDM_TEST_OPTIONS (KEY=VALUE words) and EDM_TEST_SCALE (1 = test/run).

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$TEST_ROOT/test/lib/cgroup.sh"
source "$TEST_ROOT/test/lib/server.sh"

SCALE=${EDM_TEST_SCALE:-1}
SHARED=${EDM_TEST_SHARED:-$CASE_TMP}
IN_FLIGHT=$((4 * MIB))
cd "$CASE_TMP" || exit 125

# native COMMAND...: its outcome is the one to reach; sets NEED to the most memory one process held
native() {
    /usr/bin/python3 "$TEST_ROOT/test/lib/peak.py" "$CASE_TMP/need" "$@" ||
        fail "does not even run natively: $* (status $?)"
    NEED=$(<"$CASE_TMP/need")
}

# budget_from_need [DIVISOR]: sets BUDGET to a quarter of NEED or less
budget_from_need() {
    BUDGET=$((NEED / ${1:-4} / MIB * MIB))
    ((BUDGET >= 8 * MIB)) || fail "a need of $NEED bytes is too small to show anything"
}

# managed COMMAND...: under EDM with BUDGET, in a cgroup of BUDGET + 64 MiB for each of INSTANCES
# processes at a time that hold managed memory (default 1). Standard output and input are the
# caller's. Starts the server when none runs. Returns the command's status.
managed() {
    local opts=() o rc sampler
    for o in ${EDM_TEST_OPTIONS:-} "${RUN_OPTIONS[@]}"; do
        opts+=(-o "$o")
    done
    [[ -n ${SERVER_PID:-} ]] || server_start ${EDM_TEST_SERVER_OPTIONS:-} "${SERVER_OPTIONS[@]}"
    cg_limit "$CASE_CG/prog" $((BUDGET * ${INSTANCES:-1} + 64 * MIB)) || fail "cannot limit the cgroup"
    /usr/bin/python3 "$TEST_ROOT/test/lib/sampler.py" "$EDM" "$CASE_CG/prog" "$BUDGET" \
        "$CASE_TMP/sampler.json" 2>"$CASE_TMP/sampler.err" &
    sampler=$!
    (cg_exec "$CASE_CG/prog" "$EDM" run -m "$BUDGET" "${opts[@]}" --stats "$CASE_TMP/stats.json" -- "$@")
    rc=$?
    kill -TERM "$sampler"
    wait "$sampler" || fail "the sampler ended badly: $(tail -1 "$CASE_TMP/sampler.err")"
    if [[ $(cg_oom_kills "$CASE_CG/prog") != 0 ]]; then
        fail "killed for want of memory: the budget was not kept (status $rc)"
    fi
    return "$rc"
}

RUN_OPTIONS=()
SERVER_OPTIONS=()
[[ -z ${EDM_TEST_RANKS:-} ]] || source "$TEST_ROOT/test/lib/far.sh"

# stats FILTER: of the counters at the program's end
stats() {
    jq -r "[.instances[]] | $1" "$CASE_TMP/stats.json"
}

# That what the test is about did happen: paged out more than the budget, back in, budget kept.
expect_paged() {
    [[ -s $CASE_TMP/stats.json ]] || fail "no counters were written"
    (($(stats 'map(.faults.existing) | add // 0') > 0)) || fail "no page came back: nothing was paged"
    (($(stats 'map(.evictions.pages) | add // 0') * 4096 > BUDGET)) ||
        fail "only $(stats 'map(.evictions.pages) | add // 0') pages left memory; the budget is $BUDGET"
    (($(stats 'map(.resident_max_bytes) | max // 0') <= BUDGET + IN_FLIGHT)) ||
        fail "resident_max_bytes $(stats 'map(.resident_max_bytes) | max') passed the budget of $BUDGET"
    expect_sampled
}

# The sampler's word: it looked, and what it saw was in order.
expect_sampled() {
    local bad
    bad=$(jq -r '.violations[0] // empty' "$CASE_TMP/sampler.json")
    [[ -z $bad ]] || fail "sampler: $bad ($(jq '.violations | length' "$CASE_TMP/sampler.json") in all)"
    (($(jq .compared "$CASE_TMP/sampler.json") > 0)) || fail "the sampler never saw the program"
    [[ -z ${EDM_TEST_RANKS:-} ]] || expect_far
}

expect_same() {
    cmp -s "$1" "$2" && return
    diff -a "$1" "$2" | head -6 | cut -c1-200 >&"$TEST_OUT"
    fail "${3:-$2}: not what the native run gave: $(cmp -l "$1" "$2" 2>&1 | wc -l) bytes differ"
}

# Last act of a test: nothing kept, nothing left, nothing complained about.
program_end() {
    if [[ -n ${SERVER_PID:-} ]]; then
        server_expect_idle
        [[ -n ${MAY_COMPLAIN:-} ]] || server_expect_quiet
        server_stop
    fi
    echo "note: need $((NEED / MIB)) MiB, budget $((BUDGET / MIB)) MiB, evicted" \
        "$(stats 'map(.evictions.pages) | add // 0') pages, came back" \
        "$(stats 'map(.faults.existing) | add // 0'), resident max" \
        "$(($(stats 'map(.resident_max_bytes) | max // 0') / 1024)) KiB," \
        "$(jq .compared "$CASE_TMP/sampler.json") samples"
}

# shared_file NAME COMMAND...: makes $SHARED/NAME once for all tests of a run, by COMMAND's output
shared_file() {
    local name=$1 lock
    shift
    exec {lock}>"$SHARED/$name.lock"
    flock "$lock"
    if [[ ! -e $SHARED/$name ]]; then
        "$@" >"$SHARED/$name.part" && mv "$SHARED/$name.part" "$SHARED/$name" ||
            fail "cannot make $SHARED/$name"
    fi
    exec {lock}>&-
}

# text BYTES: real text, from what the installed packages ship; a record a line (eight lines of the
# files each), in the order of the files, repeated only where the machine has too little
text() {
    local rc=0
    while ((rc != 125)); do # 125: xargs, when its reader has enough
        find /usr/share /usr/include /usr/lib -xdev -type f -size -4000k \( -name '*.h' -o -name '*.py' \
            -o -name '*.pm' -o -name '*.txt' -o -name '*.html' -o -name '*.pod' -o -name '*.rst' \
            -o -name 'copyright' -o -name '*.pl' -o -name '*.js' -o -name '*.xml' -o -name '*.md' \
            -o -name '*.hpp' -o -name '*.c' -o -name '*.css' -o -name '*.json' -o -name '*.el' \) \
            -print0 2>/dev/null | sort -z | xargs -0 cat -- 2>/dev/null
        rc=$?
    done | tr -d '\0' | paste -d' ' - - - - - - - - | head -c "$1"
}
