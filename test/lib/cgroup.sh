# Memory cgroups, version 1 or 2. A case has CASE_CG with the leaf "main" (test script, server) and
# the leaf "prog" (the program, limited). Who is in them is also how leftovers are found.

# The folder below which this run makes its cgroups.
cg_base() {
    local own
    if [[ -d /sys/fs/cgroup/memory ]]; then
        own=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)
        [[ -d /sys/fs/cgroup/memory$own ]] || own=
        echo "/sys/fs/cgroup/memory${own%/}"
    else
        echo /sys/fs/cgroup
    fi
}

cg_is_v1() {
    [[ -d /sys/fs/cgroup/memory ]]
}

# cg_delegate FOLDER: memory is counted in the groups below it (version 2)
cg_delegate() {
    echo +memory >"${1%/*}/cgroup.subtree_control"
    echo +memory >"$1/cgroup.subtree_control"
}

# cg_make FOLDER: with the leaves main and prog
cg_make() {
    mkdir "$1" || return 1
    cg_is_v1 || cg_delegate "$1" || return 1
    mkdir "$1/main" "$1/prog"
}

# cg_limit FOLDER BYTES: memory, and no swap
cg_limit() {
    if cg_is_v1; then
        [[ -w $1/memory.memsw.limit_in_bytes ]] && echo -1 >"$1/memory.memsw.limit_in_bytes"
        echo "$2" >"$1/memory.limit_in_bytes" || return 1
        echo 0 >"$1/memory.swappiness"
        [[ ! -w $1/memory.memsw.limit_in_bytes ]] || echo "$2" >"$1/memory.memsw.limit_in_bytes"
    else
        echo "$2" >"$1/memory.max" || return 1
        [[ ! -w $1/memory.swap.max ]] || echo 0 >"$1/memory.swap.max"
    fi
}

# How often the kernel killed for want of memory in this cgroup.
cg_oom_kills() {
    if cg_is_v1; then
        sed -n 's/^oom_kill //p' "$1/memory.oom_control"
    else
        sed -n 's/^oom_kill //p' "$1/memory.events"
    fi
}

cg_pids() {
    cat "$1/cgroup.procs" "$1"/*/cgroup.procs 2>/dev/null
}

cg_is_empty() {
    [[ -z $(cg_pids "$1") ]]
}

# Ends what is left in the cgroup, by pid, and removes it.
cg_remove() {
    local pid
    [[ -d $1 ]] || return 0
    for pid in $(cg_pids "$1"); do
        kill -KILL "$pid" 2>/dev/null
    done
    until_true 10 cg_is_empty "$1"
    rmdir "$1"/*/ 2>/dev/null
    until_true 5 rmdir "$1" 2>/dev/null
}

# cg_exec LEAF COMMAND...: replaces the shell (use in a subshell)
cg_exec() {
    echo "$BASHPID" >"$1/cgroup.procs" || exit 125
    shift
    exec "$@"
}
