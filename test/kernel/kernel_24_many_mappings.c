/* Rules 5, 24: near vm.max_map_count leases and registrations fail; bytes must not. */
#include "../lib/edmtest.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

static size_t max_map_count(void)
{
    FILE *f = fopen("/proc/sys/vm/max_map_count", "re");
    unsigned long n = 0;

    EXPECT(f && fscanf(f, "%lu", &n) == 1, "vm.max_map_count");
    fclose(f);
    return n;
}

int main(void)
{
    size_t limit = max_map_count(), len, split = 0;
    struct edmtest_counters before;
    char *p;

    edmtest_begin("kernel_24_many_mappings", 120);
    if (limit > 200000)
        edmtest_skip("vm.max_map_count is %zu", limit);
    edmtest_pressure();
    len = (limit + 4096) / 4 * 8 * EDMTEST_PAGE;
    p = edmtest_map(len);
    /* every fourth page read-only: two mappings for four pages, until the kernel refuses */
    for (size_t i = 0; i < len; i += 4 * EDMTEST_PAGE) {
        if (mprotect(p + i, EDMTEST_PAGE, PROT_READ)) {
            EXPECT(errno == ENOMEM, "mprotect: %m");
            break;
        }
        split++;
    }
    EXPECT(split > limit / 4, "only %zu pages were split off", split);
    before = edmtest_now();
    for (size_t i = 0; i < split * 4 * EDMTEST_PAGE; i += 4 * EDMTEST_PAGE) {
        edmtest_expect_zero(p + i, EDMTEST_PAGE, "read-only page");
        edmtest_fill(p + i + EDMTEST_PAGE, EDMTEST_PAGE, i);
    }
    for (size_t i = 0; i < split * 4 * EDMTEST_PAGE; i += 4 * EDMTEST_PAGE) {
        edmtest_expect_zero(p + i, EDMTEST_PAGE, "read-only page, again");
        edmtest_expect(p + i + EDMTEST_PAGE, EDMTEST_PAGE, i, "page between");
    }
    edmtest_came_back(&before, edmtest_budget() / EDMTEST_PAGE);
    EXPECT_CALL(munmap(p, len));
    edmtest_pressure_check();
    edmtest_ok();
}
