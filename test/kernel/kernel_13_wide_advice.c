/*
 * Rules 12 and 13 for advice that is given for much more memory than is ever touched, before and
 * after it is: mlock, MADV_DONTFORK and MADV_WIPEONFORK hold page by page all the same.
 */
#include "../lib/edmtest.h"
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define GIB (1ul << 30)
#define WIDE (24 * GIB)
#define PAGES 8ul
#define LEN (PAGES * EDMTEST_PAGE)

enum fate { KEPT, WIPED, AWAY };

/* Where there are pages, and what a child has of each. What is right below 16 GiB the kernel may
 * give to the child's next mapping. */
static const struct place {
    size_t at;
    enum fate fate[PAGES];
} places[] = {
    {GIB - 4 * EDMTEST_PAGE, {KEPT, KEPT, KEPT, KEPT, KEPT, WIPED, WIPED, WIPED}},
    {3 * GIB, {WIPED, KEPT, KEPT, WIPED, WIPED, WIPED, WIPED, WIPED}},
    {8 * GIB - 2 * EDMTEST_PAGE, {WIPED, WIPED, AWAY, AWAY, AWAY, AWAY, AWAY, AWAY}},
    {12 * GIB + EDMTEST_MIB, {AWAY, AWAY, AWAY, AWAY, AWAY, AWAY, KEPT, KEPT}},
    {12 * GIB + 9 * EDMTEST_MIB, {KEPT, KEPT, AWAY, AWAY, AWAY, AWAY, AWAY, AWAY}},
    {16 * GIB, {KEPT, KEPT, KEPT, KEPT, KEPT, KEPT, KEPT, KEPT}},
    {20 * GIB, {KEPT, KEPT, KEPT, KEPT, KEPT, KEPT, KEPT, KEPT}},
};
#define PLACES (sizeof(places) / sizeof(*places))

