/*
 * Copy on write after fork, in the parent and in the child, for pages that are resident at the
 * fork, evicted before it, and evicted after it on either side.
 */
#include "../lib/edmtest.h"
#include <unistd.h>

#define PAGES 128ul
#define LEN (PAGES * EDMTEST_PAGE)

enum { EVICT_BEFORE = 1, EVICT_IN_PARENT = 2, EVICT_IN_CHILD = 4, CHILD_WRITES = 8 };

static void wait_byte(int fd)
{
    char c;

    EXPECT(read(fd, &c, 1) == 1, "the other process is gone");
}

static void send_byte(int fd)
{
    EXPECT(write(fd, "x", 1) == 1, "pipe: %m");
}

static void child(char *p, int how, uint64_t seed, int from_parent, int to_parent)
{
    if (how & CHILD_WRITES) {
        edmtest_expect(p, LEN, seed, "child, before its write");
        edmtest_fill(p, LEN / 2, seed + 1);
        send_byte(to_parent);
    }
    wait_byte(from_parent);
    if (how & EVICT_IN_CHILD) /* may be refused for pages that are still shared: try */
        edmtest_try_evict(p, LEN, 300);
    edmtest_expect(p, LEN / 2, how & CHILD_WRITES ? seed + 1 : seed, "child's first half");
    if (!(how & CHILD_WRITES))
        edmtest_expect(p, LEN, seed, "child's copy after the parent's write");
    edmtest_fill(p, LEN, seed + 2);
    edmtest_expect(p, LEN, seed + 2, "child after its write");
    _exit(0);
}

static void one(int how, uint64_t seed)
{
    char *p = edmtest_map(LEN);
    int down[2], up[2];
    pid_t pid;

    edmtest_fill(p, LEN, seed);
    EXPECT_CALL(pipe(down));
    EXPECT_CALL(pipe(up));
    if (how & EVICT_BEFORE)
        edmtest_evict(p, LEN);
    EXPECT_CALL(pid = fork());
    if (pid == 0)
        child(p, how, seed, down[0], up[1]);
    if (how & CHILD_WRITES)
        wait_byte(up[0]);
    if (how & EVICT_IN_PARENT)
        edmtest_try_evict(p, LEN, 300);
    edmtest_expect(p, LEN, seed, "parent, before its write");
    if (!(how & CHILD_WRITES))
        edmtest_fill(p, LEN / 2, seed + 3);
    send_byte(down[1]);
    edmtest_reap(pid, "child");
    edmtest_expect(p, LEN / 2, how & CHILD_WRITES ? seed : seed + 3, "parent at the end");
    close(down[0]), close(down[1]), close(up[0]), close(up[1]);
}

int main(void)
{
    struct edmtest_counters before, after;

    edmtest_begin("faults_cow", 120);
    edmtest_pressure();
    before = edmtest_now();
    for (int how = 0; how < 16; how++)
        one(how, 100 + (uint64_t)how * 10);
    edmtest_came_back(&before, PAGES);
    after = edmtest_now();
    EXPECT(edmtest_native() || after.forks >= before.forks + 16, "%lu fork events for 16 forks",
           after.forks - before.forks);
    edmtest_pressure_check();
    edmtest_ok();
}
