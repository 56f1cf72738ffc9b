#!/bin/bash
# start_stop.sh HOSTS RANKS: the server starts on so many hosts, every rank serves a program, idle
# ranks cost nothing, and nothing is left.
source "$(dirname "$0")/hosts.sh"
n=$1 ranks=$2
hosts_up "$n"
if ((n > 1)); then
    job_start "$n" -n "$ranks"
else
    on h1 start -n "$ranks" "${JOB_OPTIONS[@]}" # no host is named: all here, without ssh
fi
((RC == 0)) || fail "edm start: $OUT"
(($(wc -l <<<"$OUT") == 1)) || fail "without a terminal there should be one line: $OUT"
expect_said "$ranks ranks on $n host"

# Rank r is on host r % n, at the socket that its turn there gives
for ((r = 0; r < ranks; r++)); do
    h=h$((r % n + 1)) k=$((r / n))
    got=$(rank_stat "$h" '"\(.server.rank) of \(.server.ranks)"' "$EDM_SOCKET$( ((k)) && echo ".$k")")
    [[ $got == "$r of $ranks" ]] || fail "rank $r is not on $h: $got"
done

# cpu_ns: of all ranks, all threads
cpu_ns() {
    local h p sum=0 ns
    for h in "${!HOST_PID[@]}"; do
        for p in $(host_pids "$h"); do
            for p in /proc/"$p"/task/*/schedstat; do
                { read -r ns _ <"$p"; } 2>/dev/null && sum=$((sum + ns))
            done
        done
    done
    echo "$sum"
}
sleep 1
before=$(cpu_ns)
((before > 1000000)) || fail "starting took only $before ns of processor time: this is no measure"
sleep 5
used=$(($(cpu_ns) - before))
((used <= 5000000 * ranks)) || fail "idle, $ranks ranks took $((used / 1000)) us of processor time in 5 s"

on h1 start --hosts "$(host_list "$n")"
((RC == 0)) || fail "starting again: $RC: $OUT"
expect_said "already runs"
# Each program's pages are on other hosts, where there are any
for ((i = 1; i <= n; i++)); do
    walker_start "h$i" -o placement="$( ((n > 1)) && echo remote || echo local)"
done
for ((i = 1; i <= n; i++)); do
    walker_goes_on "h$i"
    ((n == 1 || $(pages_on_others "h$i") > 4096)) ||
        fail "of h$i only $(pages_on_others "h$i") pages are on other hosts: $(rank_stat "h$i" .server.peers)"
done
on h1 stop
((RC == 125)) || fail "it stopped under running programs: $RC: $OUT"
expect_said "still running"
for ((i = 1; i <= n; i++)); do
    walker_goes_on "h$i" # also no other host's rank has gone
done
walkers_end
if ((n > 1)); then
    on h2 stop
    ((RC == 125)) || fail "edm stop on a host that did not start it: $RC: $OUT"
    expect_said "another host"
fi
on h1 restart "${JOB_OPTIONS[@]}"
((RC == 0)) || fail "edm restart: $RC: $OUT"
expect_said "$ranks ranks on $n host"
stop_job
expect_clean "${!HOST_PID[@]}"
on h1 stop
((RC == 0)) || fail "stopping what does not run: $RC: $OUT"
expect_said "no server runs"
hosts_down
echo "note: idle, $((used / 1000)) us of processor time in 5 s by $ranks ranks"
