/* A page that was read first is the kernel's zero page; a write then makes it a page of its own. */
#include "../lib/edmtest.h"

static void write_and_check(char *p, size_t pages, uint64_t seed, bool evict_between)
{
    edmtest_expect_zero(p, pages * EDMTEST_PAGE, "first read");
    if (evict_between)
        edmtest_evict(p, pages * EDMTEST_PAGE);
    for (size_t i = 0; i < pages; i += 3)
        edmtest_fill(p + i * EDMTEST_PAGE, EDMTEST_PAGE, seed + i);
    if (evict_between)
        edmtest_evict(p, pages * EDMTEST_PAGE);
    for (size_t i = 0; i < pages; i++) {
        if (i % 3 == 0)
            edmtest_expect(p + i * EDMTEST_PAGE, EDMTEST_PAGE, seed + i, "written page");
        else
            edmtest_expect_zero(p + i * EDMTEST_PAGE, EDMTEST_PAGE, "page that was only read");
    }
}

int main(void)
{
    size_t pages = 512;
    struct edmtest_counters before;

    edmtest_begin("faults_write_after_read", 60);
    write_and_check(edmtest_map(pages * EDMTEST_PAGE), pages, 1, false);
    edmtest_pressure();
    write_and_check(edmtest_map(pages * EDMTEST_PAGE), pages, 1000, false);
    before = edmtest_now();
    write_and_check(edmtest_map(pages * EDMTEST_PAGE), pages, 2000, true);
    edmtest_came_back(&before, pages / 3);
    edmtest_pressure_check();
    edmtest_ok();
}
