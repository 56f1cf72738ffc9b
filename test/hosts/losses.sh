#!/bin/bash
# losses.sh rank|local|mpiexec|link|host: one part of a server on three hosts is lost; ranks of the
# other hosts go on serving their programs, and edm stop still ends all that can be reached.
source "$(dirname "$0")/hosts.sh"
hosts_up 3
job_start 3
walker_start h2
lost=
case $1 in
rank)
    walker_start h1
    lost=h3
    host_run h3 kill -KILL "$(rank_pid h3)"
    ;;
local) # rank 0, on the host that all was started from
    walker_start h3
    lost=h1
    host_run h1 kill -KILL "$(rank_pid h1)"
    ;;
mpiexec)
    walker_start h1
    walker_start h3
    pid=$(host_run h1 sed -n 's/^mpiexec \([0-9]*\) .*/\1/p' "$EDM_SOCKET.job")
    [[ $(tr '\0' ' ' <"/proc/$pid/cmdline") == mpiexec* ]] || fail "process $pid is not mpiexec"
    kill -KILL "$pid"
    ;;
link)
    walker_start h1
    walker_start h3 # its rank is on its own host
    link_down h3
    ;;
host)
    walker_start h1
    lost=h3
    host_kill h3
    ;;
esac

sleep 6 # whatever wants to take along others has had its time
for h in h1 h2 h3; do
    [[ $h == "$lost" ]] && continue
    [[ $(rank_stat "$h" .server.ranks) == 3 ]] || fail "the rank on $h does not answer any more"
    [[ ! -e walker.$h ]] || walker_goes_on "$h"
done
if [[ $lost == h1 ]]; then
    on h1 start --hosts h1,h2,h3 "${JOB_OPTIONS[@]}"
    expect_said "edm stop"
fi
walkers_end

start=$SECONDS
on h1 stop
((SECONDS - start < 60)) || fail "edm stop took $((SECONDS - start)) s"
case $1 in
link | host)
    ((RC == 125)) || fail "edm stop does not say that a host is gone: $RC: $OUT"
    expect_said "h3 does not answer"
    expect_clean h1 h2
    ;;
*) ((RC == 0)) || fail "edm stop: $RC: $OUT" ;;
esac
if [[ $1 == link ]]; then
    link_up h3
    on h3 stop --here
    ((RC == 0)) || fail "edm stop --here: $RC: $OUT"
fi
expect_clean "${!HOST_PID[@]}"
hosts_down
