#!/bin/bash
# killed.sh KILLS SEED THREADS SERVER-OPTIONS RUN-OPTIONS: torture, whose server is killed KILLS
# times at random moments.
source "$(dirname "$0")/restart.sh"
kills=$1 SEED=$2 threads=$3
read -ra server <<<"$4"
read -ra RUN_OPTIONS <<<"$5"
RUN_OPTIONS+=(reconnect_timeout=30)
RANDOM=$SEED
seconds=$((kills * 3 + 4))
PROGRAM_LIMIT=$((seconds * 2 + 60))
echo "--seed $SEED"

supervisor_start "${server[@]}"
program_start "$EDM_BUILD/test/torture/torture" --seed "$SEED" --threads "$threads" --calls libc \
    --bytes $((BUDGET * 10)) --seconds "$seconds"
# took_over N: so many servers have taken over, of those killed (the last may take its time)
took_over() {
    (($(grep -c 'took over [1-9]' "$CASE_TMP/server.log") == $1))
}

until_true 20 server_logged attached || fail "the program does not attach: $(program_said)"
for ((i = 0; i < kills; i++)); do
    pause "$((1 + RANDOM % 2)).$((RANDOM % 10))$((RANDOM % 10))"
    until_true 20 took_over "$i" || fail "a server did not take over"
    program_runs || break
    server_kill
done
program_expect 0
((i == kills)) || fail "only $i kills in the program's time"
took_over "$kills" || fail "a server did not take over"
! grep 'without a budget' "$CASE_TMP/program.err" || fail "a forked child was given up"
restart_end
echo "note: $kills kills"
