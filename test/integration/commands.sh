#!/bin/bash
# What the commands do to what surrounds them: files of others, servers that programs started,
# callers that closed or ignore something, programs that are stopped.
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
source "$TEST_ROOT/test/lib/cgroup.sh"
need python3 jq perl setpriv

export EDM_SOCKET=$CASE_TMP/dms.sock EDM_DISK_STORE=0 EDM_MEMORY_STORE=256M

# said STATUS PATTERN COMMAND...: its status, and the pattern in what it said
said() {
    local want=$1 pattern=$2 got status
    shift 2
    got=$(timeout -k 5 60 "$@" 2>&1 </dev/null)
    status=$?
    [[ $status == "$want" && $got == *$pattern* ]] ||
        fail "$*: status $status, not $want: \"$got\" lacks \"$pattern\""
}

# stat_of PID FILTER
stat_of() {
    "$EDM" stat --json "$1" 2>/dev/null | jq -r ".instances[0] | $2"
}

# program MIB: fills so much memory and reads it again and again until it is ended; sets PROGRAM
program() {
    LD_PRELOAD=$EDM_SHIM python3 -c '
import sys, time
x = bytearray(b"x") * (int(sys.argv[1]) << 20)
while True:
    assert x[::4096].count(b"x") == len(x) // 4096
    time.sleep(0.05)' "$1" &
    PROGRAM=$!
    until_true 30 has_memory "$PROGRAM" "$1" || fail "no instance of $1 MiB: $("$EDM" stat "$PROGRAM" 2>&1)"
}

# has_memory PID MIB: it has filled so much
has_memory() {
    local bytes
    bytes=$(stat_of "$1" '.resident_bytes + .stored_bytes')
    ((${bytes:-0} >= $2 * MIB))
}

ended() {
    kill "$PROGRAM"
    wait "$PROGRAM" 2>/dev/null
}

files_of_others_stay() {
    local dir=$CASE_TMP/files
    mkdir "$dir"
    echo one >"$dir/data.db"
    echo two >"$dir/data.db.1"
    touch "$dir/data.db.lock" "$dir/data.db.1.lock"
    said 125 "not a socket" "$EDM" stop -o "socket=$dir/data.db"
    said 125 "" "$EDM" restart -o "socket=$dir/data.db"
    [[ $(cat "$dir/data.db" "$dir/data.db.1") == $'one\ntwo' && -e $dir/data.db.lock ]] ||
        fail "files of the user are gone"
    mkdir "$CASE_TMP/theirs"
    chown 65534 "$CASE_TMP/theirs"
    said 1 "no socket can be made" "$EDM" check -o "socket=$CASE_TMP/no/such/dms.sock"
    said 1 "not a socket" "$EDM" check -o "socket=$dir/data.db"
    said 125 "another user" "$EDM" start -o "socket=$CASE_TMP/theirs/dms.sock"
    [[ -z $(ls "$CASE_TMP/theirs") ]] || fail "left with another user: $(ls "$CASE_TMP/theirs")"
}

