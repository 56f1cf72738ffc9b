#!/bin/bash
# Everything wrong that can be typed is answered with one line that says what is wrong and what
# would be right, and with exit status 125; nothing wrong ever runs silently unmanaged.
# usage: bad_input.sh BUILD_DIR
set -u

build=${1:?usage: bad_input.sh BUILD_DIR}
build=$(cd "$build" && pwd) || exit 1
edm=$build/dms/edm
dms=$build/dms/edm-dms
shim=$build/preload/libedm_preload.so
for f in "$edm" "$dms" "$shim"; do
    [ -e "$f" ] || { echo "not ok bad_input: $f is not built"; exit 1; }
done

work=$(mktemp -d /tmp/edm-bad-input-XXXXXX)
chmod 755 "$work"
listener=
failed=0
finish() {
    [ -n "$listener" ] && kill "$listener" 2>/dev/null
    "$edm" stop -o socket="$work/dms.sock" >/dev/null 2>&1
    rm -rf "$work"
}
trap finish EXIT
export HOME=$work
export XDG_RUNTIME_DIR=$work
unset EDM_CONF EDM_DISABLE EDM_RUN_TOKEN
for v in $(compgen -e EDM_ || true); do
    case $v in EDM_TEST_*) ;; *) unset "$v" ;; esac
done

ok() { echo "ok $1"; }
not_ok() { echo "not ok $1: $2"; failed=1; }

# try COMMAND...: its output in $out, its errors in $err, its status in $rc
try() {
    timeout -k 5 60 "$@" >"$work/out" 2>"$work/err" </dev/null
    rc=$?
    out=$(cat "$work/out")
    err=$(cat "$work/err")
}

# expect NAME STATUS PATTERN...: the last try's, with every pattern in its one line of error
expect() {
    local name=$1 status=$2 pattern lines
    shift 2
    [ "$rc" = "$status" ] || { not_ok "$name" "exit status $rc, not $status: $err"; return; }
    lines=$(wc -l <"$work/err")
    [ "$lines" = 1 ] || { not_ok "$name" "$lines lines instead of one: $err"; return; }
    for pattern; do
        case $err in
        *"$pattern"*) ;;
        *) not_ok "$name" "\"$pattern\" is not in: $err"; return ;;
        esac
    done
    ok "$name"
}

# ---- settings, by every way in; the command must not run
conf=$work/wrong.conf
wrong_file() { # NAME LINE PATTERN...
    local name=$1
    printf '# first line\n%s\n' "$2" >"$conf"
    shift 2
    try "$edm" run -c "$conf" echo ran
    [ -z "$out" ] || not_ok "run_$name" "the command ran"
    expect "run_$name" 125 "edm: $conf:2: " "$@"
    try env EDM_CONF="$conf" LD_PRELOAD="$shim" /bin/echo ran
    [ -z "$out" ] || not_ok "preload_$name" "the program ran"
    expect "preload_$name" 125 "edm: $conf:2: " "$@"
    try "$dms" -c "$conf" -o socket="$work/dms.sock"
    expect "dms_$name" 125 "$conf:2: " "$@"
    try "$edm" config -c "$conf"
    expect "config_$name" 125 "edm: $conf:2: " "$@"
}
wrong_file unknown_key 'local_memry = "1G";' 'unknown key "local_memry"' "did you mean local_memory"
wrong_file wrong_type 'lease = "yes";' lease "wrong type" "true or false"
wrong_file wrong_list 'manage = "mmap";' manage "a list of malloc, mmap, bss"
wrong_file out_of_range 'cluster = 65;' cluster "from 1 to 64"
wrong_file watermarks 'low_watermark = 0.96;' low_watermark "is not below high_watermark 0.95"
wrong_file size 'local_memory = "12Q";' local_memory "is not a size" 512M
wrong_file choice 'compression = "zip";' compression "one of auto, lz4, none"
wrong_file syntax 'server = require;' "syntax error"

