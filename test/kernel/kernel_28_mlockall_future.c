/* Rule 28: after mlockall(MCL_FUTURE) new memory is resident from the start and stays so. */
#include "../lib/edmtest.h"
#include <sys/mman.h>

#define LEN (4 * EDMTEST_MIB)

int main(void)
{
    char *old, *p;

    edmtest_begin("kernel_28_mlockall_future", 60);
    edmtest_pressure();
    old = edmtest_map(LEN);
    edmtest_fill(old, LEN, 1);
    edmtest_evict(old, LEN);
    EXPECT_CALL(mlockall(MCL_FUTURE));
    p = edmtest_map(LEN);
    EXPECT(edmtest_present(p, LEN) == LEN / EDMTEST_PAGE, "new memory is not locked");
    edmtest_expect_zero(p, LEN, "new memory");
    edmtest_fill(p, LEN, 2);
    edmtest_expect(old, LEN, 1, "old memory");
    edmtest_pressure_check();
    EXPECT(edmtest_present(p, LEN) == LEN / EDMTEST_PAGE, "locked memory was evicted");
    EXPECT_CALL(munlockall());
    edmtest_expect(p, LEN, 2, "at the end");
    edmtest_ok();
}