server_of_a_program_is_kept() {
    local dms
    said 0 "" env LD_PRELOAD="$EDM_SHIM" EDM_ATTACH_THRESHOLD=0 true
    dms=$("$EDM" stat --json | jq .server.pid)
    said 0 "already runs" "$EDM" start
    pause 7 # it would have gone after 5
    [[ $("$EDM" stat --json | jq .server.pid) == "$dms" ]] || fail "it ended all the same"
    said 125 "--here" "$EDM" stop --ask
    said 0 "" "$EDM" stat
    # a server alone listens to its socket, and to nobody else
    perl -e '
        my %own = map { (readlink($_) // "") =~ /^socket:\[(\d+)\]/ ? ($1 => 1) : () } glob("/proc/$ARGV[0]/fd/*");
        for my $file ("tcp", "tcp6", "udp", "udp6") {
            open(my $f, "<", "/proc/$ARGV[0]/net/$file") or next;
            while (<$f>) { my @w = split; exit 1 if $own{$w[9] // ""}; }
        }
        exit(keys(%own) ? 0 : 2)' "$dms" || fail "the server has a network socket, or no socket ($?)"
    said 0 "stopped" "$EDM" stop
}

odd_callers() {
    said 6 "" python3 -c 'import os,signal,sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], ["edm", "run", "--stats", sys.argv[2], "sh", "-c", "exit 6"])' "$EDM" "$CASE_TMP/s1"
    jq -e .instances "$CASE_TMP/s1" >"$CASE_TMP/jq.out" || fail "no counters: $(<"$CASE_TMP/s1")"
    said 0 "stopped" "$EDM" stop
    said 0 "serves" python3 -c 'import os,signal,sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], ["edm", "start"])' "$EDM"
    "$EDM" run --stats "$CASE_TMP/s2" /nonexistent 2>&- >&- <&-
    [[ $? == 127 ]] || fail "not found is 127"
    jq -e .instances "$CASE_TMP/s2" >"$CASE_TMP/jq.out" || fail "not JSON: $(<"$CASE_TMP/s2")"
    echo old >"$CASE_TMP/s3"
    said 125 "off" "$EDM" run --stats "$CASE_TMP/s3" -o server=off true
    [[ $(<"$CASE_TMP/s3") == old ]] || fail "a file of counters was emptied for nothing"
    said 0 "stopped" "$EDM" stop
    # a descriptor of the caller, however high, is not the server's
    said 0 "serves" bash -c 'ulimit -n 4096; x=$(exec 1500>&1; exec "$0" start); echo "$x"' "$EDM"
    said 0 "stopped" "$EDM" stop
    said 0 yes env EDM_DISABLE=1 EDM_CONF=/nonexistent "$EDM" run echo yes
    mkfifo "$CASE_TMP/fifo"
    said 125 "log_file" env EDM_LOG_FILE="$CASE_TMP/fifo" LD_PRELOAD="$EDM_SHIM" true
    said 125 "@include" env EDM_CONF=<(echo) bash -c 'echo "@include \"/tmp\"" >"$1"
        EDM_CONF=$1 LD_PRELOAD=$2 exec true' - "$CASE_TMP/i.conf" "$EDM_SHIM"
}

no_address_space() {
    said 0 "serves" "$EDM" start
    said 125 "ulimit -v" bash -c 'ulimit -v 60000; EDM_SERVER=require LD_PRELOAD=$0 exec true' "$EDM_SHIM"
    said 0 "stopped" "$EDM" stop
}

hung_server() {
    local dms
    said 0 "serves" "$EDM" start
    EDM_LOCAL_MEMORY=16M program 64
    dms=$("$EDM" stat --json | jq .server.pid)
    kill -STOP "$dms"
    said 0 "" "$EDM" restart
    until_true 20 eval "[[ \$(stat_of $PROGRAM .pid) == $PROGRAM ]]" || fail "the program is lost"
    ended
    until_true 20 "$EDM" stop >"$CASE_TMP/stop.out" 2>&1 || fail "edm stop: $(<"$CASE_TMP/stop.out")"
}

stopped_program() {
    said 0 "serves" "$EDM" start
    EDM_LOCAL_MEMORY=48M program 80
    said 0 "evicted" "$EDM" evict "$PROGRAM" 1
    kill -STOP "$PROGRAM"
    pause 0.3
    said 125 "stopped" "$EDM" evict "$PROGRAM"
    said 0 "" "$EDM" fetch "$PROGRAM"
    (($(ps -o rss= -p "$PROGRAM") >= 80 * 1024)) || fail "fetch left pages away: $(ps -o rss= -p "$PROGRAM") KiB"
    kill -CONT "$PROGRAM"
    ended
    LD_PRELOAD=$EDM_SHIM python3 -c 'import time; x = bytearray(b"x") * (80 << 20); time.sleep(100)' &
    PROGRAM=$!
    until_true 20 eval "((\$(stat_of $PROGRAM .resident_bytes || echo 0) > 80 << 20))" || fail "no instance"
    said 0 "evicted" "$EDM" evict "$PROGRAM" # it sleeps: nothing stays, not even in limbo
    (($(stat_of "$PROGRAM" .limbo_bytes) == 0 && $(stat_of "$PROGRAM" .resident_bytes) < 1 << 20)) ||
        fail "after evict: $(stat_of "$PROGRAM" '[.limbo_bytes, .resident_bytes]')"
    ended
    until_true 20 "$EDM" stop >"$CASE_TMP/stop.out" 2>&1 || fail "edm stop: $(<"$CASE_TMP/stop.out")"
}

# Budgets that are shares: of the program's cgroup, and together never more than there is.
shares_fit() {
    local limit total=0 n memory a b
    memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) * 1024))
    said 0 "serves" "$EDM" start
    if [[ -n ${CASE_CG:-} ]]; then
        cg_limit "$CASE_CG/prog" $((200 * MIB)) || fail "no cgroup"
        for n in 1 2; do
            (EDM_ATTACH_THRESHOLD=0 LD_PRELOAD=$EDM_SHIM cg_exec "$CASE_CG/prog" sleep 100) &
        done
        until_true 20 eval '[[ $("$EDM" stat --json | jq ".instances | length") == 2 ]]' ||
            fail "no two instances"
        limit=$("$EDM" stat --json | jq '[.instances[].local_memory_bytes] | add')
        ((limit <= 180 * MIB && limit > 100 * MIB)) || fail "$limit bytes local in a cgroup of 200 MiB"
        kill $(jobs -p)
        wait
    fi
    for n in 1 2 3; do
        EDM_ATTACH_THRESHOLD=0 LD_PRELOAD=$EDM_SHIM sleep 100 &
    done
    until_true 20 eval '[[ $("$EDM" stat --json | jq ".instances | length") == 3 ]]' || fail "no instances"
    a=$("$EDM" stat --json | jq '[.instances[].local_memory_bytes] | add')
    said 0 "" "$EDM" resize "$(jobs -p | head -1)" $((memory / 2))
    b=$("$EDM" stat --json | jq '[.instances[].local_memory_bytes] | add')
    ((a <= memory / 10 * 9 && b <= memory / 10 * 9)) || fail "$a, $b bytes local of $memory"
    kill $(jobs -p)
    wait
    until_true 20 "$EDM" stop >"$CASE_TMP/stop.out" 2>&1 || fail "edm stop: $(<"$CASE_TMP/stop.out")"
}

files_of_others_stay
server_of_a_program_is_kept
odd_callers
no_address_space
hung_server
stopped_program
shares_fit
