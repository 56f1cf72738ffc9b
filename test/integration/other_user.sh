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
