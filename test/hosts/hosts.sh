# What the tests of several hosts share.
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
source "$TEST_ROOT/test/lib/netns.sh"
need jq

cd "$CASE_TMP" || exit 125
export EDM_SOCKET=/run/edm/dms.sock EDM_SERVER=require
JOB_OPTIONS=(-o disk_path=/run/disk -o memory_store=64M -o disk_store=512M \
    -o request_timeout=10 -o log_level=info)
WALKERS=()
WALKER_MIB=32

# host_list N: h1,h2...
host_list() {
    local list i
    for ((i = 1; i <= $1; i++)); do
        list=${list:-}${list:+,}h$i
    done
    echo "$list"
}

# on H ARGUMENT...: the command edm on a host; sets RC and OUT (both streams). At most 100 s.
on() {
    local h=$1
    shift
    OUT=$(host_run "$h" timeout 100 "$EDM" "$@" 2>&1)
    RC=$?
}

# job_start N [ARGUMENT...]: from h1, on N hosts
job_start() {
    local n=$1
    shift
    on h1 start --hosts "$(host_list "$n")" "${JOB_OPTIONS[@]}" "$@"
    ((RC == 0)) || fail "edm start: $RC: $OUT: $(host_run h1 tail -3 /run/edm/dms.sock.mpiexec.log)"
}

# rank_stat H FILTER [SOCKET]: of edm stat
rank_stat() {
    host_run "$1" "$EDM" stat --json -o socket="${3:-$EDM_SOCKET}" 2>/dev/null | jq -r "$2"
}

rank_pid() {
    rank_stat "$1" .server.pid
}

# walker_start H [OPTION...]: an instance there that checks its memory all the time
walker_start() {
    host_run "$1" "$EDM" run -m 8M --stats "$CASE_TMP/walker.$1.json" -o attach_threshold=0 "${@:2}" -- \
        "$EDM_BUILD/test/hosts/walker" "$WALKER_MIB" "$CASE_TMP/walkers.end" >"walker.$1" 2>"walker.$1.err" &
    WALKERS+=("$!")
    until_true 20 walker_is_past "$1" 2 || fail "no program works on $1: $(cat "walker.$1.err")"
}

walker_rounds() {
    sed -n '$s/round \([0-9]*\),.*/\1/p' "walker.$1"
}

walker_is_past() {
    (($(walker_rounds "$1") + 0 > $2))
}

# pages_on_others H: pages that ranks of other hosts hold for programs on H
pages_on_others() {
    rank_stat "$1" "[.server.peers[] | select(.host != \"$1\") | .pages] | add // 0"
}

# stat_is_quick H: edm stat there takes less than 2 s (a busy machine is given three turns); sets
# SLOWEST (ms)
SLOWEST=0
stat_is_quick() {
    local began took turn
    for turn in 1 2 3; do
        began=${EPOCHREALTIME/./}
        [[ -n $(rank_stat "$1" .server.rank) ]] || fail "the rank on $1 does not answer"
        took=$(((${EPOCHREALTIME/./} - began) / 1000))
        ((took <= SLOWEST)) || SLOWEST=$took
        ((took >= 2000)) || return 0
    done
    fail "edm stat on $1 took $took ms"
}

# all_are_alive H...: no rank there takes another for dead
all_are_alive() {
    local h
    for h in "$@"; do
        [[ $(rank_stat "$h" '[.server.peers[].alive] | all') == true ]] ||
            fail "$h takes another rank for dead: $(rank_stat "$h" .server.peers)"
    done
}

# walker_goes_on H: three more rounds from now on, the first may have been under way
walker_goes_on() {
    until_true 20 walker_is_past "$1" $(($(walker_rounds "$1") + 3)) ||
        fail "the program on $1 hangs after $(tail -1 "walker.$1"): $(cat "walker.$1.err")"
}

# They end, with every byte right, and did page.
walkers_end() {
    local pid h
    touch walkers.end
    for pid in "${WALKERS[@]}"; do
        wait "$pid" || fail "a program ended with $?: $(tail -q -n 1 walker.*)"
    done
    for h in walker.*.json; do
        (($(jq '[.instances[].faults.existing] | add' "$h") > 1000)) || fail "$h: nothing was paged"
    done
    WALKERS=()
}

# expect_said WORD...: in OUT
expect_said() {
    local word
    for word in "$@"; do
        [[ $OUT == *"$word"* ]] || fail "not said: \"$word\" in: $OUT"
    done
}

# stop_job: from h1, all of it
stop_job() {
    on h1 stop
    ((RC == 0)) || fail "edm stop: $RC: $OUT"
    expect_said stopped
}

host_is_empty() {
    [[ -z $(host_pids "$1") ]]
}

# expect_clean H...: no process, socket, lock, shared memory or stored page is left there
expect_clean() {
    local h left
    for h in "$@"; do
        until_true 5 host_is_empty "$h" || fail "left on $h: $(ps -o pid=,args= -p "$(host_pids "$h" | tr ' ' ,)" | cut -c1-120)"
        left=$(host_run "$h" find /run/edm /dev/shm /run/disk -mindepth 1 ! -name '*.log*' 2>/dev/null)
        [[ -z $left ]] || fail "left on $h: $left"
    done
}
