/* O_DIRECT out of and into evicted memory. */
#include "../lib/edmtest.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN (256 * EDMTEST_PAGE)

static char *to;
static volatile bool stop;

static void *keep_evicting(void *arg)
{
    while (!stop)
        madvise(to, LEN, MADV_PAGEOUT);
    return arg;
}

int main(void)
{
    struct edmtest_counters before;
    pthread_t t;
    char *from;
    int fd;

    edmtest_begin("faults_o_direct", 60);
    from = edmtest_map(LEN);
    to = edmtest_map(LEN);
    fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC | O_DIRECT, 0600);
    if (fd < 0 && errno == EINVAL)
        edmtest_skip("no O_DIRECT on /var/tmp");
    EXPECT_CALL(fd);
    edmtest_pressure();
    before = edmtest_now();
    for (uint64_t round = 0; round < 20; round++) {
        edmtest_fill(from, LEN, round);
        if (round % 2) {
            edmtest_evict(from, LEN);
            edmtest_evict(to, LEN);
        }
        EXPECT(pwrite(fd, from, LEN, 0) == (ssize_t)LEN, "pwrite with O_DIRECT: %m");
        stop = false; /* the device writes into pages that are asked to go away meanwhile */
        EXPECT(pthread_create(&t, NULL, keep_evicting, NULL) == 0, "pthread_create");
        EXPECT(pread(fd, to, LEN, 0) == (ssize_t)LEN, "pread with O_DIRECT: %m");
        stop = true;
        pthread_join(t, NULL);
        edmtest_expect(to, LEN, round, "read back");
        edmtest_expect(from, LEN, round, "source");
    }
    edmtest_came_back(&before, LEN / EDMTEST_PAGE);
    edmtest_pressure_check();
    edmtest_ok();
}
