/* vmsplice from evicted memory; what is in the pipe stays right when the pages are evicted then. */
#include "../lib/edmtest.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define LEN (16 * EDMTEST_PAGE) /* a pipe holds 16 pages */

int main(void)
{
    struct edmtest_counters before;
    static char out[LEN];
    int fds[2];
    char *p;

    edmtest_begin("faults_vmsplice", 60);
    p = edmtest_map(LEN);
    EXPECT_CALL(pipe(fds));
    edmtest_pressure();
    before = edmtest_now();
    for (uint64_t round = 0; round < 10; round++) {
        struct iovec v = {p, LEN};

        edmtest_fill(p, LEN, round);
        edmtest_evict(p, LEN);
        EXPECT(vmsplice(fds[1], &v, 1, 0) == (ssize_t)LEN, "vmsplice: %m");
        edmtest_try_evict(p, LEN, 200); /* the pipe still refers to the frames */
        if (round % 3 == 0)
            edmtest_pressure();
        EXPECT(read(fds[0], out, LEN) == (ssize_t)LEN, "read: %m");
        edmtest_expect(out, LEN, round, "bytes out of the pipe");
        edmtest_expect(p, LEN, round, "memory");
    }
    edmtest_came_back(&before, 10);
    edmtest_pressure_check();
    edmtest_ok();
}
