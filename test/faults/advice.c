/* madvise on evicted memory: DONTNEED, FREE, WILLNEED, POPULATE, COLD, HUGEPAGE; mlock. */
#include "../lib/edmtest.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PAGES 128ul
#define LEN (PAGES * EDMTEST_PAGE)

static void dontneed(char *p)
{
    edmtest_fill(p, LEN, 1);
    edmtest_evict(p, LEN);
    EXPECT_CALL(madvise(p + LEN / 4, LEN / 2, MADV_DONTNEED));
    edmtest_expect_zero(p + LEN / 4, LEN / 2, "after DONTNEED");
    edmtest_expect(p, LEN / 4, 1, "before the range of DONTNEED");
}

static void free_advice(char *p)
{
    static char right[LEN];

    edmtest_fill(right, LEN, 2);
    edmtest_fill(p, LEN, 2);
    edmtest_evict(p, LEN);
    EXPECT_CALL(madvise(p, LEN, MADV_FREE));
    for (size_t off = 0; off < LEN; off += EDMTEST_PAGE)
        EXPECT(memcmp(p + off, right + off, EDMTEST_PAGE) == 0 ||
                   edmtest_check_zero(p + off, EDMTEST_PAGE) < 0,
               "after FREE page %zu is neither the old one nor zero", off / EDMTEST_PAGE);
    edmtest_fill(p, LEN, 3);
    edmtest_evict(p, LEN);
    edmtest_expect(p, LEN, 3, "written after FREE");
}

static void fetching(char *p)
{
    struct timespec pause = {.tv_nsec = 10000000};
    struct edmtest_counters before;
    size_t present = 0;

    edmtest_fill(p, LEN, 4);
    edmtest_evict(p, LEN);
    edmtest_pressure(); /* nothing of it is on its way out any more */
    before = edmtest_now();
    EXPECT(madvise(p, LEN, MADV_WILLNEED) == 0 || errno == EBADF, "WILLNEED: %m");
    for (int i = 0; i < 500 && present < PAGES; i++) {
        present = edmtest_present(p, LEN);
        nanosleep(&pause, NULL);
    }
    EXPECT(present == PAGES, "WILLNEED fetched %zu of %lu pages", present, PAGES);
    if (!edmtest_native()) {
        struct edmtest_counters after = edmtest_now();

        EXPECT(after.prefetched >= before.prefetched + PAGES / 2, "WILLNEED fetched nothing ahead");
    }
    edmtest_expect(p, LEN, 4, "after WILLNEED");
    edmtest_evict(p, LEN);
    EXPECT_CALL(madvise(p, LEN, MADV_POPULATE_READ));
    edmtest_expect(p, LEN, 4, "after POPULATE_READ");
    edmtest_evict(p, LEN);
    EXPECT_CALL(madvise(p, LEN, MADV_POPULATE_WRITE));
    edmtest_expect(p, LEN, 4, "after POPULATE_WRITE");
}

static void locking(char *p)
{
    edmtest_fill(p, LEN, 5);
    edmtest_evict(p, LEN);
    EXPECT_CALL(mlock(p, LEN));
    EXPECT(edmtest_present(p, LEN) == PAGES, "mlock did not bring the pages in");
    if (!edmtest_native())
        EXPECT(!edmtest_try_evict(p, EDMTEST_PAGE, 200), "a locked page was evicted");
    edmtest_pressure();
    EXPECT(edmtest_present(p, LEN) == PAGES, "locked pages were evicted under pressure");
    edmtest_expect(p, LEN, 5, "locked");
    EXPECT_CALL(munlock(p, LEN));
    edmtest_evict(p, LEN);
    edmtest_expect(p, LEN, 5, "unlocked and evicted");
}

int main(void)
{
    struct edmtest_counters before;
    char *p;

    edmtest_begin("faults_advice", 90);
    p = edmtest_map(LEN);
    edmtest_fill(p, LEN, 0);
    edmtest_pressure();
    before = edmtest_now();
    dontneed(p);
    free_advice(p);
    fetching(p);
    EXPECT(madvise(p, LEN, MADV_HUGEPAGE) == 0 || errno == EINVAL, "HUGEPAGE: %m");
    dontneed(p);
    locking(p);
    edmtest_came_back(&before, PAGES);
    edmtest_pressure_check();
    edmtest_ok();
}
