/*
 * fork_reads libc|raw SERVER-PID-FILE: a forked child kills the server, which has its parent's
 * pages, and then reads them: it waits for the successor and never sees zeros. Each round the
 * pages are evicted at the fork, or on their way out.
 */
#include "../lib/edmtest.h"
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define LEN (4 * EDMTEST_MIB)
#define ROUNDS 4

/* Each server is killed once: its file goes, and that of the next is waited for. */
static void server_kill(const char *path)
{
    int pid = 0;

    for (int tries = 0; pid <= 1 && tries < 3000; tries++) {
        FILE *f = fopen(path, "re");

        if (!f || fscanf(f, "%d", &pid) != 1)
            usleep(10000);
        if (f)
            fclose(f);
    }
    EXPECT(pid > 1, "no pid in %s", path);
    unlink(path);
    kill(pid, SIGKILL);
}

static double seconds_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

__attribute__((noreturn)) static void child(char *p, uint64_t round, const char *path)
{
    double begin = seconds_now();

    server_kill(path);
    edmtest_expect(p, EDMTEST_PAGE, round, "child's first page");
    printf("first page after %.3f s\n", seconds_now() - begin);
    fflush(stdout);
    edmtest_expect(p, LEN, round, "child");
    edmtest_fill(p, LEN / 2, round + 1000);
    edmtest_expect(p, LEN / 2, round + 1000, "child's own");
    _exit(0);
}

int main(int argc, char **argv)
{
    bool raw = argc == 3 && strcmp(argv[1], "raw") == 0;
    char *p;

    edmtest_begin("fork_reads", 120);
    EXPECT(argc == 3, "usage: fork_reads libc|raw SERVER-PID-FILE");
    edmtest_pressure();
    p = edmtest_map(LEN);
    for (uint64_t round = 0; round < ROUNDS; round++) {
        edmtest_fill(p, LEN, round);
        if (round % 2)
            EXPECT_CALL(madvise(p, LEN, MADV_PAGEOUT));
        else
            edmtest_evict(p, LEN);
        fflush(stdout);
        long pid = raw ? edmtest_raw_fork() : fork();
        EXPECT(pid >= 0, "no child: %ld", pid);
        if (pid == 0)
            child(p, round, argv[2]);
        edmtest_fill(p + LEN / 2, LEN / 2, round + 2000);
        edmtest_reap((pid_t)pid, "child");
        edmtest_expect(p, LEN / 2, round, "parent");
        edmtest_expect(p + LEN / 2, LEN / 2, round + 2000, "parent's write");
    }
    edmtest_pressure_check();
    edmtest_ok();
}
