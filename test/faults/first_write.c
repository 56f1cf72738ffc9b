/* The first access to a page is a write: of a new page, and of one that was evicted. */
#include "../lib/edmtest.h"
#include <string.h>

int main(void)
{
    size_t pages = 256;
    char *p;

    edmtest_begin("faults_first_write", 60);
    edmtest_pressure();
    p = edmtest_map(pages * EDMTEST_PAGE);
    for (size_t i = 0; i < pages; i += 2) /* one byte; the rest of the page stays zero */
        p[i * EDMTEST_PAGE + i] = 'a';
    for (int round = 0; round < 4; round++) {
        struct edmtest_counters before;

        edmtest_evict(p, pages * EDMTEST_PAGE);
        before = edmtest_now();
        for (size_t i = 0; i < pages; i += 2)
            p[i * EDMTEST_PAGE + i + (size_t)round + 1] = (char)('b' + round);
        edmtest_came_back(&before, pages / 4);
    }
    for (size_t i = 0; i < pages; i++) {
        char *page = p + i * EDMTEST_PAGE;

        if (i % 2 == 0) {
            EXPECT(memcmp(page + i, "abcde", 5) == 0, "page %zu: wrong bytes", i);
            memset(page + i, 0, 5);
        }
        edmtest_expect_zero(page, EDMTEST_PAGE, "around the bytes written");
    }
    edmtest_pressure_check();
    edmtest_ok();
}
