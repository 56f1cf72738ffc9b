#!/bin/bash
# hostile.sh WHAT: an instance that does what no shim does harms itself only: the server answers,
# serves others, forgets it when it ends, and ends itself when it is told to.
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
source "$TEST_ROOT/test/lib/server.sh"
what=$1

# hostile_start: begins it and waits until it has done its worst; what it said is in $said
hostile_start() {
    : >"$CASE_TMP/said"
    "$EDM_BUILD/test/integration/hostile" "$what" >"$CASE_TMP/said" 2>&1 &
    HOSTILE_PID=$!
    until_true 60 hostile_is_ready || fail "it does not come to it: $(<"$CASE_TMP/said")"
    said=$(<"$CASE_TMP/said")
    [[ $said == *ready ]] || fail "it ended: $said"
}

hostile_is_ready() {
    grep -q '^ready' "$CASE_TMP/said" || ! kill -0 "$HOSTILE_PID" 2>/dev/null
}

hostile_end() {
    kill -KILL "$HOSTILE_PID"
    wait "$HOSTILE_PID" 2>/dev/null
}

others_are_served() {
    timeout 20 "$EDM" stat --json >"$CASE_TMP/stat.json" || fail "edm stat: status $?"
    EDM_ATTACH_THRESHOLD=0 timeout 30 "$EDM" run -m 8M -- \
        "$EDM_BUILD/test/programs/attach_once" 0 || fail "another program: status $?"
}

# threads of the server
threads() {
    ls "/proc/$SERVER_PID/task" | wc -l
}

descriptors() {
    ls "/proc/$SERVER_PID/fd" | wc -l
}

# memory of the server in KiB; tables of instances and stores are shared memory
memory() {
    awk -v kinds="^Rss($1):" '$0 ~ kinds {n += $2} END {print n}' "/proc/$SERVER_PID/status"
}

few_descriptors() {
    ((after = $(descriptors), after < fds + 60))
}

server_has_ended() {
    ! kill -0 "$SERVER_PID" 2>/dev/null
}

# The keeper holds what the server could not give back until its instance ends.
lock_is_free() {
    flock --nonblock "$CASE_TMP/dms.sock.lock" true
}

server_start memory_store=64M disk_store=0
before=$(threads) fds=$(descriptors) kib=$(memory 'Anon|Shmem') anon=$(memory Anon)
hostile_start
others_are_served
case $what in
many_requests) (($(threads) < before + 30)) || fail "$(threads) threads, $before before" ;;
blocking_uffd) [[ $said == mended* ]] || fail "its userfaultfd stays unusable: $said" ;;
short_children) until_true 20 few_descriptors || fail "$after descriptors, $fds before" ;;
huge_advice)
    (($(memory 'Anon|Shmem') < kib + 150 * 1024)) || fail "$(memory 'Anon|Shmem') KiB, $kib before"
    ;;
many_signals) (($(memory Anon) < anon + 3072)) || fail "$(memory Anon) KiB, $anon before" ;;
many_hellos) (($(descriptors) < fds + 600)) || fail "$(descriptors) descriptors, $fds before" ;;
esac
if [[ $what == orphaned_commands ]]; then
    kill -TERM "$SERVER_PID"
    until_true 30 server_has_ended || fail "the server waits for it for ever"
    hostile_end
    until_true 20 lock_is_free || fail "the keeper stays"
    exit 0
fi
hostile_end
server_expect_idle
server_stop
