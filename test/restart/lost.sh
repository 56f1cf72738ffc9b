#!/bin/bash
# lost.sh SCENE: a server is lost in one particular way while a program checks its memory.
source "$(dirname "$0")/restart.sh"
SERVER=(memory_store=1G disk_store=0)
RUN_OPTIONS=(reconnect_timeout=30)

# A program of four times its budget, which has been evicting for a while, until steady_end
steady_start() {
    program_start "$EDM_BUILD/test/restart/steady" $((BUDGET * 4)) 0
    until_true 30 has_evicted || fail "nothing was evicted: $(program_said)"
}

# It has checked all of its memory
steady_end() {
    kill -TERM $(case_named steady)
    program_expect 0
}

# A successor has taken over for the Nth time, and the program has gone on for a while
goes_on_after() {
    until_true 20 taken_over "$1" || fail "nobody took over"
    pause 1
}

has_evicted() {
    server_answers && (($(jq '.instances[0].evictions.pages // 0' "$CASE_TMP/stat.json") > 8192))
}

# The counters in the JSON on standard input, as a line of numbers
numbers() {
    jq -c '.instances[0] | [.faults[], .evictions[], .events[], .prefetch[], .leases]'
}

counters() {
    "$EDM" stat --json | numbers
}

not_below() {
    jq -ne --argjson a "$1" --argjson b "$2" 'all(range($a | length); $b[.] >= $a[.])' >/dev/null
}

taken_over() {
    (($(grep -c 'took over [1-9]' "$CASE_TMP/server.log") >= $1))
}

# expect_end SECONDS: the program ends by itself, with one line that says why
expect_end() {
    local rc lines
    wait "$PROGRAM"
    rc=$?
    ((rc == 134)) || fail "the program ended with $rc: $(program_said)"
    lines=$(grep -c '^edm: the server is gone and none took over in' "$CASE_TMP/program.err")
    ((lines == 1 && $(grep -c '^edm' "$CASE_TMP/program.err") == 1)) ||
        fail "not one line that says so: $(cat "$CASE_TMP/program.err")"
    ! grep -q 'not ok' "$CASE_TMP/program.out" || fail "a wrong byte: $(program_said)"
    ((EPOCHSECONDS - KILLED <= $1)) || fail "it took $((EPOCHSECONDS - KILLED)) s"
}

# Killed, and its successor before that can serve, three times
scene_twice() {
    local pid
    supervisor_start "${SERVER[@]}"
    steady_start
    for _ in 1 2 3; do
        pid=$(server_pid)
        server_kill
        until_true 5 is_another_server "$pid" || fail "no successor is started"
        pause "0.0$((RANDOM % 5))"
        server_kill
        pause 2
    done
    goes_on_after 1
    steady_end
}

is_another_server() {
    [[ $(server_pid) != "$1" ]]
}

# Stopped for 10 s: nobody takes it for dead
scene_stopped() {
    local pid
    RUN_OPTIONS=(reconnect_timeout=5)
    supervisor_start "${SERVER[@]}"
    steady_start
    pid=$(server_pid)
    kill -STOP "$pid"
    pause 10
    kill -CONT "$pid"
    pause 1
    steady_end
    [[ $pid == "$(server_pid)" ]] || fail "the server ended"
}

# The program is stopped for longer than its eviction thread is usually waited for
scene_program_stopped() {
    supervisor_start "${SERVER[@]}"
    steady_start
    kill -STOP $(case_named steady)
    server_kill
    pause 8
    kill -CONT $(case_named steady)
    goes_on_after 1
    steady_end
    ! server_logged 'without a budget' || fail "a stopped program was given up"
}

# The keeper is killed: the server makes another, which serves as well
scene_keeper() {
    local old
    supervisor_start "${SERVER[@]}"
    steady_start
    old=$(case_named edm-keeper)
    kill -KILL "$old"
    until_true 5 server_logged 'the keeper was killed' || fail "the server did not notice"
    until_true 5 keeper_is_not "$old" || fail "there is no new keeper"
    pause 1
    server_kill
    goes_on_after 1
    steady_end
}

keeper_is_not() {
    local now
    now=$(case_named edm-keeper)
    [[ -n $now && $now != "$1" ]]
}

# Both killed: no successor can have the pages
scene_both() {
    RUN_OPTIONS=(reconnect_timeout=3)
    supervisor_start "${SERVER[@]}"
    steady_start
    kill -KILL "$(server_pid)" "$(case_named edm-keeper)"
    KILLED=$EPOCHSECONDS
    expect_end 8
    MAY_LOSE=1
}

