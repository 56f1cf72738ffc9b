# Which tests there are: a line each, NAME SECONDS COMMAND, the longest first.

LIB=$TEST_ROOT/test/lib
PROGRAMS=$TEST_ROOT/test/programs
RESTART=$TEST_ROOT/test/restart

# TSan cannot follow the threads and mappings that tests of the shim's parts make; job has one thread
# and many forks.
NOT_TSAN=' test_arena test_lpet test_ops test_job '

unit_cases() {
    local f t
    for f in "$TEST_ROOT"/test/unit/test_*.c; do
        t=$(basename "$f" .c)
        echo "unit.${t#test_} 60 '$EDM_BUILD/test/unit/$t'"
        echo "asan.${t#test_} 240 env ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=halt_on_error=1" \
            "'$EDM_BUILD-asan/test/unit/$t'"
        [[ $NOT_TSAN == *" $t "* ]] ||
            echo "tsan.${t#test_} 240 env TSAN_OPTIONS=halt_on_error=1 setarch -R '$EDM_BUILD-tsan/test/unit/$t'"
    done
}

integration_cases() {
    local f t
    echo "integration.bad_input 120 '$TEST_ROOT/test/integration/bad_input.sh' '$EDM_BUILD'"
    for t in $(grep -o '{"[a-z_]*", do_' "$TEST_ROOT/test/integration/hostile.c" | cut -d '"' -f 2); do
        echo "integration.hostile.$t 120 '$TEST_ROOT/test/integration/hostile.sh' $t"
    done
    echo "integration.commands 120 '$TEST_ROOT/test/integration/commands.sh'"
    echo "integration.other_user 60 '$TEST_ROOT/test/integration/other_user.sh'"
    for f in "$TEST_ROOT"/test/integration/hooks_*.c; do
        [[ -e $f ]] || continue
        t=$(basename "$f" .c)
        echo "hooks.${t#hooks_}.native 60 '$EDM_BUILD/test/integration/$t'"
        echo "hooks.${t#hooks_} 60 '$LIB/unattached.sh' '$EDM_BUILD/test/integration/$t'"
    done
}

