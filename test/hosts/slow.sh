#!/bin/bash
# slow.sh COPIES MIB: the links of the hosts fall to 10 Mbit/s, which a program's pages fill until so
# much was sent: it goes on all the time, with every byte right, and edm stat answers within 2 s on
# every host.
source "$(dirname "$0")/hosts.sh"
copies=$1 bytes=$(($2 * 1048576))

# bytes_sent H
bytes_sent() {
    host_run "$1" ip -s -j link show eth0 | jq '.[0].stats64.tx.bytes'
}

# pages_back: how many have come back to the program
pages_back() {
    rank_stat h1 '.instances[0] | .faults.existing + .prefetch.fetched'
}

# links RATE
links() {
    local h
    for h in "${!HOST_PID[@]}"; do
        host_shape "$h" "$1"
    done
}

hosts_up $((copies + 1))
job_start $((copies + 1))
walker_start h1 -o placement=remote -o "replicas=$copies"
links 10mbit
first=$(bytes_sent h1) back=$(pages_back) began=$SECONDS
until ((sent = $(bytes_sent h1) - first, sent > bytes)); do
    ((SECONDS - began < bytes / 250000 + 20)) || fail "only $sent bytes in $((SECONDS - began)) s: $(rank_stat h1 .)"
    for h in "${!HOST_PID[@]}"; do
        stat_is_quick "$h"
    done
    pause 0.2
done
took=$((SECONDS - began)) back=$(($(pages_back) - back))
((sent < (took + 2) * 1310720)) || fail "$sent bytes were sent in $took s: the link is not slow"
((back * 4096 > bytes / copies / 2)) || fail "only $back pages came back while $sent bytes were sent"
all_are_alive "${!HOST_PID[@]}"
links 1gbit
walker_goes_on h1
walkers_end
stop_job
expect_clean "${!HOST_PID[@]}"
hosts_down
echo "note: $((sent / 1048576)) MiB sent in $took s, $back pages came back, edm stat took at most $SLOWEST ms"