static char *wide(void)
{
    char *p = mmap(NULL, WIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    EXPECT(p != MAP_FAILED, "mmap: %m");
    return p;
}

static void advise(char *p)
{
    const size_t page = EDMTEST_PAGE;
    EXPECT_CALL(madvise(p + GIB + page, 7 * GIB - page, MADV_WIPEONFORK));
    EXPECT_CALL(madvise(p + 3 * GIB + page, 2 * page, MADV_KEEPONFORK));
    EXPECT_CALL(madvise(p + 8 * GIB, 8 * GIB, MADV_DONTFORK));
    EXPECT_CALL(
        madvise(p + 12 * GIB + EDMTEST_MIB + 6 * page, 8 * EDMTEST_MIB - 4 * page, MADV_DOFORK));
}

static void fill(char *p, uint64_t seed)
{
    for (size_t i = 0; i < PLACES; i++)
        edmtest_fill(p + places[i].at, LEN, seed + i);
}

static void evict(char *p)
{
    for (size_t i = 0; i < PLACES; i++)
        edmtest_evict(p + places[i].at, LEN);
}

static void expect_mine(const char *p, uint64_t seed, const char *what)
{
    for (size_t i = 0; i < PLACES; i++)
        edmtest_expect(p + places[i].at, LEN, seed + i, what);
}

static void expect_page(const char *p, enum fate fate, const char *right, int fd)
{
    for (size_t k = 0; k < EDMTEST_PAGE && fate != AWAY; k++)
        EXPECT(p[k] == (fate == WIPED ? 0 : right[k]), "%s page, byte %zu in the child",
               fate == WIPED ? "wiped" : "kept", k);
    if (fate == AWAY)
        EXPECT(write(fd, p, 1) == -1 && errno == EFAULT, "memory that no child has");
}

static void expect_inherited(const char *p, uint64_t seed)
{
    static char right[LEN];
    int fds[2];
    EXPECT_CALL(pipe(fds));
    for (size_t i = 0; i < PLACES; i++) {
        edmtest_fill(right, LEN, seed + i);
        for (size_t k = 0; k < PAGES; k++)
            expect_page(p + places[i].at + k * EDMTEST_PAGE, places[i].fate[k],
                        right + k * EDMTEST_PAGE, fds[1]);
    }
}

static void fork_and_look(const char *p, uint64_t seed, const char *what)
{
    pid_t pid;
    EXPECT_CALL(pid = fork());
    if (pid == 0) {
        expect_inherited(p, seed);
        _exit(0);
    }
    edmtest_reap(pid, what);
    expect_mine(p, seed, what);
}

/* In a child of a child nothing was touched before. */
static void fork_before_touch(char *p, uint64_t seed)
{
    const char *untouched = p + 6 * GIB;
    pid_t pid;
    EXPECT_CALL(pid = fork());
    if (pid == 0) {
        char *mine = p + 6 * GIB;
        edmtest_fill(mine, LEN, seed);
        edmtest_evict(mine, LEN);
        EXPECT_CALL(pid = fork());
        if (pid == 0) {
            edmtest_expect_zero(untouched, LEN, "wiped, in a child's child");
            _exit(0);
        }
        edmtest_reap(pid, "a child's child");
        edmtest_expect(mine, LEN, seed, "in the child");
        _exit(0);
    }
    edmtest_reap(pid, "child that touches first");
}

/* It goes along with all of a mapping that moves, to an address that is no multiple of 2 MiB from
 * the old one. */
static void moved(uint64_t seed)
{
    const size_t len = 4 * GIB, page = EDMTEST_PAGE;
    char *p = wide(), *to = wide() + GIB + 3 * page;
    char *edge = to + 2 * GIB - 4 * page, *last = to + len - LEN;
    int fds[2];
    pid_t pid;
    EXPECT_CALL(pipe(fds));
    EXPECT_CALL(madvise(p + 3 * GIB, 4 * GIB, MADV_WIPEONFORK));
    EXPECT_CALL(madvise(p + 2 * GIB, EDMTEST_MIB, MADV_DONTFORK));
    EXPECT(mremap(p + GIB, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap: %m");
    edmtest_fill(edge, LEN, seed);
    edmtest_fill(last, LEN, seed + 1);
    edmtest_fill(to + len, LEN, seed + 2);
    edmtest_evict(edge, LEN);
    edmtest_evict(last, LEN);
    EXPECT_CALL(pid = fork());
    if (pid == 0) {
        EXPECT(edmtest_check(edge, 4 * page, seed) == -1, "before what is wiped, in the child");
        edmtest_expect_zero(edge + 4 * page, 4 * page, "the first that is wiped, in the child");
        edmtest_expect_zero(last, LEN, "the last that is wiped, in the child");
        edmtest_expect(to + len, LEN, seed + 2, "behind what was moved, in the child");
        expect_page(to + GIB + page, AWAY, NULL, fds[1]);
        _exit(0);
    }
    edmtest_reap(pid, "moved");
    edmtest_expect(edge, LEN, seed, "moved");
    edmtest_expect(last, LEN, seed + 1, "moved");
}

static void expect_resident(const char *p, size_t at, const char *what)
{
    size_t n = edmtest_present(p + at, LEN);
    EXPECT(n == PAGES, "%s: %zu of %lu locked pages are there", what, n, PAGES);
}

/* Pages come where a wide range is locked already; MLOCK_ONFAULT brings none by itself. */
static void locked(void)
{
    char *p = wide();
    EXPECT_CALL(mlock2(p + GIB, 20 * GIB, MLOCK_ONFAULT));
    EXPECT_CALL(munlock(p + 10 * GIB, 2 * EDMTEST_PAGE));
    edmtest_fill(p + GIB, LEN, 1);
    edmtest_fill(p + 10 * GIB + 2 * EDMTEST_PAGE, LEN, 2);
    edmtest_fill(p + 21 * GIB - LEN, LEN, 3);
    size_t more = 2 * edmtest_budget();
    char *push = edmtest_map(more);
    edmtest_fill(push, more, 4);
    expect_resident(p, GIB, "first");
    expect_resident(p, 10 * GIB + 2 * EDMTEST_PAGE, "behind what is not locked");
    expect_resident(p, 21 * GIB - LEN, "last");
    EXPECT_CALL(munlock(p, WIDE));
    edmtest_evict(p + GIB, LEN);
    edmtest_expect(p + GIB, LEN, 1, "locked once");
    edmtest_expect(push, more, 4, "what pushed");
    EXPECT_CALL(munmap(push, more));
    EXPECT_CALL(munmap(p, WIDE));
}

int main(void)
{
    edmtest_begin("kernel_13_wide_advice", 80);
    edmtest_pressure();
    char *p = wide(), *q = wide();
    advise(p);
    fill(p, 100);
    fork_and_look(p, 100, "advised before");
    evict(p);
    fork_and_look(p, 100, "advised before, evicted");
    fork_before_touch(p, 150);
    fill(q, 200);
    evict(q);
    advise(q);
    fork_and_look(q, 200, "advised after");
    moved(300);
    locked();
    edmtest_pressure_check();
    edmtest_ok();
}
