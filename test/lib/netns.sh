# Hosts on this machine: each a network namespace (a link to a common switch), with a host name, a
# /run, a /dev/shm and an /etc/hosts of its own. The switch is in a namespace, too: nothing of this
# machine's network is touched or shared. No namespace has a name in the file system: each lives
# as long as its first process, which ends when the script does, however that dies, and takes
# along what runs in it.
#
#   hosts_up N [RATE]        h1 ... hN, at 10.77.0.1 ...; RATE as tc writes it (100mbit)
#   host_run H COMMAND...    runs it on that host
#   link_down H, link_up H   cuts a host off; what it sends and is sent meanwhile is lost
#   host_shape H RATE DELAY  what leaves and reaches H; DELAY ("0": none) needs a kernel with netem
#   host_pids H              every process on it
#   host_kill H              the host is gone, with all that it ran
#   hosts_down               all of them are
#
# EDM_TEST_LAUNCHER is exported: EDM's ssh between these hosts.

need ip tc nsenter unshare

declare -A HOST_PID=()
HOSTS_DIR=
SWITCH_PID=

# The first process of a host: when the script is not its parent any more, ends what is left here
host_init() {
    local dir=$1 name=$2 script=$3 parent=$3
    trap '' HUP INT TERM
    hostname "$name"
    mount -t tmpfs -o mode=755 tmpfs /run && mount -t tmpfs tmpfs /dev/shm &&
        mount --bind "$dir/hosts" /etc/hosts && ip link set lo up || exit 1
    echo ready >"$dir/$name.ready"
    while [[ $parent == "$script" ]]; do
        pause 0.2
        read -r _ _ _ parent _ <"/proc/$BASHPID/stat"
    done
    net_kill "$BASHPID"
    [[ $name != switch ]] || rm -rf "$dir"
}

