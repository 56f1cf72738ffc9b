/*
 * released SERVER-PID-FILE: the program ends its server by SIGTERM, which gives everything back.
 * All calls for which a server is asked go on by themselves then, and so does a forked child.
 */
#include "../lib/edmtest.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN (128 * EDMTEST_MIB) /* as large as what munmap asks the server for */

static void server_end(const char *path)
{
    int pid = 0;
    FILE *f = fopen(path, "re");

    EXPECT(f && fscanf(f, "%d", &pid) == 1 && pid > 1, "no pid in %s", path);
    fclose(f);
    EXPECT_CALL(kill(pid, SIGTERM));
    for (int i = 0; i < 2000 && kill(pid, 0) == 0; i++)
        usleep(10000);
    EXPECT(kill(pid, 0) < 0 && errno == ESRCH, "the server is still there");
}

static void calls_of_all_kinds(char *p)
{
    char *moved = mremap(p, LEN / 2, LEN, MREMAP_MAYMOVE);

    EXPECT(moved != MAP_FAILED, "mremap");
    edmtest_expect(moved, LEN / 2, 1, "moved");
    edmtest_expect_zero(moved + LEN / 2, LEN / 2, "grown");
    EXPECT_CALL(mlock(moved, EDMTEST_MIB));
    EXPECT_CALL(munlock(moved, EDMTEST_MIB));
    EXPECT_CALL(madvise(moved, LEN, MADV_WILLNEED));
    EXPECT_CALL(madvise(moved, LEN, MADV_COLD));
    EXPECT_CALL(madvise(moved, EDMTEST_MIB, MADV_DONTFORK));
    EXPECT_CALL(madvise(moved, EDMTEST_MIB, MADV_DOFORK));
    EXPECT_CALL(madvise(moved + LEN / 2, EDMTEST_MIB, MADV_DONTNEED));
    edmtest_expect(moved, LEN / 2, 1, "after advice");
    EXPECT_CALL(munmap(moved, LEN));
}

int main(int argc, char **argv)
{
    char *p, *q;
    pid_t pid;

    edmtest_begin("released", 60);
    EXPECT(argc == 2, "usage: released SERVER-PID-FILE");
    p = edmtest_map(LEN / 2);
    q = edmtest_map(EDMTEST_MIB);
    edmtest_fill(p, LEN / 2, 1);
    edmtest_fill(q, EDMTEST_MIB, 2);
    server_end(argv[1]);
    calls_of_all_kinds(p);
    pid = fork();
    EXPECT(pid >= 0, "no child");
    if (pid == 0) {
        edmtest_expect(q, EDMTEST_MIB, 2, "child");
        _exit(0);
    }
    edmtest_reap(pid, "child");
    edmtest_expect(q, EDMTEST_MIB, 2, "parent");
    edmtest_ok();
}
