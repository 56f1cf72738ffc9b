#!/bin/bash
# late.sh CYCLES: all that one rank sends is late by seconds, again and again: it is stopped for 3 s,
# then runs until the program on the other host has gone round once. (Not every kernel can delay
# packets.) That program has every byte right, and the late rank is not taken for dead.
source "$(dirname "$0")/hosts.sh"
cycles=$1
hosts_up 2
job_start 2
walker_start h1 -o placement=remote
walker_goes_on h1
late=$(rank_pid h2)
trap 'kill -CONT "$late" 2>/dev/null; hosts_down' EXIT
for ((i = 0; i < cycles; i++)); do
    kill -STOP "$late"
    pause 1
    stat_is_quick h1
    held=$(walker_rounds h1)
    pause 2
    [[ $(walker_rounds h1) == "$held" ]] || fail "the program does not need the rank that is late"
    kill -CONT "$late"
    until_true 20 walker_is_past h1 "$held" || fail "the program hangs: $(tail -qn 1 walker.h1 walker.h1.err)"
done
walker_goes_on h1
all_are_alive h1 h2
walkers_end
stop_job
expect_clean h1 h2
hosts_down
echo "note: $cycles times, edm stat took at most $SLOWEST ms"
