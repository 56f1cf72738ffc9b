# The test's own server. Sets SERVER_PID; exports EDM_SOCKET and EDM_SERVER=require.

# server_start [KEY=VALUE...]
server_start() {
    local opts=() o
    for o in "$@"; do
        opts+=(-o "$o")
    done
    export EDM_SOCKET=$CASE_TMP/dms.sock EDM_SERVER=require
    mkdir -p "$CASE_TMP/disk"
    EDM_LOG_LEVEL=${EDM_TEST_SERVER_LOG:-info} "$EDM_DMS" -o "disk_path=$CASE_TMP/disk" "${opts[@]}" \
        >"$CASE_TMP/server.log" 2>&1 &
    SERVER_PID=$!
    until_true 20 server_answers_or_ended
    server_answers || fail "the server does not serve: $(tail -3 "$CASE_TMP/server.log")"
}

server_answers() {
    "$EDM" stat --json >"$CASE_TMP/stat.json" 2>"$CASE_TMP/stat.err"
}

server_answers_or_ended() {
    server_answers || ! kill -0 "$SERVER_PID" 2>/dev/null
}

# No instance, no page, no byte kept.
server_is_idle() {
    server_answers && [[ $(jq -c '[(.instances | length), .server.memory_store.pages,
        .server.memory_store.used_bytes, .server.disk_store.pages,
        .server.disk_store.used_bytes]' "$CASE_TMP/stat.json") == '[0,0,0,0,0]' ]]
}

server_expect_idle() {
    until_true 10 server_is_idle ||
        fail "the server still keeps something after the program's end: $(jq -c . "$CASE_TMP/stat.json")"
}

# Ends the server; it must go by itself and leave nothing.
server_stop() {
    local pid=$SERVER_PID left
    "$EDM" stop >"$CASE_TMP/stop.out" 2>&1 || fail "edm stop: $(cat "$CASE_TMP/stop.out")"
    SERVER_PID=
    wait "$pid"
    local rc=$?
    ((rc == 0)) || fail "the server ended with $rc: $(tail -3 "$CASE_TMP/server.log")"
    left=$(find "$CASE_TMP/disk" -type f | head -3)
    [[ -z $left ]] || fail "the server left files: $left"
    [[ ! -e $CASE_TMP/dms.sock ]] || fail "the server left its socket"
}

# server_expect_quiet: no error and no warning in its log
server_expect_quiet() {
    local bad
    bad=$(grep -iE 'error|warning' "$CASE_TMP/server.log" | head -3)
    [[ -z $bad ]] || fail "the server complained: $bad"
}
