/* Rule 20: unshare(CLONE_NEWUSER), which needs a single thread, works; the memory is all there. */
#include "../lib/edmtest.h"
#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

int main(void)
{
    size_t len = 2 * edmtest_budget(); /* all of it may be resident in the end */
    char *p;

    edmtest_begin("kernel_20_unshare", 60);
    p = edmtest_map(len);
    edmtest_fill(p, len, 1);
    edmtest_evicted_at_least(edmtest_budget() / 2);
    edmtest_evict(p, 64 * EDMTEST_PAGE);
    if (unshare(CLONE_NEWUSER) != 0) {
        EXPECT(errno == EPERM || errno == ENOSPC || errno == ENOSYS, "unshare: %m");
        edmtest_skip("no user namespaces: %m");
    }
    edmtest_expect(p, len, 1, "after unshare");
    edmtest_fill(p, len, 2);
    edmtest_expect(p, len, 2, "written after unshare");
    edmtest_ok();
}
