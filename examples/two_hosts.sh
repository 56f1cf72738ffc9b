#!/bin/bash
# A try-out of a server on several hosts, on one machine: two "hosts" (network namespaces joined by
# a switch, each with its own name, /run and /dev/shm), `edm start --hosts h1,h2` on the first, a
# program with little memory on each, one host cut off and joined again, and the end. Needs root;
# leaves nothing. With real hosts only the names are others, and ssh takes the place of a script.
set -eu

cd "$(dirname "$0")/.."
build=${BUILD:-build}
[ "$(id -u)" = 0 ] || { echo "two_hosts: network namespaces need root: sudo $0" >&2; exit 1; }
[ -x "$build/dms/edm" ] || { echo "two_hosts: build first: meson setup build && meson compile -C build" >&2; exit 1; }
work=$(mktemp -d "${TMPDIR:-/var/tmp}/edm-two-hosts-XXXXXX")
CASE_TMP=$work EDM_BUILD=$(realpath "$build")
set +eu
source test/lib/common.sh
source test/lib/netns.sh

say() { printf '\n== %s\n' "$*"; }
on() { printf '%s# %s\n' "$1" "edm ${*:2}" && host_run "$1" "$EDM" "${@:2}"; }

export EDM_SOCKET=/run/edm/dms.sock EDM_SERVER=require EDM_DISK_PATH=/run/disk EDM_MEMORY_STORE=256M

say "two hosts"
hosts_up 2
trap 'hosts_down; rm -rf "$work"' EXIT
for h in h1 h2; do
    printf '%s: %s\n' "$(host_run "$h" hostname)" "$(host_run "$h" hostname -I 2>/dev/null || echo up)"
done

say "can EDM run on both?"
on h1 check -o hosts=h1,h2 | grep -E '^(h1#|MPI|host)'

say "one server on both, started on the first"
on h1 start --hosts h1,h2 || exit 1

say "a program of 128 MB with 16 MB on each; the rest is kept by the other host"
for h in h1 h2; do
    on "$h" run -m 16M -o placement=remote --stats "$work/$h.json" -- "$EDM_BUILD/test/programs/fill" 128 1 || exit 1
    printf '%s pages left its memory\n' \
        "$(grep -o '"evictions":{"pages":[0-9]*' "$work/$h.json" | head -n 1 | tr -dc '0-9')"
done

say "and on the wire"
host_run h1 ip -s link show eth0 |
    awk '/[RT]X:/ { what = $1; getline; printf "h1 %s %d MB\n", what, $1 / 1000000 }'

say "the second host is cut off; the first goes on by itself"
link_down h2
on h1 run -m 16M -- "$EDM_BUILD/test/programs/fill" 64 1 || exit 1
link_up h2

say "the end"
on h1 stop
