#!/bin/bash
# outage.sh SECONDS: the link of the host that has a program's pages is cut for so long, which is less
# than request_timeout: the program waits, then goes on, and no rank was taken for dead.
source "$(dirname "$0")/hosts.sh"
seconds=$1
hosts_up 2
job_start 2 -o request_timeout=$((seconds * 2 + 20))
walker_start h1 -o placement=remote
walker_goes_on h1
(($(pages_on_others h1) > 4096)) || fail "only $(pages_on_others h1) pages are on h2"
link_down h2
pause 1.5 # what could be done without h2 is done
before=$(walker_rounds h1)
for ((i = 1; i < seconds; i++)); do
    stat_is_quick h1
    pause 1
done
[[ $(walker_rounds h1) == "$before" ]] || fail "the program went on without the pages on h2"
link_up h2
# TCP tries again after a pause as long as the outage, at worst
until_true $((seconds + 20)) walker_is_past h1 "$before" || fail "the program hangs: $(cat walker.h1.err)"
walker_goes_on h1
all_are_alive h1 h2
walkers_end
stop_job
expect_clean h1 h2
hosts_down
echo "note: after round $before; edm stat took at most $SLOWEST ms"
