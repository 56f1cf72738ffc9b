/* Rule 23: the parent is stopped with evictions under way; its child still gets every page. */
#include "../lib/edmtest.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define LEN (2 * EDMTEST_MIB)
#define ROUNDS 20

/* The one that is stopped by its own child, and let go when that has seen all. */
static void parent_process(char *p, uint64_t seed)
{
    pid_t pid;

    edmtest_fill(p, LEN, seed);
    EXPECT_CALL(madvise(p, LEN, MADV_PAGEOUT));
    EXPECT_CALL(pid = fork());
    if (pid == 0) {
        pid_t parent = getppid();

        EXPECT_CALL(kill(parent, SIGSTOP));
        edmtest_expect(p, LEN, seed, "child of a stopped process");
        edmtest_fill(p, LEN, seed + 1);
        edmtest_expect(p, LEN, seed + 1, "child's own");
        EXPECT_CALL(kill(parent, SIGCONT));
        _exit(0);
    }
    EXPECT_CALL(madvise(p, LEN, MADV_PAGEOUT));
    edmtest_reap(pid, "child of a stopped process");
    edmtest_expect(p, LEN, seed, "the stopped process");
    _exit(0);
}

int main(void)
{
    char *p;

    edmtest_begin("kernel_23_stopped_parent", 90);
    edmtest_pressure();
    p = edmtest_map(LEN);
    for (uint64_t round = 0; round < ROUNDS; round++) {
        pid_t pid = fork();

        EXPECT_CALL(pid);
        if (pid == 0)
            parent_process(p, round * 10);
        edmtest_reap(pid, "stopped process");
    }
    edmtest_pressure_check();
    edmtest_ok();
}
