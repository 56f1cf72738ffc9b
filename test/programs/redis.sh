#!/bin/bash
# redis-server with 500,000 values of 1 KiB: all read back; BGSAVE, which forks, while clients write;
# the dump is loaded by a redis without EDM and compared.
source "$(dirname "$0")/../lib/program.sh"
need redis-server redis-cli
count=$((SCALE * 500000))
client() {
    /usr/bin/python3 "$TEST_ROOT/test/programs/redis_client.py" "$@"
}

# serve FOLDER: the arguments of a redis that keeps all in memory and listens on FOLDER/sock only
serve() {
    mkdir -p "$1"
    redis_args=(redis-server --port 0 --unixsocket "$1/sock" --dir "$1" --save '' --appendonly no
        --daemonize no --loglevel warning --dbfilename dump.rdb --rdbcompression no)
}

answers() {
    [[ $(redis-cli -s "$1/sock" ping 2>/dev/null) == PONG ]]
}

saved() {
    redis-cli -s "$1/sock" info persistence | grep -q 'rdb_bgsave_in_progress:0'
}

# everything FOLDER: what is done to a running redis
everything() {
    local writer pid
    until_true 60 answers "$1" || return 1
    client "$1/sock" fill "$count" && client "$1/sock" read "$count" || return 1
    redis-cli -s "$1/sock" bgsave >"$1/bgsave" || return 1
    STOP=$1/stop client "$1/sock" write "$count" &
    writer=$!
    until_true 300 saved "$1" || return 1
    touch "$1/stop"
    wait "$writer" || return 1
    redis-cli -s "$1/sock" info persistence | grep -q 'rdb_last_bgsave_status:ok' || return 1
    client "$1/sock" digest "$count" >"$1/digest" || return 1
    redis-cli -s "$1/sock" shutdown nosave
}

echo "native run"
serve "$CASE_TMP/native"
(everything "$CASE_TMP/native" >everything.out 2>&1; echo $? >everything.rc) &
driver=$!
native "${redis_args[@]}" >native.log
wait "$driver"
[[ $(<everything.rc) == 0 ]] || fail "natively: $(tail -1 everything.out)"
budget_from_need

echo "managed run"
serve "$CASE_TMP/managed"
(everything "$CASE_TMP/managed" >everything.out 2>&1; echo $? >everything.rc) &
driver=$!
INSTANCES=2 # the server and the child that saves
managed "${redis_args[@]}" >managed.log 2>program.err || fail "redis-server: $? $(tail -1 managed.log)"
wait "$driver"
[[ $(<everything.rc) == 0 ]] || fail "managed: $(tail -1 everything.out)"
expect_same native/digest managed/digest
(($(stats 'map(.events.fork) | add // 0') > 0)) || fail "no fork was seen"

echo "loading the dump"
mkdir check && mv managed/dump.rdb check/
serve "$CASE_TMP/check"
"${redis_args[@]}" >check.log &
checker=$!
until_true 60 answers "$CASE_TMP/check" || fail "the dump does not load: $(tail -1 check.log)"
client "$CASE_TMP/check/sock" digest "$count" >check/digest || fail "the dump lacks keys"
client "$CASE_TMP/check/sock" read "$count" || fail "the dump is not the state at BGSAVE"
redis-cli -s "$CASE_TMP/check/sock" shutdown nosave
wait "$checker"
expect_same native/digest check/digest
expect_paged
program_end
