#!/bin/bash
# restart.sh local|all|turns walkers|torture|redis ROUNDS: ranks on two hosts are killed, the program's
# own (local), all at once, or that by turns, and `edm restart` puts others in their place, while
# programs run whose pages are on the other host: a walker on each host, with (torture, redis) another
# program on h1.
source "$(dirname "$0")/hosts.sh"
what=$1 program=$2 rounds=$3
socket=$CASE_TMP/redis.sock
count=40000

# client VERB: of redis; the socket is a file, so that it works from outside of the host
client() {
    STOP=$CASE_TMP/redis.stop /usr/bin/python3 "$TEST_ROOT/test/programs/redis_client.py" "$socket" "$1" "$count"
}

answers() {
    [[ $(redis-cli -s "$socket" ping 2>/dev/null) == PONG ]]
}

# run_on_h1 COMMAND...: sets PROGRAM
run_on_h1() {
    host_run h1 "$EDM" run -m 8M -o attach_threshold=0 -o placement=remote -- "$@" >program.out 2>&1 &
    PROGRAM=$!
}

program_start() {
    case $program in
    torture)
        run_on_h1 timeout -s KILL $((rounds * 12 + 150)) "$EDM_BUILD/test/torture/torture" --seed "${SEED:-7}" \
            --seconds $((rounds * 6 + 4)) --bytes 96M --threads 2
        ;;
    redis)
        need redis-server redis-cli
        expected=$(client expect)
        run_on_h1 redis-server --port 0 --unixsocket "$socket" --dir "$CASE_TMP" --save '' --appendonly no \
            --daemonize no --loglevel warning
        until_true 20 answers || fail "redis does not answer: $(tail -2 program.out)"
        client fill || fail "filling failed"
        client write &
        writer=$!
        ;;
    esac
}

program_end() {
    case $program in
    redis)
        touch redis.stop
        wait "$writer" || fail "the writer failed"
        [[ $(client digest) == "$expected" ]] || fail "a value is not what was set"
        redis-cli -s "$socket" shutdown nosave
        ;;
    esac
    [[ -z ${PROGRAM:-} ]] || wait "$PROGRAM" || fail "the program ended with $?: $(tail -3 program.out)"
}

# The torture program has its time: on a slow machine another follows
program_goes_on() {
    [[ $program == torture ]] && ! kill -0 "$PROGRAM" 2>/dev/null || return 0
    wait "$PROGRAM" || fail "the program ended with $?: $(tail -n 3 program.out)"
    program_start
}

pages_have_crossed() {
    (($(pages_on_others h1) > 2000 && $(pages_on_others h2) > 2000))
}

ranks_kill() {
    local pids=("$(rank_pid h1)")
    if [[ $what == all || $what == turns && $((round % 2)) == 0 ]]; then
        pids+=("$(rank_pid h2)")
    fi
    kill -KILL "${pids[@]}"
}

hosts_up 2
# a rank that is late on a busy machine is not what this is about: nobody would replace it
job_start 2 -o memory_store=256M -o request_timeout=10
walker_start h1 -o placement=remote
walker_start h2 -o placement=remote
program_start
longest=0
for ((round = 1; round <= rounds; round++)); do
    program_goes_on
    until_true 20 pages_have_crossed || fail "round $round: too few pages are on the other host"
    pause "0.$((RANDOM % 10))"
    ranks_kill
    began=$SECONDS
    on h1 restart "${JOB_OPTIONS[@]}" -o memory_store=256M
    ((RC == 0)) || fail "round $round: edm restart: $RC: $OUT: $(host_run h1 tail -3 /run/edm/dms.sock.mpiexec.log)"
    expect_said "2 ranks on 2 hosts"
    ((SECONDS - began <= longest)) || longest=$((SECONDS - began))
    [[ $program != redis || $(client digest) == "$expected" ]] || fail "round $round: a value is not what was set"
    walker_goes_on h1
    walker_goes_on h2
done
program_end
until_true 20 pages_have_crossed || fail "too few pages are on the other host after the last round"
taken=$(host_run h1 cat /run/edm/dms.log | grep -c 'took over [1-9]')
((taken == rounds)) || fail "only $taken times were programs taken over on h1"
for h in h1 h2; do
    ! host_run "$h" grep -m 3 'is lost\|were lost' /run/edm/dms.log || fail "pages were lost"
done
walkers_end
stop_job
expect_clean h1 h2
hosts_down
echo "note: $rounds rounds, edm restart took at most $longest s"
