#!/bin/bash
# From a fresh Debian 12 to a program that uses more memory than it is given, in one go:
# installs what is missing (as root or with sudo), builds, sorts some 300 MB of real text with all
# its memory and with 64 MB of it, and shows that the outcome is the same.
set -eu

cd "$(dirname "$0")/.."
build=${BUILD:-build}

say() { printf '\n== %s\n' "$*"; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "quickstart: root is needed for: $*: install sudo, or run this as root" >&2
        exit 1
    fi
}

packages="build-essential meson ninja-build pkg-config libjemalloc-dev libmpich-dev mpich
libconfig-dev liblz4-dev libxxhash-dev libjansson-dev libcmocka-dev liburing-dev"
missing=
for p in $packages; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' ||
        missing="$missing $p"
done
if [ -n "$missing" ]; then
    say "installing$missing"
    as_root apt-get update -qq
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
fi

say "building"
[ -f "$build/build.ninja" ] || meson setup "$build" >/dev/null
meson compile -C "$build" >/dev/null
edm=$build/dms/edm

say "can it run here?"
"$edm" check || echo "(WRONG lines must be mended; a user without the rights can run this as root)"

work=$(mktemp -d "${TMPDIR:-/var/tmp}/edm-quickstart-XXXXXX")
trap 'rm -rf "$work"' EXIT

say "collecting text"
# Text of the documentation that is installed, as often as it takes; lines get numbers so that the
# copies differ.
find /usr/share/doc /usr/share/common-licenses /usr/share/perl /usr/include -type f -size -1024k \
    -print0 2>/dev/null | xargs -0 cat 2>/dev/null | LC_ALL=C tr -cd '\n\t -~' |
    head -c 50000000 >"$work/once" || true
[ -s "$work/once" ] || { echo "quickstart: no text under /usr/share or /usr/include" >&2; exit 1; }
i=0
: >"$work/text"
while [ "$(stat -c %s "$work/text")" -lt 300000000 ]; do
    i=$((i + 1))
    sed "s/\$/ ~$i/" "$work/once" >>"$work/text"
done
printf '%s MB, %s lines\n' $(($(stat -c %s "$work/text") / 1000000)) "$(wc -l <"$work/text")"

export LC_ALL=C
sort_text() { "$@" sort -S 1G --parallel=1 -T "$work" "$work/text"; }

say "sort, all in memory"
time sort_text env | sha256sum | tee "$work/native"

# Every 5 seconds what the server says of the program
progress() {
    while sleep 5; do
        "$edm" stat 2>/dev/null | grep -E '^ *(PID|[0-9]+) .*(COMMAND|sort)' || true
    done
}

say "edm run -m 64M sort (it takes a minute or so)"
progress &
watcher=$!
trap 'kill "$watcher" 2>/dev/null; rm -rf "$work"' EXIT
time sort_text "$edm" run -m 64M --stats "$work/stats.json" -- | sha256sum | tee "$work/managed"
kill "$watcher"

say "what happened"
cmp "$work/native" "$work/managed" && echo "the two outcomes are identical"
counter() { grep -o "\"$1\": *[0-9]*" "$work/stats.json" | head -n 1 | tr -dc '0-9'; }
for c in local_memory_bytes resident_max_bytes stored_bytes new existing leases; do
    printf '%-20s %s\n' "$c" "$(counter "$c")"
done
printf '%-20s %s\n' "pages evicted" \
    "$(grep -o '"evictions": *{ *"pages": *[0-9]*' "$work/stats.json" | head -n 1 | tr -dc '0-9')"
