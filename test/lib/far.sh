# With EDM_TEST_RANKS the programs' server has so many ranks, and their pages are on others than
# theirs: what server.sh has for one rank, for all.
source "$TEST_ROOT/test/lib/ranks.sh"
RUN_OPTIONS+=(placement=remote)

# Pages have one copy: on a busy machine no rank may be taken for dead too soon
server_start() {
    ranks_start "$EDM_TEST_RANKS" request_timeout=20 "$@"
    SERVER_PID=$(rank_stat 0 .server.pid)
}

server_expect_idle() {
    ranks_expect_idle $(seq 0 $((RANKS - 1)))
}

server_stop() {
    local left
    SERVER_PID=
    ranks_stop
    left=$(find "$CASE_TMP/disk" -type f | head -3)
    [[ -z $left ]] || fail "the server left files: $left"
}

# More pages than half of the budget were on other ranks at a time
expect_far() {
    local most
    most=$(jq .away_max "$CASE_TMP/sampler.json")
    ((most * 4096 > BUDGET / 2)) || fail "only $most pages were seen on other ranks"
    echo "up to $most pages on other ranks"
}
