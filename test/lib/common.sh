# What every script of the tests shares: where things are, how a test ends.
# A test is a process that exits 0 (passed), 77 (skipped, the last line says why) or anything else.
# Its environment: CASE_TMP (folder of its own), CASE_CG (memory cgroup of its own, may be empty).

set -u
export LC_ALL=C

TEST_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
EDM_BUILD=$(realpath -m "${EDM_TEST_BUILD:-${EDM_BUILD:-$TEST_ROOT/build}}")
export -n EDM_BUILD # is not a setting of EDM
EDM=$EDM_BUILD/dms/edm
EDM_DMS=$EDM_BUILD/dms/edm-dms
EDM_SHIM=$EDM_BUILD/preload/libedm_preload.so
MIB=1048576

exec {TEST_OUT}>&1 # also where a function's output goes elsewhere

fail() {
    echo "failed: $*" >&"$TEST_OUT"
    exit 1
}

skip() {
    echo "skipped: $*" >&"$TEST_OUT"
    exit 77
}

# need PROGRAM...: on this list because a package that test/run installs ships it
need() {
    local p
    for p in "$@"; do
        command -v "$p" >/dev/null || fail "$p is not there: run test/run once, it installs it"
    done
}

# until_true SECONDS COMMAND...: polls, without a process for the pause
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        pause 0.05
    done
}

# pause SECONDS, in the shell itself
pause() {
    if [[ -z ${PAUSE_FD:-} ]]; then
        exec {PAUSE_FD}<> <(:)
    fi
    read -r -t "$1" -u "$PAUSE_FD" || true
}
