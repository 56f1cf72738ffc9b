#!/bin/bash
# redis.sh KILLS SEED: redis-server whose clients write and read, and which saves in a forked child,
# while its server is killed KILLS times at random moments.
source "$(dirname "$0")/restart.sh"
need redis-server redis-cli
kills=$1
RANDOM=$2
BUDGET=$((24 * MIB)) # a tenth of what it needs
PROGRAM_LIMIT=$((kills * 20 + 100))
count=200000
socket=$CASE_TMP/redis.sock
echo "seed $2"

client() {
    STOP=$CASE_TMP/stop /usr/bin/python3 "$TEST_ROOT/test/programs/redis_client.py" "$socket" "$1" "$count"
}

answers() {
    [[ $(redis-cli -s "$socket" ping 2>/dev/null) == PONG ]]
}

saves() {
    ! redis-cli -s "$socket" info persistence | grep -q 'rdb_bgsave_in_progress:0'
}

expected=$(client expect)
supervisor_start memory_store=1G disk_store=0
RUN_OPTIONS=(reconnect_timeout=30)
program_start redis-server --port 0 --unixsocket "$socket" --dir "$CASE_TMP" --save '' --appendonly no \
    --daemonize no --loglevel warning --dbfilename dump.rdb --rdbcompression no
until_true 20 answers || fail "redis does not answer: $(program_said)"
client fill || fail "filling failed"
client write &
writer=$!
for ((i = 0; i < kills; i++)); do
    saves || redis-cli -s "$socket" bgsave >"$CASE_TMP/bgsave"
    pause "$((RANDOM % 3)).$((RANDOM % 10))"
    server_kill
    [[ $(client digest) == "$expected" ]] || fail "a value is not what was set"
done
touch "$CASE_TMP/stop"
wait "$writer" || fail "the writer failed"
[[ $(client digest) == "$expected" ]] || fail "a value is not what was set"
until_true 60 eval '! saves' || fail "BGSAVE does not end"
redis-cli -s "$socket" info persistence | grep -q 'rdb_last_bgsave_status:ok' || fail "BGSAVE failed"
redis-cli -s "$socket" shutdown nosave
program_expect 0
(($(grep -c 'took over [1-9]' "$CASE_TMP/server.log") == kills)) || fail "a server did not take over"
! grep 'without a budget' "$CASE_TMP/program.err" || fail "a forked child was given up"
restart_end
