# Which tests there are: a line each, NAME SECONDS COMMAND, the longest first.

LIB=$TEST_ROOT/test/lib
PROGRAMS=$TEST_ROOT/test/programs

# Unit tests of the shim's parts make their own threads and mappings, which TSan cannot follow.
SHIM_UNITS=' test_arena test_lpet test_ops '

unit_cases() {
    local f t
    for f in "$TEST_ROOT"/test/unit/test_*.c; do
        t=$(basename "$f" .c)
        echo "unit.${t#test_} 60 '$EDM_BUILD/test/unit/$t'"
        echo "asan.${t#test_} 120 env ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=halt_on_error=1" \
            "'$EDM_BUILD-asan/test/unit/$t'"
        [[ $SHIM_UNITS == *" $t "* ]] ||
            echo "tsan.${t#test_} 240 env TSAN_OPTIONS=halt_on_error=1 setarch -R '$EDM_BUILD-tsan/test/unit/$t'"
    done
}

integration_cases() {
    local f t
    echo "integration.bad_input 120 '$TEST_ROOT/test/integration/bad_input.sh' '$EDM_BUILD'"
    for f in "$TEST_ROOT"/test/integration/hooks_*.c; do
        [[ -e $f ]] || continue
        t=$(basename "$f" .c)
        echo "hooks.${t#hooks_}.native 60 '$EDM_BUILD/test/integration/$t'"
        echo "hooks.${t#hooks_} 60 '$LIB/unattached.sh' '$EDM_BUILD/test/integration/$t'"
    done
}

# Test programs of test/faults and test/kernel: small budget, own server
behaviour_cases() {
    local f t group
    for group in faults kernel; do
        for f in "$TEST_ROOT/test/$group"/*.c; do
            grep -q '^int main(' "$f" || continue # a helper of the others
            t=$(basename "$f" .c)
            echo "$group.${t#"$group"_} 90 '$LIB/managed.sh' 16 '$EDM_BUILD/test/$group/$t'"
        done
    done
}

# torture_case NAME SECONDS SEED OPTIONS SERVER-OPTIONS ARGUMENTS...
torture_case() {
    local name=$1 seconds=$2 seed=$3 opts=$4 server=$5
    shift 5
    echo "torture.$name $((seconds + 100)) env EDM_TEST_INSTANCES=200 EDM_TEST_OPTIONS='$opts'" \
        "EDM_TEST_SERVER_OPTIONS='$server' '$LIB/managed.sh' 16 '$EDM_BUILD/test/torture/torture' --seed $seed --seconds $seconds" \
        "--bytes 160M $*"
}

# torture_modes SECONDS: a line of standard input a mode: NAME OPTIONS SERVER-OPTIONS ARGUMENTS...
torture_modes() {
    local n=0 name rest
    while read -r name rest; do
        eval "torture_case $name $1 $((SEED + n)) $rest"
        n=$((n + 1))
    done
}

# Every way of eviction, calling, threading and storing meets every other often
torture_short() {
    torture_modes "$1" <<'MODES'
move1.libc evict_method=move '' --threads 1 --calls=libc
move8.libc evict_method=move '' --threads 8 --calls=libc
copy1.raw evict_method=copy '' --threads 1 --calls=raw
copy8.libc evict_method=copy '' --threads 8 --calls=libc
auto8.raw evict_method=auto 'memory_store=24M disk_store=2G' --threads 8 --calls=raw
auto1.raw lease=false 'memory_store=24M disk_store=2G compression=lz4' --threads 1 --calls=raw
MODES
}

# Libc's calls and raw ones on the same memory, and what the short run leaves out
torture_long() {
    torture_short "$1"
    torture_modes "$1" <<'MODES'
move8.mixed evict_method=move '' --threads 8 --calls=mixed
copy1.mixed evict_method=copy '' --threads 1 --calls=mixed
copy8.raw evict_method=copy '' --threads 8 --calls=raw
MODES
}

# program NAME SECONDS SCRIPT [ARGUMENT]
program_list() {
    cat <<LIST
redis 240 redis.sh
sort 240 sort.sh
xz 240 xz.sh
zstd 240 zstd.sh
sqlite 240 sqlite.sh
gcc 240 gcc.sh
shell 240 shell.sh
perl 240 perl.sh
python.dict 240 python.sh dict
python.bytes 240 python.sh bytes
python.fork 240 python.sh fork
python.subprocess 240 python.sh subprocess
python.numpy 240 python.sh numpy
mpi 240 mpi.sh
fill 120 fill.sh
LIST
}

program_cases() {
    local name limit script
    while read -r name limit script; do
        echo "programs.$name $limit '$PROGRAMS'/$script"
    done < <(program_list)
    # The same with the stores so small that pages go to the disk, compressed and not
    echo "programs.sqlite.disk 240 env EDM_TEST_SERVER_OPTIONS='memory_store=64M disk_store=4G'" \
        "'$PROGRAMS/sqlite.sh'"
    echo "programs.python.fork.disk 240 env EDM_TEST_OPTIONS=evict_method=copy" \
        "EDM_TEST_SERVER_OPTIONS='memory_store=64M disk_store=4G compression=none' '$PROGRAMS/python.sh' fork"
    echo "programs.stores_full 120 '$PROGRAMS/stores_full.sh'"
    echo "programs.limit_is_real 60 '$PROGRAMS/limit_is_real.sh'"
}

short_cases() {
    program_cases
    torture_short 10
    echo "attach_cycles 180 '$LIB/attach_cycles.sh' 1000"
    behaviour_cases
    integration_cases
    unit_cases
}

# Programs with every way of eviction, store and compression
matrix_cases() {
    local name limit script method store compression n=0
    local stores=(20% '64M disk_store=8G' '0 disk_store=8G')
    for compression in auto lz4 none; do
        for store in "${!stores[@]}"; do
            for method in move copy; do
                while read -r name limit script; do
                    echo "matrix.$name.$method.store$store.$compression $((limit * 4))" \
                        "env EDM_TEST_OPTIONS=evict_method=$method" \
                        "EDM_TEST_SERVER_OPTIONS='compression=$compression memory_store=${stores[store]}'" \
                        "'$PROGRAMS'/$script"
                done < <(program_list)
            done
        done
    done
}

long_cases() {
    local round
    matrix_cases
    while read -r name limit script; do
        echo "large.$name $((limit * 15)) env EDM_TEST_SCALE=4 '$PROGRAMS'/$script"
    done < <(program_list)
    for round in {1..6}; do
        SEED=$((SEED + 1000)) torture_long "${EDM_TEST_TORTURE_SECONDS:-600}" |
            sed "s/^torture\./torture.round$round./"
    done
    echo "attach_cycles.long 1800 '$LIB/attach_cycles.sh' 10000"
}
