/*
 * Rule 14: eviction moves pages that others still refer to; such frames must not be written
 * again. Pages in a pipe keep their contents while gigabytes pass through the eviction.
 */
#include "../lib/edmtest.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define PIPES 16
#define LEN (16 * EDMTEST_PAGE)

int main(void)
{
    static char out[LEN];
    char *p[PIPES];
    int fds[PIPES][2];

    edmtest_begin("kernel_14_frames_in_use", 90);
    edmtest_pressure();
    for (int i = 0; i < PIPES; i++) {
        struct iovec v;

        p[i] = edmtest_map(LEN);
        edmtest_fill(p[i], LEN, (uint64_t)i);
        v = (struct iovec){p[i], LEN};
        EXPECT_CALL(pipe(fds[i]));
        EXPECT(vmsplice(fds[i][1], &v, 1, 0) == (ssize_t)LEN, "vmsplice: %m");
    }
    for (int i = 0; i < PIPES; i++)
        edmtest_try_evict(p[i], LEN, 1000);
    for (int i = 0; i < 4; i++)
        edmtest_pressure();
    for (int i = 0; i < PIPES; i++) {
        EXPECT(read(fds[i][0], out, LEN) == (ssize_t)LEN, "read: %m");
        edmtest_expect(out, LEN, (uint64_t)i, "bytes out of the pipe");
        edmtest_expect(p[i], LEN, (uint64_t)i, "memory");
    }
    edmtest_pressure_check();
    edmtest_ok();
}