# No successor comes
scene_nobody() {
    RUN_OPTIONS=(reconnect_timeout=3)
    supervisor_start "${SERVER[@]}"
    steady_start
    touch "$CASE_TMP/no_more"
    server_kill
    KILLED=$EPOCHSECONDS
    expect_end 6
    wait "$SUPERVISOR"
    until_true 5 no_keepers || fail "the keeper outlives the program"
    [[ ! -e $CASE_TMP/dms.sock.keeper ]] || fail "the keeper left its socket"
    exit 0
}

# No successor comes, and a forked child waits to be known to one
scene_nobody_child() {
    RUN_OPTIONS=(reconnect_timeout=3)
    echo fork_published >"$CASE_TMP/dies"
    supervisor_start "${SERVER[@]}"
    touch "$CASE_TMP/no_more"
    program_start "$EDM_BUILD/test/restart/fork_reads" libc "$CASE_TMP/server.pid"
    wait "$SUPERVISOR"
    KILLED=$EPOCHSECONDS
    wait "$PROGRAM"
    local rc=$?
    ((rc != 0)) || fail "the program ended well without a server"
    ! grep -q 'not ok.*child' "$CASE_TMP/program.out" || fail "a wrong byte: $(program_said)"
    grep -q '^edm: the server is gone' "$CASE_TMP/program.err" || fail "no word: $(program_said)"
    until_true 10 no_programs || fail "a process still waits: $(case_named fork_reads)"
    ((EPOCHSECONDS - KILLED <= 15)) || fail "it took $((EPOCHSECONDS - KILLED)) s"
    until_true 5 no_keepers || fail "the keeper outlives the program"
    exit 0
}

# The same for a child that was made by a raw clone, which has no thread of ours
scene_nobody_raw() {
    RUN_OPTIONS=(reconnect_timeout=3)
    supervisor_start "${SERVER[@]}"
    touch "$CASE_TMP/no_more"
    program_start "$EDM_BUILD/test/restart/fork_reads" raw "$CASE_TMP/server.pid"
    wait "$SUPERVISOR"
    wait "$PROGRAM"
    (($? != 0)) || fail "the program ended well without a server"
    ! grep -q 'not ok.*is not' "$CASE_TMP/program.out" || fail "a wrong byte: $(program_said)"
    until_true 20 no_programs || fail "a process still waits: $(case_named fork_reads)"
    until_true 5 no_keepers || fail "the keeper outlives the program"
    exit 0
}

no_programs() {
    [[ -z $(case_named fork_reads) ]]
}

# on_server_lost=wait: longer than reconnect_timeout
scene_wait() {
    RUN_OPTIONS=(reconnect_timeout=2 on_server_lost=wait)
    echo 5 >"$CASE_TMP/delay"
    supervisor_start "${SERVER[@]}"
    steady_start
    server_kill
    goes_on_after 1
    steady_end
}

# The successor has another size, another way of storing, and its programs another budget
scene_other_settings() {
    supervisor_start "${SERVER[@]}"
    steady_start
    echo "memory_store=16M disk_store=1G compression=lz4" >"$CASE_TMP/server.options"
    server_kill
    goes_on_after 1
    echo "memory_store=2G disk_store=0 compression=none" >"$CASE_TMP/server.options"
    server_kill
    goes_on_after 2
    "$EDM" resize "$(jq '.instances[0].pid' "$CASE_TMP/stat.json")" 32M || fail "edm resize"
    pause 1
    steady_end
}

# Counters of an instance never go down, and its budget is kept
scene_counters() {
    local before after
    RUN_FLAGS=(--stats "$CASE_TMP/stats.json")
    supervisor_start "${SERVER[@]}"
    steady_start
    for _ in 1 2 3; do
        before=$(counters)
        server_kill
        until_true 20 server_answers || fail "no successor"
        after=$(counters)
        not_below "$before" "$after" || fail "counters went down: $before, then $after"
        pause 1
    done
    (($("$EDM" stat --json | jq '.instances[0].resident_max_bytes') <= BUDGET + IN_FLIGHT)) ||
        fail "the budget was passed"
    steady_end
    not_below "$after" "$(numbers <"$CASE_TMP/stats.json")" || fail "edm run --stats lost counters"
}

# SIGTERM with a program running: everything is given back, nothing is kept
scene_term() {
    supervisor_start "${SERVER[@]}"
    steady_start
    kill -TERM "$(server_pid)"
    wait "$SUPERVISOR"
    until_true 2 no_keepers || fail "a keeper is left"
    steady_end
    nothing_left
    exit 0
}

