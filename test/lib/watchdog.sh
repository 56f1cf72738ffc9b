# A hang is a failure, and says where every thread stood.

# dump_threads PID
dump_threads() {
    local pid=$1 task
    echo "--- $pid $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)"
    for task in "/proc/$pid/task"/*; do
        [[ -r $task/comm ]] || continue
        echo "  thread ${task##*/} $(cat "$task/comm") state $(sed -n 's/^State:\t//p' "$task/status")" \
            "wchan $(cat "$task/wchan" 2>/dev/null) syscall $(cat "$task/syscall" 2>/dev/null)"
        sed 's/^/    /' "$task/stack" 2>/dev/null
    done
    if command -v gdb >/dev/null; then
        timeout -s KILL 20 gdb -batch -nx -p "$pid" -ex 'thread apply all bt' 2>/dev/null |
            grep -E '^(Thread|#)' | sed 's/^/    /'
    fi
}

# dump_case: every process of the case, and what its server says
dump_case() {
    local pid
    local socket
    echo "=== every thread:"
    for pid in $(cg_pids "$CASE_CG"); do
        dump_threads "$pid"
    done
    for socket in "$CASE_TMP"/dms.sock "$CASE_TMP"/dms.sock.[0-9]; do
        [[ -S $socket ]] || continue
        echo "=== edm stat, $socket:"
        EDM_SOCKET=$socket timeout -s KILL 10 "$EDM" stat --json
    done
    [[ ! -r $CASE_TMP/server.log ]] || { echo "=== server.log:" && tail -20 "$CASE_TMP/server.log"; }
}

# case_run NAME LIMIT COMMAND...: runs one test in a session and a cgroup of its own.
# Log in $RESULTS/NAME.log, exit status in .rc (124: hang), seconds in .time.
case_run() {
    local name=$1 limit=$2 start=$EPOCHREALTIME rc pid
    shift 2
    export CASE_TMP=$RUN_TMP/$name CASE_CG=$RUN_CG/$name EDM_TEST_ON_STALL=$LIB/dump.sh
    mkdir "$CASE_TMP" && cg_make "$CASE_CG" || { echo 125 >"$RESULTS/$name.rc" && return; }
    (cg_exec "$CASE_CG/main" setsid "$@") >"$RESULTS/$name.log" 2>&1 </dev/null &
    pid=$!
    if ! until_true "$limit" case_ended "$pid"; then
        { echo "=== time limit of $limit s passed" && dump_case; } >>"$RESULTS/$name.log" 2>&1
        rc=124
        kill -KILL "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    else
        wait "$pid"
        rc=$?
    fi
    if ((rc == 0)) && ! until_true 2 cg_is_empty "$CASE_CG"; then
        echo "failed: left running: $(ps -o pid=,args= -p "$(cg_pids "$CASE_CG" | paste -sd,)")" \
            >>"$RESULTS/$name.log"
        rc=1
    fi
    cg_remove "$CASE_CG"
    case_keep "$name" "$rc"
    echo "$rc" >"$RESULTS/$name.rc"
    LC_ALL=C printf '%.1f' "$(bc <<<"$EPOCHREALTIME - $start")" >"$RESULTS/$name.time"
}

case_ended() {
    ! kill -0 "$1" 2>/dev/null
}

# What a failed test leaves is kept where the user can look; the rest goes at once.
case_keep() {
    local f
    if (($2 != 0 && $2 != 77)); then
        for f in server.log stats.json sampler.json program.err; do
            [[ ! -s $CASE_TMP/$f ]] || cp "$CASE_TMP/$f" "$RESULTS/$1.$f"
        done
    fi
    rm -rf "$CASE_TMP"
}
