/*
 * Rule 12: what mlock and madvise did to a mapping ends with it. New mappings at the same place
 * are zero, can be evicted, and are there in a child.
 */
#include "../lib/edmtest.h"
#include <sys/mman.h>
#include <unistd.h>

#define LEN (16 * EDMTEST_PAGE)

static void locked(char *p)
{
    EXPECT_CALL(mlock(p, LEN));
}

static void not_for_children(char *p)
{
    EXPECT_CALL(madvise(p, LEN, MADV_DONTFORK));
}

static void wiped_in_children(char *p)
{
    EXPECT_CALL(madvise(p, LEN, MADV_WIPEONFORK));
}

static void read_only(char *p)
{
    EXPECT_CALL(mprotect(p, LEN, PROT_READ));
}

static void one(void (*change)(char *p), const char *what)
{
    char *p = edmtest_map(LEN), *q;
    pid_t pid;

    edmtest_fill(p, LEN, 1);
    change(p);
    EXPECT_CALL(munmap(p, LEN));
    q = mmap(p, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(q == p, "%s: the new mapping is elsewhere", what);
    edmtest_expect_zero(q, LEN, what);
    edmtest_fill(q, LEN, 2);
    EXPECT_CALL(pid = fork());
    if (pid == 0) {
        edmtest_expect(q, LEN, 2, what);
        _exit(0);
    }
    edmtest_reap(pid, what);
    edmtest_fill(q, LEN, 3);
    edmtest_evict(q, LEN);
    edmtest_expect(q, LEN, 3, what);
    EXPECT_CALL(munmap(q, LEN));
}

int main(void)
{
    struct edmtest_counters before;

    edmtest_begin("kernel_12_lasting_state", 60);
    edmtest_pressure();
    before = edmtest_now();
    one(locked, "mlock");
    one(not_for_children, "DONTFORK");
    one(wiped_in_children, "WIPEONFORK");
    one(read_only, "read-only");
    edmtest_came_back(&before, 4);
    edmtest_pressure_check();
    edmtest_ok();
}