# After SIGTERM nobody answers what the hooks ask for
scene_released() {
    supervisor_start "${SERVER[@]}"
    program_start "$EDM_BUILD/test/restart/released" "$CASE_TMP/server.pid"
    program_expect 0
    ! grep . "$CASE_TMP/program.err" >&2 || fail "the program hears of it"
    wait "$SUPERVISOR"
    until_true 2 no_keepers || fail "a keeper is left"
    nothing_left
    exit 0
}

# SIGTERM, then SIGKILL while pages are given back
scene_term_kill() {
    echo "${1:-release}" >"$CASE_TMP/dies"
    supervisor_start "${SERVER[@]}"
    steady_start
    kill -TERM "$(server_pid)"
    until_true 20 server_logged 'EDM_TEST_DIE: ending at' || fail "the server was not killed"
    pause 2
    steady_end
}

# edm restart under a running program, three times, the last with another capacity
scene_restart() {
    local options=(-o "disk_path=$CASE_TMP/disk" -o disk_store=0) size n
    mkdir -p "$CASE_TMP/disk"
    export EDM_SOCKET=$CASE_TMP/dms.sock EDM_SERVER=require EDM_LOG_FILE=$CASE_TMP/server.log
    "$EDM" start "${options[@]}" -o memory_store=1G || fail "edm start"
    steady_start
    n=$(server_answers && jq .instances[0].evictions.pages "$CASE_TMP/stat.json")
    for size in 1G 1G 2G; do
        "$EDM" restart "${options[@]}" -o "memory_store=$size" || fail "edm restart"
        server_answers || fail "nobody serves after edm restart"
        pause 1
    done
    (($(jq .server.memory_store.capacity_bytes "$CASE_TMP/stat.json") == 2048 * MIB)) ||
        fail "the capacity is not the new one"
    (($(jq .instances[0].evictions.pages "$CASE_TMP/stat.json") > n)) || fail "nothing goes on"
    steady_end
    server_expect_idle
    "$EDM" restart "${options[@]}" || fail "edm restart without programs"
    "$EDM" stop || fail "edm stop"
    "$EDM" restart "${options[@]}" || fail "edm restart without a server"
    "$EDM" stop || fail "edm stop"
    until_true 2 no_keepers || fail "a keeper stays"
    nothing_left
    exit 0
}

# Children read their parent's pages after the server's death
scene_fork_libc() {
    echo "${2:-0.5}" >"$CASE_TMP/delay"
    supervisor_start "${SERVER[@]}"
    program_start "$EDM_BUILD/test/restart/fork_reads" "${1:-libc}" "$CASE_TMP/server.pid"
    program_expect 0
    taken_over 4 || fail "the server was not killed in each round"
    echo "note: $(sed -n 's/first page after //p' "$CASE_TMP/program.out" | paste -sd' ')"
}

scene_fork_raw() {
    scene_fork_libc raw
}

# Pages were moved to where others had been, and the server that should have heard of it is dead
scene_moved() {
    supervisor_start "${SERVER[@]}"
    program_start "$EDM_BUILD/test/restart/moved" "$CASE_TMP/server.pid"
    program_expect 0
    taken_over 4 || fail "the server was not killed in each round"
}

# server=auto: the program whose server was killed goes on when a second program starts another
scene_auto() {
    export EDM_SOCKET=$CASE_TMP/dms.sock
    mkdir -p "$CASE_TMP/disk"
    RUN_OPTIONS=(server=auto reconnect_timeout=30 "disk_path=$CASE_TMP/disk" memory_store=1G disk_store=0)
    steady_start
    until_true 5 server_answers
    kill -KILL "$(jq .server.pid "$CASE_TMP/stat.json")"
    pause 1
    timeout -s KILL 60 "$EDM" run -m "$BUDGET" -o server=auto -o "disk_path=$CASE_TMP/disk" \
        -o memory_store=1G -o disk_store=0 -- "$EDM_BUILD/test/restart/steady" $((BUDGET * 2)) 1 \
        >"$CASE_TMP/second.out" 2>&1 || fail "the second program: $(tail -3 "$CASE_TMP/second.out")"
    steady_end
    grep -q 'took over 1' "$CASE_TMP/dms.log" || fail "nobody took over"
    server_expect_idle
    until_true 20 no_servers || fail "the server stays"
    until_true 2 no_keepers || fail "a keeper stays"
    nothing_left
    exit 0
}

no_servers() {
    [[ -z $(case_named edm-dms) ]]
}

"scene_$1" "${@:2}"
restart_end