# net_pids PID: sets PIDS to the processes in PID's network namespace, without PID and those that ask
net_pids() {
    local ns found p parent
    PIDS=()
    ns=$(readlink "/proc/$1/ns/net") && [[ $ns != "$(readlink /proc/1/ns/net)" ]] || return 0
    mapfile -t found < <(exec find /proc/[0-9]*/ns/net -maxdepth 0 -lname "net:?${ns//[!0-9]/}?" 2>/dev/null)
    for p in "${found[@]}"; do
        p=${p#/proc/} && p=${p%%/*}
        # A name may have blanks; what matters is behind its bracket
        { read -r parent <"/proc/$p/stat"; } 2>/dev/null || continue
        read -r _ parent _ <<<"${parent##*) }"
        ((p == $1 || p == $$ || parent == $$)) || PIDS+=("$p")
    done
}

# Ends them, also those that start others meanwhile
net_kill() {
    for _ in {1..50}; do
        net_pids "$1"
        ((${#PIDS[@]})) || return 0
        kill -KILL "${PIDS[@]}" 2>/dev/null
        pause 0.02
    done
}

# new_net NAME: sets NET_PID to the first process of a new host
new_net() {
    local lib script=$BASHPID
    lib=$(declare -f host_init net_kill net_pids pause)
    unshare --net --mount --uts --propagation private bash -c "$lib; host_init \"\$@\"" \
        "edm-host-$1" "$HOSTS_DIR" "$1" "$script" </dev/null >>"$HOSTS_DIR/log" 2>&1 &
    NET_PID=$!
    until_true 10 test -e "$HOSTS_DIR/$1.ready" || fail "no host $1: $(tail -3 "$HOSTS_DIR/log")"
}

# A cable between the switch and host number I
plug() {
    local name=$1 i=$2
    nsenter -n -t "$SWITCH_PID" ip link add "p$i" type veth peer name eth0 netns "${HOST_PID[$name]}" &&
        nsenter -n -t "$SWITCH_PID" ip link set "p$i" master bridge0 up &&
        host_run "$name" ip address add "10.77.0.$i/24" dev eth0 && host_run "$name" ip link set eth0 up
}

hosts_up() {
    local i
    HOSTS_DIR=$(mktemp -d "${CASE_TMP:-/tmp}/hosts.XXXXXX") || fail "no folder for the hosts"
    trap hosts_down EXIT
    { echo "127.0.0.1 localhost" && for ((i = 1; i <= $1; i++)); do echo "10.77.0.$i h$i"; done; } >"$HOSTS_DIR/hosts"
    new_net switch
    SWITCH_PID=$NET_PID
    nsenter -n -t "$SWITCH_PID" sh -c 'ip link add name bridge0 type bridge && ip link set bridge0 up' ||
        skip "this kernel makes no bridges"
    for ((i = 1; i <= $1; i++)); do
        new_net "h$i"
        HOST_PID[h$i]=$NET_PID
        plug "h$i" "$i" || fail "cannot connect h$i"
        [[ -z ${2:-} ]] || host_shape "h$i" "$2" 0
    done
    hosts_launcher_write
}

# Instead of ssh: options, host, line of shell. A host that cannot be reached over the network cannot
# be reached by this either: a closed port answers, a cut link does not.
hosts_launcher_write() {
    local h
    {
        echo '#!/bin/bash'
        echo 'while [[ ${1:-} == -* ]]; do case $1 in -[xnT]) shift ;; *) shift 2 ;; esac; done'
        echo 'host=$1 && shift'
        echo 'case $host in'
        for h in "${!HOST_PID[@]}"; do
            echo "$h) pid=${HOST_PID[$h]} ip=10.77.0.${h#h} ;;"
        done
        echo '*) echo "ssh: Could not resolve hostname $host" >&2; exit 255 ;;'
        echo 'esac'
        echo 'for _ in 1 2 3; do # a link that has just come back takes a moment'
        echo '    said=$(LC_ALL=C timeout 1 bash -c "exec 3<>/dev/tcp/$ip/22" 2>&1)'
        echo '    [[ $said == *refused* ]] && break || sleep 0.2'
        echo 'done'
        echo 'if [[ $said != *refused* || ! -d /proc/$pid ]]; then'
        echo '    echo "ssh: connect to host $host port 22: Connection timed out" >&2; exit 255'
        echo 'fi'
        echo 'exec nsenter -n -m -u -t "$pid" sh -c "$*"'
    } >"$HOSTS_DIR/ssh"
    chmod 755 "$HOSTS_DIR/ssh"
    export EDM_TEST_LAUNCHER=$HOSTS_DIR/ssh
}

host_run() {
    local pid=${HOST_PID[$1]:?no such host}
    shift
    nsenter -n -m -u -t "$pid" -- "$@"
}

host_pids() {
    net_pids "${HOST_PID[$1]}"
    echo "${PIDS[@]}"
}

link_down() {
    nsenter -n -t "$SWITCH_PID" ip link set "p${1#h}" down
}

link_up() {
    nsenter -n -t "$SWITCH_PID" ip link set "p${1#h}" up
}

has_netem() {
    local dev=p${1#h}
    nsenter -n -t "$SWITCH_PID" tc qdisc add dev "$dev" root netem delay 1ms 2>/dev/null &&
        nsenter -n -t "$SWITCH_PID" tc qdisc del dev "$dev" root
}

# shape COMMAND... DEVICE RATE DELAY: one direction
shape() {
    local net=$1 dev=$2 rate=$3 delay=$4
    nsenter -n -t "$net" tc qdisc del dev "$dev" root 2>/dev/null
    nsenter -n -t "$net" tc qdisc add dev "$dev" root handle 1: tbf rate "$rate" burst 128k latency 100ms &&
        { [[ $delay == 0 ]] || nsenter -n -t "$net" tc qdisc add dev "$dev" parent 1: netem delay "$delay"; }
}

host_shape() {
    local delay=${3:-0}
    [[ $delay == 0 ]] || has_netem "$1" || skip "this kernel delays no packets (netem)"
    shape "$SWITCH_PID" "p${1#h}" "$2" "$delay" && shape "${HOST_PID[$1]}" eth0 "$2" "$delay" ||
        skip "this kernel shapes no traffic (tbf)"
}

host_kill() {
    local pid=${HOST_PID[$1]}
    net_kill "$pid"
    kill -KILL "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
    unset "HOST_PID[$1]"
}

hosts_down() {
    local h
    trap - EXIT
    for h in "${!HOST_PID[@]}"; do
        host_kill "$h"
    done
    if [[ -n $SWITCH_PID ]]; then
        kill -KILL "$SWITCH_PID" 2>/dev/null
        wait "$SWITCH_PID" 2>/dev/null
        SWITCH_PID=
    fi
    [[ -z $HOSTS_DIR ]] || rm -rf "$HOSTS_DIR"
    HOSTS_DIR=
}
