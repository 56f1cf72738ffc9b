/* Rule 10: a child made by a raw clone kills its parent, evictions of which are under way: it finds
 * every page, or is told by SIGBUS that one is gone; never zeros. */
#include "../lib/edmtest.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define LEN (2 * EDMTEST_MIB)
#define ROUNDS 40

static void parent_process(char *p, uint64_t seed, useconds_t under_way)
{
    long pid;

    edmtest_fill(p, LEN, seed);
    EXPECT_CALL(madvise(p, LEN, MADV_PAGEOUT));
    usleep(under_way);
    pid = edmtest_raw_fork();
    EXPECT(pid >= 0, "clone: %ld", pid);
    if (pid == 0) {
        EXPECT_CALL(kill(getppid(), SIGKILL));
        edmtest_expect(p, LEN, seed, "orphan of a raw clone");
        _exit(0);
    }
    pause();
}

/* Both end, the child later; it is ours then. */
static void reap_both(void)
{
    for (int i = 0; i < 2; i++) {
        int status;

        EXPECT_CALL(wait(&status));
        EXPECT(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL || WTERMSIG(status) == SIGBUS
                                   : WEXITSTATUS(status) == 0,
               "ended with status %x", status);
    }
}

int main(void)
{
    char *p;

    edmtest_begin("kernel_10_raw_clone_orphan", 90);
    edmtest_pressure();
    EXPECT_CALL(prctl(PR_SET_CHILD_SUBREAPER, 1));
    p = edmtest_map(LEN);
    for (uint64_t round = 0; round < ROUNDS; round++) {
        pid_t pid = fork();

        EXPECT_CALL(pid);
        if (pid == 0)
            parent_process(p, round * 10, round % 10 * 100);
        reap_both();
    }
    edmtest_pressure_check();
    edmtest_ok();
}