try env EDM_LOCAL_MEMORY=lots LD_PRELOAD="$shim" /bin/echo ran
expect preload_environment 125 "edm: EDM_LOCAL_MEMORY: local_memory" "is not a size"
[ -z "$out" ] || not_ok preload_environment "the program ran"
try env EDM_LOCAL_MEMRY=1G LD_PRELOAD="$shim" /bin/echo ran
expect preload_unknown_variable 125 "edm: EDM_LOCAL_MEMRY: unknown key" "did you mean local_memory"
try env EDM_LOCAL_MEMRY=1G EDM_DISABLE=1 LD_PRELOAD="$shim" /bin/echo ran
[ "$rc" = 0 ] && [ "$out" = ran ] && [ -z "$err" ] && ok disable_is_the_way_out ||
    not_ok disable_is_the_way_out "status $rc: $out $err"
try "$edm" run -o lease true
expect run_option_without_value 125 "edm: -o lease" KEY=VALUE
try "$edm" run -m 1.2.3 true
expect run_memory 125 "local_memory" "is not a size"
try "$edm" run -c "$work/nowhere.conf" true
expect run_no_file 125 "$work/nowhere.conf" "No such file"
try "$edm" run -c "$work" true
expect run_directory_as_file 125 "$work" "Is a directory"
try "$edm" start -o replicas=many -o socket="$work/dms.sock"
expect start_wrong_setting 125 "edm: -o: replicas" "from 1 to 3"
try "$edm" run -o socket=dms.sock true
expect run_relative_socket 125 "edm: -o: socket" "absolute path"
# The keeper's socket and those of several ranks have names that are longer still.
long=$work/$(printf '%0100d' 0)
try "$dms" -o socket="${long:0:101}"
expect dms_long_socket 125 "socket" "too long" "at most 100 characters"
try "$edm" start -o socket="${long:0:101}"
expect start_long_socket 125 "socket" "too long" "at most 100 characters"
try env LD_PRELOAD="$shim" EDM_SOCKET="${long:0:101}" true
expect shim_long_socket 125 "socket" "too long" "at most 100 characters"
try "$edm" start -n 2 -o socket="${long:0:98}"
expect start_long_rank_sockets 125 "socket" "too long for several ranks" "at most 95 characters"

# ---- the command line itself
try "$edm"; [ "$rc" = 125 ] && ok no_command || not_ok no_command "status $rc"
try "$edm" frob; expect unknown_command 125 'edm: unknown command "frob"' "edm --help"
try "$edm" run; expect run_nothing 125 "edm: run: no command to run" "usage"
try "$edm" run --frob true; expect run_unknown_option 125 "unknown option --frob"
try "$edm" run -m; expect run_missing_value 125 "-m needs a value"
try "$edm" run "$work/nowhere"; expect run_not_there 127 "edm: $work/nowhere: No such file"
try "$edm" run "$conf"; expect run_not_a_program 126 "edm: $conf: Permission denied"
try "$edm" run --stats "$work/no/where" true; expect run_stats_file 125 "$work/no/where"
try "$edm" start -n 0; expect start_no_ranks 125 "-n 0"
try "$edm" start -n x; expect start_ranks_not_a_number 125 "-n x"
try "$edm" stat x; expect stat_not_a_pid 125 '"x" is not a process id'
try "$edm" resize 1; expect resize_no_size 125 "SIZE is missing"
try "$edm" resize 1 4X; expect resize_wrong_size 125 '"4X" is not a size'
try "$edm" evict -1; expect evict_wrong_pid 125 "unknown option -1"
try "$edm" fetch 1 2; expect fetch_too_much 125 '"2" is too much'
for c in run start stop restart stat check config resize evict fetch; do
    try "$edm" $c --help
    case $rc:$out in "0:usage: edm $c"*) ok "help_$c" ;; *) not_ok "help_$c" "status $rc: $out" ;; esac
done

# ---- no server, wrong servers
sock=$work/dms.sock
try "$edm" stat -o socket="$sock"
expect stat_without_server 125 "no server runs at $sock" "edm start"
try "$edm" stop -o socket="$sock"
[ "$rc" = 0 ] && [[ $out == *"no server runs"* ]] && ok stop_without_server ||
    not_ok stop_without_server "status $rc: $out $err"
try env EDM_SERVER=require EDM_SOCKET="$sock" LD_PRELOAD="$shim" /bin/echo ran
expect preload_require_without_server 125 "$sock"
[ -z "$out" ] || not_ok preload_require_without_server "the program ran"

