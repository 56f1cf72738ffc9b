# What test/run does before the tests: packages, builds, layout of the source.

PACKAGES="build-essential meson ninja-build pkg-config libjemalloc-dev libmpich-dev mpich
    libconfig-dev liblz4-dev libxxhash-dev libjansson-dev libcmocka-dev liburing-dev clang-format
    clang libclang-rt-14-dev gdb jq bc procps util-linux mount e2fsprogs iproute2 python3 python3-numpy redis-server redis-tools sqlite3 xz-utils zstd perl"

packages_install() {
    local p missing=()
    for p in $PACKAGES; do
        [[ $(dpkg-query -W -f '${Status}' "$p" 2>/dev/null) == "install ok installed" ]] || missing+=("$p")
    done
    ((${#missing[@]})) || return 0
    echo "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && without_services apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# Installing redis-server would start one; the tests bring their own.
without_services() {
    local policy=/usr/sbin/policy-rc.d rc
    if [[ -e $policy ]]; then
        "$@"
        return
    fi
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
    "$@"
    rc=$?
    rm -f "$policy"
    return "$rc"
}

# build_tree FOLDER TARGET MESON-OPTION...
build_tree() {
    local dir=$1 target=$2
    shift 2
    if [[ ! -e $dir/build.ninja ]]; then
        meson setup "$@" "$dir" "$TEST_ROOT" || return 1
    fi
    ninja -C "$dir" build.ninja || return 1 # an older tree does not know new targets yet
    # shellcheck disable=SC2086
    meson compile -C "$dir" $target || return 1
}

build_plain() {
    build_tree "$EDM_BUILD" ''
}

build_asan() {
    build_tree "$EDM_BUILD-asan" 'unit fuzz' -Db_sanitize=address,undefined -Db_lundef=false -Doptimization=1
}

# libFuzzer comes with clang
build_fuzz() {
    CC=clang build_tree "$EDM_BUILD-fuzz" fuzz -Db_sanitize=address,undefined -Db_lundef=false \
        -Doptimization=1 -Dc_args=-fsanitize=fuzzer-no-link
}

build_tsan() {
    build_tree "$EDM_BUILD-tsan" unit -Db_sanitize=thread -Db_lundef=false -Doptimization=1
}

no_warnings() {
    ! grep -n 'warning:' "$RESULTS"/build.*.log
}

source_format() {
    local files
    mapfile -d '' files < <(find "$TEST_ROOT"/{bench,config,dms,examples,preload,test} \
        -name '*.[ch]' -print0)
    clang-format --dry-run -Werror --style="file:$TEST_ROOT/.clang-format" "${files[@]}" 2>&1
}

STEPS="packages build.plain build.asan build.fuzz build.tsan build.warnings format"

step_command() {
    case $1 in
    packages) packages_install ;;
    build.plain) build_plain ;;
    build.asan) build_asan ;;
    build.fuzz) build_fuzz ;;
    build.tsan) build_tsan ;;
    build.warnings) no_warnings ;;
    format) source_format ;;
    esac
}

steps_list() {
    local s
    for s in $STEPS; do
        wanted "$s" && echo "$s"
    done
}

# A step that no chosen test needs is left out; a failed build ends the run.
step_is_needed() {
    case $1 in
    packages | build.plain) return 0 ;;
    build.asan) wanted "$1" || select_cases | grep -qE '^(asan|fuzz)\.' ;;
    build.fuzz) wanted "$1" || select_cases | grep -q '^fuzz\.' ;;
    build.tsan) wanted "$1" || select_cases | grep -q '^tsan\.' ;;
    *) [[ -z $LONG ]] && wanted "$1" ;;
    esac
}

steps_run() {
    local s start
    for s in $STEPS; do
        step_is_needed "$s" || continue
        start=$EPOCHREALTIME
        if (step_command "$s") >"$RESULTS/$s.log" 2>&1; then
            result ok "$s" "$(bc <<<"$EPOCHREALTIME - $start")"
        else
            result FAILED "$s" "$(bc <<<"$EPOCHREALTIME - $start")" "log $RESULTS/$s.log"
            tail -40 "$RESULTS/$s.log" | sed 's/^/    | /'
            [[ $s == format || $s == build.warnings ]] || return 1
        fi
    done
    return 0
}
