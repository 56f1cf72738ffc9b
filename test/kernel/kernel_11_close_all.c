/* Rule 11: a program that closes every descriptor, as daemons do, goes on being served. */
#include "../lib/edmtest.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN (4 * EDMTEST_MIB)

int main(void)
{
    struct edmtest_counters before;
    char *p;

    edmtest_begin("kernel_11_close_all", 60);
    edmtest_pressure();
    p = edmtest_map(LEN);
    edmtest_fill(p, LEN, 1);
    edmtest_evict(p, LEN);
    before = edmtest_now();
    EXPECT_CALL(close_range(3, ~0u, 0));
    for (int i = 0; i < 30; i++) /* their numbers are used again */
        EXPECT_CALL(open("/dev/null", O_RDWR | O_CLOEXEC));
    edmtest_expect(p, LEN, 1, "after closing everything");
    for (uint64_t i = 2; i < 6; i++) {
        edmtest_fill(p, LEN, i);
        edmtest_evict(p, LEN);
        edmtest_expect(p, LEN, i, "evicted after closing everything");
    }
    edmtest_came_back(&before, 4 * LEN / EDMTEST_PAGE);
    edmtest_pressure_check();
    edmtest_ok();
}
