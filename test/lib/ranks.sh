# A server of several ranks on this host, over TCP: rank K listens on $CASE_TMP/dms.sock.K, rank 0 on
# $CASE_TMP/dms.sock. Sets RANKS and SERVER_SET (the options); exports EDM_SOCKET (rank 0's) and EDM_SERVER=require.

# ranks_start N [KEY=VALUE...]
ranks_start() {
    local opts=() o k
    RANKS=$1
    shift
    for o in "$@"; do
        opts+=(-o "$o")
    done
    export EDM_SOCKET=$CASE_TMP/dms.sock EDM_SERVER=require
    mkdir -p "$CASE_TMP/disk"
    SERVER_SET=(-o "disk_path=$CASE_TMP/disk" -o "log_file=$CASE_TMP/server.log" "${opts[@]}")
    EDM_LOG_LEVEL=${EDM_TEST_SERVER_LOG:-info} "$EDM" start -n "$RANKS" "${SERVER_SET[@]}" \
        >"$CASE_TMP/start" 2>&1 ||
        fail "edm start: $(cat "$CASE_TMP/start")"
    for ((k = 0; k < RANKS; k++)); do
        rank_answers "$k" || fail "rank $k does not serve: $(tail -3 "$CASE_TMP/server.log")"
    done
    export EDM_TEST_EDM=$EDM
}

rank_socket() {
    echo "$CASE_TMP/dms.sock$( (($1 == 0)) || echo ".$1")"
}

# What rank K says of itself, in $CASE_TMP/rank.K.json
rank_answers() {
    EDM_SOCKET=$(rank_socket "$1") "$EDM" stat --json >"$CASE_TMP/rank.$1.json" 2>/dev/null
}

# rank_stat K FILTER
rank_stat() {
    rank_answers "$1" || fail "rank $1 does not answer: $(tail -3 "$CASE_TMP/server.log")"
    jq -r "$2" "$CASE_TMP/rank.$1.json"
}

rank_is_idle() {
    rank_answers "$1" && [[ $(jq -c '[(.instances | length), .server.memory_store.used_bytes,
        .server.disk_store.used_bytes, ([.server.peers[] | select(.alive) | .pages, .kept_pages] | add // 0)]' \
        "$CASE_TMP/rank.$1.json") == '[0,0,0,0]' ]]
}

# ranks_expect_idle RANK...: nothing is kept on any of them
ranks_expect_idle() {
    local k
    for k in "$@"; do
        until_true 10 rank_is_idle "$k" ||
            fail "rank $k still keeps something: $(jq -c .server "$CASE_TMP/rank.$k.json")"
    done
}

# ranks_stop: ends those that are left
ranks_stop() {
    "$EDM" stop >"$CASE_TMP/stop" 2>&1 || fail "edm stop: $(cat "$CASE_TMP/stop")"
    until_true 20 ranks_ended || fail "ranks still run: $(tail -3 "$CASE_TMP/server.log")"
}

ranks_ended() {
    ! pgrep -f -- "disk_path=$CASE_TMP/disk" >/dev/null
}

# log_says PATTERN: also when mpiexec, which passes the ranks' lines on, takes its time
log_says() {
    until_true 5 grep -q "$1" "$CASE_TMP/server.log"
}
