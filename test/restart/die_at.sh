#!/bin/bash
# die_at.sh SEED POINT[:MOST]...: for each point at which the server can be told to kill itself
# (dms/die.h), a server that does so the Nth time, N at random up to MOST (default 1), while the
# torture program makes that point happen, and a successor that goes on. At points recover_* it is
# the successor of a killed server that dies, and a third that goes on.
source "$(dirname "$0")/restart.sh"
SEED=$1
RANDOM=$SEED
BUDGET=$((8 * MIB))
shift

# options_for POINT: sets SERVER, RUN_OPTIONS and TORTURE to what makes it happen
options_for() {
    SERVER=(memory_store=1G disk_store=0) RUN_OPTIONS=(reconnect_timeout=30)
    TORTURE=(--threads 1 --calls libc --bytes 48M --seconds 3)
    local calls=(libc raw)
    case $1 in
    remove_counted) RUN_OPTIONS+=(evict_method=copy) ;;
    remap_*) TORTURE=(--threads 1 --calls "${calls[RANDOM % 2]}" --bytes 48M --seconds 4
        --only map,write,read,pageout,fork,remap_move,remap_fixed,remap_dontunmap) ;;
    follow_put) TORTURE=(--threads 8 --calls raw --bytes 48M --seconds 4) ;;
    disk_placed) SERVER=(memory_store=8M disk_store=1G compression=none) ;;
    store_moved) SERVER=(memory_store=8M disk_store=1G compression=lz4) ;;
    esac
}

# die_once POINT N
die_once() {
    options_for "$1"
    rm -f "$CASE_TMP/server.log"
    case $1 in
    recover_* | reattach) printf '\n%s\n' "$1:$2" >"$CASE_TMP/dies" ;;
    *) echo "$1:$2" >"$CASE_TMP/dies" ;;
    esac
    supervisor_start "${SERVER[@]}"
    program_start "$EDM_BUILD/test/torture/torture" --seed "$SEED" "${TORTURE[@]}"
    if [[ $1 == recover_* || $1 == reattach ]]; then
        until_true 20 server_logged attached || fail "the program does not attach"
        pause "1.$((RANDOM % 10))"
        server_kill
    fi
    program_expect 0
    server_logged "EDM_TEST_DIE: ending at $1\$" || fail "$1:$2 never happened"
    # before that a server has nothing that could be taken over
    [[ $1 =~ ^(hello|welcome|uffd)$ ]] || server_logged 'took over' || fail "nobody took over"
    ! grep 'without a budget' "$CASE_TMP/program.err" || fail "a forked child was given up"
    restart_end
}

for p in "$@"; do
    most=1
    [[ $p != *:* ]] || most=${p#*:}
    n=$((RANDOM % most + 1))
    echo "${p%:*}:$n --seed $SEED"
    die_once "${p%:*}" "$n"
done