# Test programs of test/faults and test/kernel: small budget, own server
behaviour_cases() {
    local f t group options
    for group in faults kernel; do
        for f in "$TEST_ROOT/test/$group"/*.c; do
            grep -q '^int main(' "$f" || continue # a helper of the others
            t=$(basename "$f" .c) options=
            [[ $t != bss ]] || options='EDM_TEST_OPTIONS=manage=malloc,mmap,bss'
            echo "$group.${t#"$group"_} 90 env $options '$LIB/managed.sh' 16 '$EDM_BUILD/test/$group/$t'"
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
    echo "programs.python.bytes.disk 240 env EDM_TEST_SERVER_OPTIONS='memory_store=64M disk_store=4G'" \
        "'$PROGRAMS/python.sh' bytes"
    echo "programs.python.fork.disk 240 env EDM_TEST_OPTIONS=evict_method=copy" \
        "EDM_TEST_SERVER_OPTIONS='memory_store=64M disk_store=4G compression=none' '$PROGRAMS/python.sh' fork"
    echo "programs.stores_full 120 '$PROGRAMS/stores_full.sh'"
    echo "programs.limit_is_real 60 '$PROGRAMS/limit_is_real.sh'"
}

# Programs whose pages are on another rank than their own
remote_cases() {
    local name limit script
    while read -r name limit script; do
        echo "remote.$name $((limit * 8)) env EDM_TEST_RANKS=2 '$PROGRAMS'/$script"
    done < <(program_list)
}

# The disk store's file system is full, fails, or gives other bits than it was given
disk_cases() {
    local what copies dir="'$TEST_ROOT/test/disk"
    for what in ext4 ext2 tmpfs; do
        echo "disk.full.$what 60 $dir/full.sh' $what"
    done
    for what in down cut; do
        echo "disk.eio.$what 90 $dir/eio.sh' $what"
    done
    for what in memory disk; do
        for copies in one remote local; do
            echo "disk.flip.$what.$copies 90 $dir/flip.sh' $what $copies"
        done
    done
}

# The server is replaced under a program; restart_cases ROUNDS
restart_cases() {
    local what script="'$TEST_ROOT/test/ranks/restart.sh'"
    for what in live local remote all; do
        echo "ranks.restart.$what.one_copy $(($1 * 15 + 100)) $script 2 placement=remote $what $1"
        echo "ranks.restart.$what.two_copies $(($1 * 15 + 100)) $script 3 'placement=remote replicas=2' $what $1"
    done
    echo "ranks.restart.twice $(($1 * 25 + 100)) $script 2 placement=remote twice $1"
    for what in gone all_gone; do
        echo "ranks.restart.$what $(($1 * 15 + 100)) $script 3 'placement=remote replicas=2' $what $1"
    done
    echo "ranks.restart.spread $(($1 * 15 + 100)) $script 3 placement=spread all $1"
    echo "ranks.restart.near_and_far $(($1 * 15 + 100)) $script 2 replicas=2 all $1"
}

# Several ranks on this host
ranks_cases() {
    local torture="'$EDM_BUILD/test/torture/torture' --seed $SEED --seconds 8 --bytes 160M"
    local paging="'$TEST_ROOT/test/ranks/paging.sh'"
    echo "ranks.remote.two 100 $paging 2 placement=remote $torture --threads 8"
    echo "ranks.remote.three 100 $paging 3 placement=remote $torture --threads 1 --calls=raw"
    echo "ranks.spread 100 $paging 3 placement=spread $torture --threads 8"
    echo "ranks.replicas.local 100 $paging 3 replicas=2 $torture --threads 8"
    echo "ranks.replicas.remote 100 $paging 3 'placement=remote replicas=2' $torture --threads 8"
    echo "ranks.remote.disk 100 env EDM_TEST_SERVER_OPTIONS='memory_store=16M disk_store=1G'" \
        "$paging 3 placement=remote $torture --threads 8"
    echo "ranks.repair 100 '$TEST_ROOT/test/ranks/repair.sh'"
    restart_cases 2 | grep -E '\.(remote\.two_copies|all\.two_copies|twice|gone|spread) '
    echo "ranks.restart.resize 120 '$TEST_ROOT/test/ranks/resize.sh'"
    echo "ranks.leaves 100 '$TEST_ROOT/test/ranks/leaves.sh'"
    echo "ranks.fork_reads.libc 100 '$TEST_ROOT/test/ranks/fork_reads.sh' libc"
    echo "ranks.fork_reads.raw 100 '$TEST_ROOT/test/ranks/fork_reads.sh' raw"
    echo "ranks.stale 100 '$TEST_ROOT/test/ranks/stale.sh'"
    echo "ranks.lost.one_copy 100 '$TEST_ROOT/test/ranks/lost_rank.sh' 1 KILL"
    echo "ranks.lost.two_copies 100 '$TEST_ROOT/test/ranks/lost_rank.sh' 2 KILL"
    echo "ranks.silent.one_copy 100 '$TEST_ROOT/test/ranks/lost_rank.sh' 1 STOP"
    echo "ranks.silent.two_copies 100 '$TEST_ROOT/test/ranks/lost_rank.sh' 2 STOP"
}

# Servers of several ranks, on hosts that are network namespaces
hosts_cases() {
    local n what
    echo "hosts.bad_start 300 '$TEST_ROOT/test/hosts/bad_start.sh'"
    for what in rank local mpiexec link host; do
        echo "hosts.lost.$what 200 '$TEST_ROOT/test/hosts/losses.sh' $what"
    done
    for n in 1 2 3; do
        echo "hosts.start_stop.$n 200 '$TEST_ROOT/test/hosts/start_stop.sh' $n $((n + 1))"
    done
}

# Hosts whose network or disk is bad
hosts_bad_cases() {
    local dir="'$TEST_ROOT/test/hosts"
    echo "hosts.outage.5 100 $dir/outage.sh' 5"
    echo "hosts.slow.one_copy 150 $dir/slow.sh' 1 8"
    echo "hosts.late 100 $dir/late.sh' 2"
    echo "hosts.bad_disk 100 $dir/bad_disk.sh'"
}

hosts_bad_long() {
    local dir="'$TEST_ROOT/test/hosts"
    echo "hosts.outage.40 250 $dir/outage.sh' 40"
    echo "hosts.slow.two_copies 400 $dir/slow.sh' 2 100"
    echo "hosts.late.long 300 $dir/late.sh' 20"
}

# Ranks on two hosts are killed and replaced; hosts_restart ROUNDS
hosts_restart() {
    local what program
    for what in local all turns; do
        for program in walkers torture redis; do
            echo "hosts.restart.$what.$program $(($1 * 60 + 100))" \
                "env SEED=$SEED '$TEST_ROOT/test/hosts/restart.sh' $what $program $1"
        done
    done
}

# restart_die NAME SECONDS POINT[:MOST]...: every EACHth of the points, others with another seed
restart_die() {
    local name=$1 seconds=$2 i some=()
    shift 2
    for ((i = 1; i <= $#; i++)); do
        (((i + SEED) % EACH)) || some+=("${!i}")
    done
    ((!${#some[@]})) || echo "restart.die$DIE_NAME.$name $seconds '$RESTART/die_at.sh' $SEED ${some[*]}"
}

# restart_killed KILLS: programs whose server is killed so many times at random moments
restart_killed() {
    local limit=$(($1 * 12 + 120)) run="'$RESTART/killed.sh' $1 $SEED"
    echo "restart.killed.torture1 $limit $run 1 'memory_store=1G disk_store=0' evict_method=move"
    echo "restart.killed.torture8 $limit $run 8 'memory_store=1G disk_store=0' evict_method=move"
    echo "restart.killed.copy $limit $run 1 'memory_store=1G disk_store=0' evict_method=copy"
    echo "restart.killed.disk $limit $run 8 'memory_store=24M disk_store=2G compression=lz4' ''"
    echo "restart.killed.redis $(($1 * 20 + 150)) '$RESTART/redis.sh' $1 $SEED"
}

# The ways in which a server can be lost
restart_lost() {
    local scene
    for scene in twice stopped program_stopped keeper both nobody nobody_child nobody_raw wait \
        other_settings counters term term_kill restart fork_libc fork_raw moved released auto; do
        echo "restart.lost.$scene 90 '$RESTART/lost.sh' $scene"
    done
    echo "restart.lost.term_killed_late 90 '$RESTART/lost.sh' term_kill released"
}

# The server dies at a point at which it was told to, and another goes on: restart_die_cases EACH
restart_die_cases() {
    local EACH=$1 DIE_NAME=$( (($1 > 1)) || echo .all)
    restart_die events 200 events_read:200 event_begin:100 event_end:100 remove_page:500 \
        remove_counted:3 unmap_page:100 forget:200
    restart_die remap 120 remap_before:50 remap_copied:50 remap_both:50 remap_moved:50 \
        remap_register:5
    restart_die attach 120 hello welcome uffd attached ready
    restart_die fork 200 fork_begin:2 fork_table:2 fork_saved:2 fork_published:2 follow_put:3 \
        claim claim_welcome claim_uffd claimed claim_ready
    restart_die faults 200 zero_placed:50 limbo_placed:50 stored_placed:500 disk_placed:50 \
        lease_open:2 lease_taken:2 lease_break:2 op:20
    restart_die evict 300 command_tracked:50 command_written:50 command_posted:50 \
        complete_begin:50 limbo_named:500 complete_page:500 complete_seen:50 complete_over:50 \
        drain_dropped:50 drain_put:50 drain_handle:500 store_written:500 store_moved:500
    restart_die recover 250 reattach recover_opened recover_store recover_loaded recover_settled \
        recover_caught recover_resumed recover_unsaid recover_said recover_told
}

# fuzz_cases [SECONDS]: every target over its corpus, then over what libFuzzer makes of it: the same
# inputs every time, or for so long others each time
fuzz_cases() {
    local run="'$TEST_ROOT/test/fuzz/run.sh'" target runs
    while read -r target runs; do
        echo "fuzz.$target $((${1:-0} + 150)) $run $target $([[ -z ${1:-} ]] && echo "$runs" || echo "$1 $SEED")"
    done <<'TARGETS'
config 20000
channel 1500
ranks 1000
socket 2000
TARGETS
}

short_cases() {
    program_cases
    ranks_cases
    hosts_cases
    disk_cases | grep -v 'flip\.\(memory\.remote\|disk\.one\|disk\.local\) '
    hosts_bad_cases
    hosts_restart 2 | grep '\.turns\.torture '
    remote_cases | grep -E '\.python\.(fork|bytes) '
    restart_die_cases 3
    restart_killed 2
    restart_lost
    torture_short 10
    echo "attach_cycles 180 '$LIB/attach_cycles.sh' 1000"
    behaviour_cases
    integration_cases
    fuzz_cases
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
    restart_die_cases 1
    restart_killed 20
    matrix_cases
    while read -r name limit script; do
        echo "large.$name $((limit * 15)) env EDM_TEST_SCALE=4 '$PROGRAMS'/$script"
    done < <(program_list)
    for round in {1..6}; do
        SEED=$((SEED + 1000)) torture_long "${EDM_TEST_TORTURE_SECONDS:-300}" |
            sed "s/^torture\./torture.round$round./"
    done
    fuzz_cases "${EDM_TEST_FUZZ_SECONDS:-300}"
    remote_cases
    disk_cases
    restart_cases 20 | sed 's/^ranks\./ranks.long./'
    hosts_restart 20 | sed 's/^hosts\./hosts.long./'
    hosts_bad_long
    echo "programs.hundred 260 '$PROGRAMS/hundred.sh'"
    echo "attach_cycles.long 1800 '$LIB/attach_cycles.sh' 10000"
}