# listen UID ANSWER: a server at $sock of that user, that answers every packet so ("" = never)
listen() {
    rm -f "$sock" "$work/listener"
    : >"$work/listener"
    perl -MSocket -e '
        my ($path, $uid, $answer) = @ARGV;
        socket(my $s, AF_UNIX, SOCK_SEQPACKET, 0) or die "socket: $!";
        bind($s, sockaddr_un($path)) or die "bind: $!";
        chmod 0777, $path;
        $< = $> = $uid if $uid;
        listen($s, 8) or die "listen: $!";
        print "listening\n"; close STDOUT;
        while (accept(my $c, $s)) {
            my $p;
            while (defined recv($c, $p, 65536, 0) && length $p) {
                if ($answer eq "close") { last }
                if ($answer ne "") { send($c, $answer, 0) }
            }
            close $c;
        }' "$sock" "$1" "$2" >>"$work/listener" 2>&1 </dev/null &
    listener=$!
    until [ -s "$work/listener" ] || ! kill -0 "$listener" 2>/dev/null; do sleep 0.05; done
    grep -q listening "$work/listener" || {
        not_ok listen "$(cat "$work/listener")"
        hang_up
        return 1
    }
}
hang_up() { kill "$listener" 2>/dev/null; wait "$listener" 2>/dev/null; listener=; rm -f "$sock"; }

listen 0 "garbage" && { try "$edm" stat -o socket="$sock"
    expect stat_garbage 125 "another protocol"; hang_up; }
listen 0 "close" && { try "$edm" stat -o socket="$sock"
    expect stat_closed 125 "the server went away"; hang_up; }
listen 0 "" && { try "$edm" stat -o socket="$sock"
    expect stat_silence 125 "does not answer"; hang_up; }
: >"$sock"
try "$edm" stat -o socket="$sock"
expect stat_not_a_socket 125 "edm: "
rm -f "$sock"

