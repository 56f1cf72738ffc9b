#!/bin/bash
# A start that cannot work says which host or rank and why, and leaves nothing.
source "$(dirname "$0")/hosts.sh"
hosts_up 2

# refused WORD...: OUT has them, the status says so, and nothing runs anywhere
refused() {
    ((RC == 125)) || fail "status $RC, not 125: $OUT"
    expect_said "$@"
    expect_clean h1 h2
}

start() {
    on h1 start "${JOB_OPTIONS[@]}" "$@"
}

start --hosts h1,h9
refused h9 "cannot be reached"
start --hosts h1,h1
refused "named twice"
start --hosts 'h1,-oProxyCommand=x'
refused "no host name has"
start --hosts 'h1,-v'
refused "not the name of a host"
start --hosts h1,h2 -n 1
refused "-n 1"
link_down h2
start --hosts h1,h2
refused h2 "cannot be reached" "timed out"
on h1 check -o server=auto -o hosts=h1,h2
((RC == 1)) || fail "edm check: $RC: $OUT"
grep -q '^host h1 .* ok: .*this host' <<<"$OUT" && grep -q '^host h2 .* WRONG: .*timed out' <<<"$OUT" ||
    fail "edm check: $OUT"
link_up h2
on h1 check -o server=auto -o hosts=h1,h2
((RC == 0)) && grep -q '^host h2 .* ok: .*clock' <<<"$OUT" && grep -q '^MPI .* ok' <<<"$OUT" ||
    fail "edm check: $RC: $OUT"

fake=$CASE_TMP/fake && mkdir "$fake"
host_run h2 mount --bind "$fake" "$EDM_BUILD/dms"
start --hosts h1,h2
refused h2 "edm-dms is not there"
printf '#!/bin/sh\necho edm-dms 0.0.1\n' >"$fake/edm-dms" && chmod 755 "$fake/edm-dms"
start --hosts h1,h2
refused h2 "edm-dms 0.0.1" "install the same"
# The right version, and a rank that dies without a word
printf '#!/bin/sh\n[ "$1" != --version ] || { echo edm-dms %s; exit; }\nexit 3\n' \
    "$("$EDM" --version | cut -d' ' -f2)" >"$fake/edm-dms"
ln -s "$EDM_BUILD/dms/edm" "$fake/edm"
began=$SECONDS
EDM_TEST_START_SECONDS=10 start --hosts h1,h2
refused "rank 1 on h2" "after 10 s"
((SECONDS - began < 40)) || fail "that took $((SECONDS - began)) s"
# Interrupted while it waits for a rank that never comes up
sed -i 's/^exit 3/exec sleep 1000/' "$fake/edm-dms"
host_run h1 "$EDM" start "${JOB_OPTIONS[@]}" --hosts h1,h2 >three.out 2>&1 &
start=$!
rank_waits() {
    net_pids "${HOST_PID[h2]}" && ((${#PIDS[@]})) && ps -o args= -p "$(IFS=, && echo "${PIDS[*]}")" | grep -q '^sleep 1000'
}
until_true 20 rank_waits || fail "the fake rank does not run: $(cat three.out)"
kill -TERM "$(pgrep -P "$start" -x edm || echo "$start")"
wait "$start"
RC=$? OUT=$(cat three.out)
refused interrupted
host_run h2 umount "$EDM_BUILD/dms"

# One rank's own reason, from there
host_run h2 sh -c 'mkdir -p /run/edm && : >/run/disk'
start --hosts h1,h2
host_run h2 rm -f /run/disk
refused "rank 1 on h2" disk_path /run/disk

# Of two at the same time one starts, the other sees it
host_run h1 "$EDM" start --hosts h1,h2 "${JOB_OPTIONS[@]}" >one.out 2>&1 &
one=$!
start --hosts h1,h2
((RC == 0)) || fail "the second of two starts: $RC: $OUT"
wait "$one" || fail "the first of two starts: $?: $(cat one.out)"
[[ $(cat one.out && echo "$OUT") == *"2 ranks on 2 hosts"*"already runs"* ]] ||
    [[ $(echo "$OUT" && cat one.out) == *"2 ranks on 2 hosts"*"already runs"* ]] ||
    fail "two starts said: $(cat one.out) and $OUT"
stop_job
expect_clean h1 h2
hosts_down
