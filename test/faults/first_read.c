/* The first read of a page gives zeros: when it is new, and when it was evicted as all zero. */
#include "../lib/edmtest.h"
#include <sys/mman.h>

int main(void)
{
    size_t len = 4 * EDMTEST_MIB;
    char *p, *tail;

    edmtest_begin("faults_first_read", 60);
    p = edmtest_map(len);
    edmtest_expect_zero(p, len, "before anything was evicted");
    edmtest_pressure();
    tail = edmtest_map(len);
    edmtest_expect_zero(tail, len, "new memory above the budget");
    edmtest_evict(tail, len);
    edmtest_expect_zero(tail, len, "evicted zero pages");
    edmtest_expect_zero(p, len, "old zero pages");
    if (!edmtest_native()) {
        struct edmtest_counters c = edmtest_now();

        EXPECT(c.faults_new + c.leases > 0, "no fault on new memory");
    }
    edmtest_pressure_check();
    edmtest_ok();
}
