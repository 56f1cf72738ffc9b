#!/bin/bash
# restart.sh RANKS "OPTIONS" WHAT ROUNDS: the torture program with its pages on other ranks, while the
# server is replaced: `edm restart` with all ranks alive (live), after kill -9 of the program's own rank
# (local) or of another (remote), or `edm start` after kill -9 of every rank and mpiexec (all). Not one
# byte is different, by counters pages crossed before and after, nothing is left.
source "$(dirname "$0")/../lib/program.sh"
source "$TEST_ROOT/test/lib/ranks.sh"
ranks=$1 options=$2 what=$3 rounds=$4
BUDGET=$((16 * MIB))
SECONDS_LONG=$((4 + rounds * 5))

opts=(-o reconnect_timeout=40)
for o in $options; do
    opts+=(-o "$o")
done

pages_away() {
    rank_answers 0 && (($(jq '[.server.peers[].pages] | add' "$CASE_TMP/rank.0.json") > 2000))
}

# What there is to know when pages do not go away, and the program's threads with their calls
told() {
    local t
    echo "rank 0: $(jq -c '[.server.pid, .server.uptime_s, .server.peers, .instances]' "$CASE_TMP/rank.0.json" | head -c 1500)"
    for t in $(pgrep -x torture -s 0); do
        echo "torture $t: $(tr '\n' ' ' <"/proc/$t/wchan") $(head -c 60 "/proc/$t/syscall")"
    done
    echo "$(tail -2 "$CASE_TMP/out"); start: $(cat "$CASE_TMP/again" 2>/dev/null); server: $(tail -5 "$CASE_TMP/server.log")"
}

mpiexec_pid() {
    sed -n 's/^mpiexec \([0-9]*\) .*/\1/p' "$EDM_SOCKET.job"
}

kill_all() {
    local k pids=() # as they were at the round's begin: one may be stopped by now
    for ((k = 0; k < ranks; k++)); do
        pids+=("$(jq .server.pid "$CASE_TMP/rank.$k.json")")
    done
    kill -KILL "$(mpiexec_pid)" "${pids[@]}"
}

# kill_with_store RANK: its keeper as well, and before the rank can make another
kill_with_store() {
    local pid
    pid=$(rank_stat "$1" .server.pid)
    kill -STOP "$pid"
    pkill -KILL -P "$pid" -x edm-keeper || fail "rank $1 has no keeper"
    [[ $2 == later ]] || kill -KILL "$pid"
}

# Kills mpiexec and what ranks there are; true when there was none. One may just be being forked.
none_to_kill() {
    local pid none=1
    for pid in $(mpiexec_pid) $(pgrep -f -- "disk_path=$CASE_TMP/disk"); do
        [[ $(cat "/proc/$pid/comm" 2>/dev/null) == @(edm-dms|mpiexec.hydra) ]] && kill -KILL "$pid" && none=
    done
    [[ -n $none ]]
}

# What kill -9 leaves of a start that is under way
start_and_kill() {
    "$EDM" start "${SERVER_SET[@]}" -n "$ranks" >/dev/null 2>&1 &
    pause "0.$((RANDOM % 4))$((RANDOM % 10))"
    until_true 10 none_to_kill || fail "ranks come up again and again"
    wait $!
}

replace() {
    local verb=restart
    case $what in
    local) kill -KILL "$(rank_stat 0 .server.pid)" ;;
    remote) kill -KILL "$(rank_stat 1 .server.pid)" ;;
    gone) kill_with_store 1 now ;;
    all)
        kill_all
        verb=start
        ;;
    all_gone)
        kill_with_store 1 later
        kill_all
        verb=start
        ;;
    twice)
        kill_all
        start_and_kill
        verb=start
        ;;
    esac
    EDM_LOG_LEVEL=info timeout 60 "$EDM" $verb "${SERVER_SET[@]}" -n "$ranks" >"$CASE_TMP/again" 2>&1 ||
        fail "edm $verb: $(cat "$CASE_TMP/again"); server: $(tail -3 "$CASE_TMP/server.log")"
}

no_keepers() {
    ! pgrep -f -- "disk_path=$CASE_TMP/disk" >/dev/null
}

ranks_start "$ranks" memory_store=256M disk_store=0 ${EDM_TEST_SERVER_OPTIONS:-}
"$EDM" run -m "$BUDGET" "${opts[@]}" -- timeout -s KILL $((SECONDS_LONG + 60)) \
    "$EDM_BUILD/test/torture/torture" --seed "${SEED:-7}" --seconds "$SECONDS_LONG" --bytes 160M --threads 4 \
    >"$CASE_TMP/out" 2>&1 &
program=$!
for ((round = 1; round <= rounds; round++)); do
    until_true 20 pages_away || fail "round $round: no pages went to other ranks: $(told)"
    pause "0.$((RANDOM % 10))"
    for ((k = 0; k < ranks; k++)); do
        rank_answers "$k" || fail "round $round: rank $k does not answer"
    done
    kill -0 "$program" 2>/dev/null || fail "round $round: the program has ended: $(tail -2 "$CASE_TMP/out")"
    replace
done
until_true 20 pages_away || fail "no pages went to other ranks after the last: $(told)"
wait "$program"
rc=$?
((rc == 0)) || fail "status $rc: $(tail -3 "$CASE_TMP/out"); server: $(grep -v info "$CASE_TMP/server.log" | tail -3)"
! grep -q 'is lost' "$CASE_TMP/server.log" || fail "pages were lost: $(grep -m2 'is lost' "$CASE_TMP/server.log")"
ranks_expect_idle $(seq 0 $((ranks - 1)))
ranks_stop
until_true 5 no_keepers || fail "keepers are left"
echo "note: $rounds times, $(grep -c 'took over' "$CASE_TMP/server.log") taken over"
