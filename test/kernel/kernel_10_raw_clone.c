/* Rule 10: a child made by a raw clone, which no hook saw, finds its parent's evicted pages. */
#include "../lib/edmtest.h"
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN (2 * EDMTEST_MIB)
#define ROUNDS 20

static void child(char *p, uint64_t round, int depth)
{
    edmtest_expect(p, LEN, round, "raw child");
    edmtest_fill(p, LEN / 2, round + 1000);
    if (depth < 2) {
        long pid = edmtest_raw_fork();

        EXPECT(pid >= 0, "clone: %ld", pid);
        if (pid == 0) {
            edmtest_expect(p, LEN / 2, round + 1000, "raw grandchild");
            _exit(0);
        }
        edmtest_reap((pid_t)pid, "raw grandchild");
    }
    edmtest_expect(p, LEN / 2, round + 1000, "raw child's own");
    _exit(0);
}

int main(void)
{
    struct edmtest_counters before, after;
    char *p;

    edmtest_begin("kernel_10_raw_clone", 90);
    edmtest_pressure();
    p = edmtest_map(LEN);
    before = edmtest_now();
    for (uint64_t round = 0; round < ROUNDS; round++) {
        long pid;

        edmtest_fill(p, LEN, round);
        if (round % 2)
            edmtest_evict(p, LEN);
        else
            EXPECT_CALL(madvise(p, LEN, MADV_PAGEOUT)); /* still under way at the fork */
        pid = edmtest_raw_fork();
        EXPECT(pid >= 0, "clone: %ld", pid);
        if (pid == 0)
            child(p, round, 0);
        edmtest_fill(p + LEN / 2, LEN / 2, round + 2000);
        edmtest_reap((pid_t)pid, "raw child");
        edmtest_expect(p, LEN / 2, round, "parent");
        edmtest_expect(p + LEN / 2, LEN / 2, round + 2000, "parent's write");
    }
    after = edmtest_now();
    EXPECT(edmtest_native() || after.forks >= before.forks + ROUNDS, "%lu fork events",
           after.forks - before.forks);
    edmtest_pressure_check();
    edmtest_ok();
}
