/* Rule 19: setuid in a managed program returns, and what was evicted comes back after it. */
#include "../lib/edmtest.h"
#include <errno.h>
#include <grp.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN (4 * EDMTEST_MIB)

int main(void)
{
    char *p;

    edmtest_begin("kernel_19_setuid", 60);
    if (geteuid() != 0)
        edmtest_skip("needs root");
    edmtest_pressure();
    p = edmtest_map(LEN);
    edmtest_fill(p, LEN, 1);
    edmtest_evict(p, LEN);
    EXPECT_CALL(setgroups(0, NULL));
    EXPECT_CALL(setgid(65534));
    errno = 0;
    EXPECT_CALL(setuid(65534));
    EXPECT(errno == 0 && getuid() == 65534, "setuid");
    edmtest_expect(p, LEN, 1, "after setuid");
    for (uint64_t i = 2; i < 5; i++) {
        edmtest_fill(p, LEN, i);
        EXPECT_CALL(madvise(p, LEN, MADV_PAGEOUT));
        edmtest_pressure_check(); /* makes room all the time */
        edmtest_expect(p, LEN, i, "evicted after setuid");
    }
    edmtest_ok();
}
