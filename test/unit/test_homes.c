/* Ranks are known again in a job that numbers them differently. */
#include "dms/homes.h"
#include "dms/peer.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- in place of peer.c ---- */

static uint64_t identities[PEER_RANKS_MAX];
static int ranks;

int peer_rank(void)
{
    return 0;
}

int peer_ranks(void)
{
    return ranks;
}

void peer_get_info(int rank, struct peer_info *out)
{
    *out = (struct peer_info){.identity = identities[rank]};
}

/* ---- */

static void job(int n, const uint64_t *who)
{
    ranks = n;
    memcpy(identities, who, (size_t)n * sizeof(*who));
}

/* What a process remembers of ranks goes with it: each job of a test has one of its own. */
static void in_a_process(void (*fn)(int fd), int fd)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        fn(fd);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void must(bool ok)
{
    if (!ok)
        _exit(1);
}

static void second_job(int fd)
{
    job(3, (const uint64_t[]){0, 30, 10}); /* 20 is not there; 30 is new */
    must(homes_open(fd) == 0);
    for (uint32_t h = 1; h <= 2; h++)
        homes_use(h);
    homes_join();
    must(homes_rank(1) == 2 && homes_rank(2) == -1);
    must(homes_of(2) == 1 && homes_of(1) == 3 && homes_rank(3) == 1);
}

/* Home 2 is named by nothing any more, 3 is. */
static void third_job(int fd)
{
    job(2, (const uint64_t[]){0, 20});
    must(homes_open(fd) == 0);
    homes_use(3);
    homes_join();
    must(homes_rank(3) == -1 && homes_rank(1) == -1);
    must(homes_rank(homes_of(1)) == 1);
}

static void first_job(int fd)
{
    job(3, (const uint64_t[]){0, 10, 20});
    must(homes_open(fd) == 0 && homes_rank(1) == -1);
    homes_join();
    must(homes_of(1) == 1 && homes_of(2) == 2 && homes_rank(2) == 2);
}

static void ranks_keep_their_homes(void **state)
{
    assert_int_equal(homes_open(-1), 0);
    uint64_t self = homes_identity();
    assert_int_not_equal(self, 0);
    in_a_process(first_job, homes_fd());
    in_a_process(second_job, homes_fd());
    in_a_process(third_job, homes_fd());
    assert_int_equal(homes_identity(), self);
}

static void nobody_else(int fd)
{
    job(4, (const uint64_t[]){0, 10, 10, 0});
    must(homes_open(fd) == 0);
    identities[3] = homes_identity();
    homes_join();
    must(homes_of(1) != 0 && homes_of(2) == 0 && homes_of(3) == 0);
    must(homes_rank(homes_of(1)) == 1);
}

static void an_identity_is_one_ranks(void **state)
{
    in_a_process(nobody_else, -1);
}

static void many_ranks(int fd)
{
    uint64_t who[PEER_RANKS_MAX];
    for (int r = 0; r < PEER_RANKS_MAX; r++)
        who[r] = 1000 + (uint64_t)r;
    job(PEER_RANKS_MAX, who);
    must(homes_open(fd) == 0);
    homes_join();
    for (int r = 1; r < PEER_RANKS_MAX; r++)
        must(homes_rank(homes_of(r)) == r);
}

static void a_large_job_has_homes(void **state)
{
    in_a_process(many_ranks, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_identity_is_one_ranks),
        cmocka_unit_test(a_large_job_has_homes),
        cmocka_unit_test(ranks_keep_their_homes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
