/*
 * Rule 9: a program whose parent exits right after the fork, as daemon() does, with evictions
 * under way: the child has every page. Two generations, one by daemon() itself.
 */
#include "../lib/edmtest.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN (4 * EDMTEST_MIB)
#define ROUNDS 5

/* A process of its own: fills, has its memory evicted, becomes a daemon, tells what it found. */
static void daemon_process(int out, uint64_t seed)
{
    char *p = edmtest_map(LEN);
    char verdict = 'y';

    edmtest_fill(p, LEN, seed);
    EXPECT_CALL(madvise(p, LEN, MADV_PAGEOUT));
    EXPECT_CALL(daemon(1, 1));
    if (edmtest_check(p, LEN, seed) >= 0)
        verdict = 'n';
    EXPECT_CALL(madvise(p, LEN, MADV_PAGEOUT));
    EXPECT_CALL(daemon(1, 1));
    if (edmtest_check(p, LEN, seed) >= 0)
        verdict = 'm';
    edmtest_fill(p, LEN, seed + 1);
    if (edmtest_check(p, LEN, seed + 1) >= 0)
        verdict = 'w';
    _exit(write(out, &verdict, 1) == 1 ? 0 : 1);
}

int main(void)
{
    struct edmtest_counters before, after;

    edmtest_begin("kernel_09_daemon", 90);
    edmtest_pressure();
    before = edmtest_now();
    for (uint64_t round = 0; round < ROUNDS; round++) {
        int fds[2];
        char verdict;
        pid_t pid;

        EXPECT_CALL(pipe(fds));
        EXPECT_CALL(pid = fork());
        if (pid == 0) {
            close(fds[0]);
            daemon_process(fds[1], round * 10);
        }
        close(fds[1]);
        edmtest_reap(pid, "parent of the daemon");
        EXPECT(read(fds[0], &verdict, 1) == 1, "the daemon died");
        EXPECT(verdict == 'y', "the daemon lost bytes (%c)", verdict);
        close(fds[0]);
    }
    after = edmtest_now();
    EXPECT(edmtest_native() || after.forks >= before.forks + ROUNDS, "no fork events");
    edmtest_pressure_check();
    edmtest_ok();
}
