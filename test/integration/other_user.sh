#!/bin/bash
# Who may use a server by its server_group has a say about their own programs, not about those of
# others, and not about the server.
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
source "$TEST_ROOT/test/lib/server.sh"
(($(id -u) == 0)) || skip "only root can be two users"
need perl setpriv

# ask TYPE [PID]: as somebody else; the code of the answer
ask() {
    setpriv --reuid 65534 "${GROUPS_OF[@]}" perl -MSocket -e '
        my ($path, $type, $pid) = @ARGV;
        my $body = defined $pid ? pack("QQlL", 1 << 20, 0, $pid, 0) : "";
        socket(my $s, AF_UNIX, SOCK_SEQPACKET, 0) or die "socket: $!";
        connect($s, sockaddr_un($path)) or die "connect: $!";
        send($s, pack("VVVV", 0x314d4445, 2, $type, length $body) . $body, 0);
        defined recv($s, my $answer, 65536, 0) or die "recv: $!";
        print unpack("x16 l", $answer), "\n"' "$CASE_TMP/dms.sock" "$@" 2>&1
}

# expect WHAT CODE TYPE [PID]
expect() {
    local what=$1 code=$2 got
    shift 2
    got=$(ask "$@")
    [[ $got == "$code" ]] || fail "$what: the answer is $got, not $code"
}

is_there() {
    server_answers && jq -e ".instances[] | select(.pid == $program)" "$CASE_TMP/stat.json" >/dev/null
}

GROUPS_OF=(--regid 65534 --clear-groups)
CASE_TMP=$(mktemp -d /tmp/edm-other-user-XXXXXX)
trap 'rm -rf "$CASE_TMP"' EXIT
chmod 755 "$CASE_TMP"
server_start server_group=nogroup memory_store=64M disk_store=0
EDM_ATTACH_THRESHOLD=0 LD_PRELOAD=$EDM_SHIM sleep 100 &
program=$!
until_true 20 is_there || fail "no instance: $(<"$CASE_TMP/stat.json")"
expect ping 0 7
expect resize -1 11 "$program"
expect evict -1 12 "$program"
expect fetch -1 13 "$program"
expect stop -1 10
expect handover -1 16
expect stay -1 18
GROUPS_OF=(--regid 1 --groups 65534) # a member by the process's own list
expect "ping by a supplementary group" 0 7
is_there || fail "the server or the instance is gone"
kill "$program"
wait "$program" 2>/dev/null
server_expect_idle
expect "stop of an idle server" -1 10
server_stop

# ---- a server of a user that is not root, for a group: only who names the group gives it memory

mkdir "$CASE_TMP/own" "$CASE_TMP/disk2"
chown 65534:60 "$CASE_TMP/own" "$CASE_TMP/disk2"
chmod 750 "$CASE_TMP/own"
cp "$EDM_DMS" "$EDM_SHIM" "$CASE_TMP/"
# as whoever may follow forks and use userfaultfd: a device of its own, in a mount namespace of its own
mknod "$CASE_TMP/userfaultfd" c $((0x$(stat -c %t /dev/userfaultfd))) $((0x$(stat -c %T /dev/userfaultfd)))
chmod 666 "$CASE_TMP/userfaultfd"
unshare -m sh -c 'mount --bind "$1/userfaultfd" /dev/userfaultfd && shift && exec "$@"' - "$CASE_TMP" \
    setpriv --reuid 65534 --regid 60 --clear-groups --inh-caps +sys_ptrace --ambient-caps +sys_ptrace \
    "$CASE_TMP/edm-dms" --socket "$CASE_TMP/own/dms.sock" -o server_group=games -o memory_store=64M \
    -o disk_store=0 -o "disk_path=$CASE_TMP/disk2" >"$CASE_TMP/own.log" 2>&1 &
server=$!
until_true 20 test -S "$CASE_TMP/own/dms.sock" || fail "no server: $(<"$CASE_TMP/own.log")"

# member VARIABLE...: a program of another member of the group; its output and status
member() {
    setpriv --reuid 33 --regid 33 --groups 60 env -u EDM_SERVER_GROUP EDM_SERVER=require EDM_ATTACH_THRESHOLD=0 \
        EDM_SOCKET="$CASE_TMP/own/dms.sock" "$@" LD_PRELOAD="$CASE_TMP/libedm_preload.so" \
        /usr/bin/python3 -c 'x = bytearray(b"x") * (40 << 20); print(len(x), x.count(b"x"))' 2>&1
}

out=$(member EDM_SERVER_GROUP=games EDM_LOCAL_MEMORY=16M)
[[ $? == 0 && $out == "41943040 41943040" ]] || fail "a member is not served: $out; $(<"$CASE_TMP/own.log")"
out=$(member EDM_LOCAL_MEMORY=16M)
[[ $? == 125 && $out == *"another user"*server_group* ]] || fail "who names no group gives it memory: $out"
ln -s "$CASE_TMP/own/dms.sock" "$CASE_TMP/link.sock"
out=$(member EDM_SERVER_GROUP=games EDM_SOCKET="$CASE_TMP/link.sock")
[[ $? == 125 && $out == *"another user"* ]] || fail "a link is followed: $out"
kill "$server"
wait "$server"