if [ "$(id -u)" = 0 ]; then
    # the copy that another user may run, wherever the build is
    mkdir -p "$work/b/dms" "$work/b/preload"
    cp "$edm" "$dms" "$work/b/dms/" && cp "$shim" "$work/b/preload/"
    mkdir -m 777 "$work/nobody"
    as_nobody() { try env HOME="$work/nobody" XDG_RUNTIME_DIR="$work/nobody" \
        setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
    listen 65533 "" && {
        try "$edm" stat -o socket="$sock"
        expect stat_server_of_another_user 125 "belongs to another user (uid 65533)" socket
        try env EDM_SERVER=require EDM_SOCKET="$sock" LD_PRELOAD="$shim" /bin/echo ran
        expect preload_server_of_another_user 125 "$sock"
        [ -z "$out" ] || not_ok preload_server_of_another_user "the program ran"
        hang_up
    }
    if [ -w /dev/userfaultfd ] && ! setpriv --reuid 65534 --regid 65534 --clear-groups \
        test -w /dev/userfaultfd && [ "$(cat /proc/sys/vm/unprivileged_userfaultfd)" = 0 ]; then
        as_nobody "$work/b/dms/edm" start -o socket="$work/nobody/dms.sock"
        expect start_without_userfaultfd 125 userfaultfd
        as_nobody env EDM_ATTACH_THRESHOLD=0 EDM_SOCKET="$work/nobody/dms.sock" \
            LD_PRELOAD="$work/b/preload/libedm_preload.so" /bin/echo ran
        expect auto_without_userfaultfd 0 "edm"
        [ "$out" = ran ] || not_ok auto_without_userfaultfd "the program did not run unmanaged"
        as_nobody "$work/b/dms/edm" check -o socket="$work/nobody/dms.sock"
        [ "$rc" = 1 ] && [[ $out == *"userfaultfd"*"WRONG"*"/dev/userfaultfd"* ]] &&
            ok check_without_userfaultfd || not_ok check_without_userfaultfd "status $rc: $out"
    fi
fi

# ---- a running server and what it must not mind
try "$edm" start -o socket="$sock" -o memory_store=64M -o disk_store=0
if [ "$rc" = 0 ]; then
    ok start
    try "$edm" start -o socket="$sock"
    [ "$rc" = 0 ] && [[ $out == *"already runs"* ]] && ok start_again ||
        not_ok start_again "status $rc: $out $err"
    perl -MSocket -e '
        my @packets = ("", "x", "EDM1" x 4, pack("VVVV", 0x314d4445, 1, 8, 999),
            pack("VVVV", 0x314d4445, 99, 7, 0), pack("VVVV", 0x314d4445, 1, 4000000, 0),
            pack("VVVV", 0x314d4445, 1, 1, 0), pack("VVVV", 0x314d4445, 1, 1, 240) . "\xff" x 240,
            pack("VVVV", 0x314d4445, 1, 4, 32) . "\xff" x 32, "\xff" x 65536);
        for my $p (@packets) {
            socket(my $s, AF_UNIX, SOCK_SEQPACKET, 0) or die;
            connect($s, sockaddr_un($ARGV[0])) or die "connect: $!";
            send($s, $p, 0);
            send($s, $p, 0);
        }' "$sock" || not_ok garbage_to_server "the server stopped listening"
    try "$edm" stat --json -o socket="$sock"
    [ "$rc" = 0 ] && [[ $out == "{"*"}" ]] && ok garbage_to_server ||
        not_ok garbage_to_server "status $rc: $out $err"
    try "$edm" stat -o socket="$sock" $$
    expect stat_no_instance 125 "no such instance"
    try "$edm" resize -o socket="$sock" $$ 64M
    expect resize_no_instance 125 "no such instance"
    # STOP carries nothing: one with a payload is out of protocol, and must not stop it
    perl -MSocket -e '
        socket(my $s, AF_UNIX, SOCK_SEQPACKET, 0) or die;
        connect($s, sockaddr_un($ARGV[0])) or die "connect: $!";
        send($s, pack("VVVV", 0x314d4445, 1, 10, 3) . "abc", 0);
        recv($s, my $answer, 65536, 0)' "$sock"
    try "$edm" stat -o socket="$sock"
    [ "$rc" = 0 ] && ok malformed_stop || not_ok malformed_stop "status $rc: $err"
    try "$edm" stop -o socket="$sock"
    [ "$rc" = 0 ] && [ ! -e "$sock" ] && ok stop || not_ok stop "status $rc: $out $err"
else
    not_ok start "status $rc: $err"
fi
try "$edm" start -o socket="$sock" -o disk_path=/dev/null/x -o disk_store=64M
expect start_impossible_disk_path 125 /dev/null/x
try "$edm" start -o socket=/proc/edm/dms.sock
expect start_impossible_socket 125 /proc/edm
echo mine >"$work/file"
try "$edm" start -o socket="$work/file"
expect start_over_a_file 125 "$work/file" 'not a socket'
[ "$(cat "$work/file")" = mine ] && ok file_stays || not_ok file_stays "the file is gone"
try "$edm" start -o socket="$work"
expect start_over_a_folder 125 "$work" 'not a socket'
try "$edm" start -o socket="$sock" -o log_file=/nonexistent/log
expect start_impossible_log 125 /nonexistent/log

# ---- libconfig cuts numbers that need more than 32 bits

printf 'memory_store = 8589934592; disk_store=0x200000000;\nlocal_memory :\t4563402752;\n' >"$work/big.conf"
try "$edm" config -c "$work/big.conf"
[ "$rc" = 0 ] && [[ $out == *'memory_store = "8G"'*'disk_store = "8G"'* && $out == *'local_memory = "4352M"'* ]] &&
    ok big_numbers || not_ok big_numbers "status $rc: $out $err"
echo 'prefetch_max = 4294967297;' >"$work/big.conf"
try "$edm" config -c "$work/big.conf"
expect big_number_out_of_range 125 big.conf:1 prefetch_max 4294967297

# ---- nobody can take pages that may not stay here: one warning, and the program goes on

try "$edm" start -o socket="$sock" -o memory_store=64M -o disk_store=0 -o log_file="$work/alone.log"
[ "$rc" = 0 ] || not_ok alone "no server: $err"
try "$edm" run -o socket="$sock" -o server=require -m 16M -o placement=remote -- \
    /usr/bin/python3 -c 'x = bytearray(b"x") * (64 << 20); print(len(x))'
[ "$rc" = 0 ] && [ "$out" = 67108864 ] && [ "$(grep -c full "$work/alone.log")" = 1 ] && ok alone ||
    not_ok alone "status $rc: $out $err $(tail -2 "$work/alone.log")"
"$edm" stop -o socket="$sock" >/dev/null

exit $failed
