/* Rule 30: neighbouring pages of different rights are different mappings; all are evicted. */
#include "../lib/edmtest.h"
#include <string.h>
#include <sys/mman.h>

#define PAGES 128ul
#define LEN (PAGES * EDMTEST_PAGE)

int main(void)
{
    static char copy[LEN];
    struct edmtest_counters before;
    char *p;

    edmtest_begin("kernel_30_mixed_rights", 60);
    edmtest_pressure();
    p = edmtest_map(LEN);
    edmtest_fill(copy, LEN, 1);
    for (int round = 0; round < 5; round++) {
        EXPECT_CALL(mprotect(p, LEN, PROT_READ | PROT_WRITE));
        memcpy(p, copy, LEN);
        for (size_t i = 0; i < PAGES; i += 2 + (size_t)round)
            EXPECT_CALL(mprotect(p + i * EDMTEST_PAGE, EDMTEST_PAGE, PROT_READ));
        for (size_t i = 5; i < PAGES; i += 11)
            EXPECT_CALL(mprotect(p + i * EDMTEST_PAGE, EDMTEST_PAGE, PROT_NONE));
        before = edmtest_now();
        EXPECT_CALL(madvise(p, LEN, MADV_PAGEOUT));
        for (size_t i = 0; i < PAGES; i++)
            if (i % 11 != 5)
                edmtest_evict(p + i * EDMTEST_PAGE, EDMTEST_PAGE);
        EXPECT_CALL(mprotect(p, LEN, PROT_READ));
        EXPECT(memcmp(p, copy, LEN) == 0, "wrong bytes after eviction, round %d", round);
        edmtest_came_back(&before, PAGES / 2);
    }
    edmtest_pressure_check();
    edmtest_ok();
}
