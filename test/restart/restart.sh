# What the tests of servers that die share: a supervisor that starts the next server whenever one
# was killed. The supervised server is a child of the supervisor; its pid is in $CASE_TMP/server.pid.

source "$(dirname "${BASH_SOURCE[0]}")/../lib/program.sh"

BUDGET=${EDM_TEST_BUDGET:-$((16 * MIB))}
PROGRAM_LIMIT=100 # seconds
RUN_FLAGS=()

# server_once: one server until its end. Its settings are the words of the file server.options,
# so that a successor may have others; the first line of the file dies says where it is to die.
server_once() {
    local die options
    read -r die _ <"$CASE_TMP/dies" || die=
    sed -i 1d "$CASE_TMP/dies"
    read -ra options <"$CASE_TMP/server.options" || true
    # shellcheck disable=SC2086
    env ${die:+EDM_TEST_DIE=$die} EDM_LOG_LEVEL=info "$EDM_DMS" -o "disk_path=$CASE_TMP/disk" \
        "${options[@]/#/-o}" >>"$CASE_TMP/server.log" 2>&1 &
    echo $! >"$CASE_TMP/server.pid"
    { wait $!; } 2>/dev/null
}

# One server after the other, until one ends of its own will or $CASE_TMP/no_more is there.
supervise() {
    local rc
    until [[ -e $CASE_TMP/no_more ]]; do
        server_once
        rc=$?
        echo "--- server ended with $rc" >>"$CASE_TMP/server.log"
        ((rc != 0)) || break
        pause "$(cat "$CASE_TMP/delay" 2>/dev/null || echo 0.01)"
    done
}

# supervisor_start [KEY=VALUE...]: and waits until a server serves (unless it is to die at once)
supervisor_start() {
    export EDM_SOCKET=$CASE_TMP/dms.sock EDM_SERVER=require
    mkdir -p "$CASE_TMP/disk"
    echo "$*" >"$CASE_TMP/server.options"
    touch "$CASE_TMP/dies"
    supervise &
    SUPERVISOR=$!
    until_true 20 server_answers || fail "no server serves: $(tail -3 "$CASE_TMP/server.log")"
}

server_pid() {
    cat "$CASE_TMP/server.pid"
}

server_kill() {
    kill -KILL "$(server_pid)"
}

# Processes of that name in the case's cgroup
case_named() {
    local pid
    for pid in $(cg_pids "$CASE_CG"); do
        [[ $(cat "/proc/$pid/comm" 2>/dev/null) != "$1" ]] || echo "$pid"
    done
}

no_keepers() {
    [[ -z $(case_named edm-keeper) ]]
}

server_logged() {
    grep -q -- "$1" "$CASE_TMP/server.log"
}

# program_start COMMAND...: under EDM in the background. RUN_OPTIONS are its settings,
# RUN_FLAGS what else edm run is told.
program_start() {
    local opts=() o
    for o in "${RUN_OPTIONS[@]}"; do
        opts+=(-o "$o")
    done
    timeout -s KILL "$PROGRAM_LIMIT" "$EDM" run -m "$BUDGET" "${RUN_FLAGS[@]}" "${opts[@]}" -- "$@" \
        >"$CASE_TMP/program.out" 2>"$CASE_TMP/program.err" &
    PROGRAM=$!
}

# program_expect STATUS
program_expect() {
    local rc
    wait "$PROGRAM"
    rc=$?
    ((rc == $1)) || fail "the program ended with $rc: $(program_said)"
}

program_runs() {
    kill -0 "$PROGRAM" 2>/dev/null
}

program_said() {
    { grep -hE '^(not ok|failed:|edm)' "$CASE_TMP/program.out" "$CASE_TMP/program.err" ||
        tail -n 3 "$CASE_TMP/program.err"; } | head -5
    tail -n 4 "$CASE_TMP/server.log"
}

# Last act: nothing stored, nothing lost, and the clean end of the last server leaves no keeper.
restart_end() {
    server_expect_idle
    [[ -n ${MAY_LOSE:-} ]] || ! grep -E '(is|were) lost|damaged|cannot be taken over' "$CASE_TMP/server.log" >&2 ||
        fail "pages were lost"
    "$EDM" stop >"$CASE_TMP/stop.out" 2>&1 || fail "edm stop: $(cat "$CASE_TMP/stop.out")"
    wait "$SUPERVISOR"
    until_true 2 no_keepers || fail "a keeper outlives the clean end of its server"
    nothing_left
}

nothing_left() {
    local left
    left=$(find "$CASE_TMP/disk" -type f | head -3)
    [[ -z $left ]] || fail "the server left files: $left"
    [[ ! -e $CASE_TMP/dms.sock && ! -e $CASE_TMP/dms.sock.keeper ]] || fail "a socket is left"
}
