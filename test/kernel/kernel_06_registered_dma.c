/* Rule 6: what a device writes into a registered buffer is never lost to an eviction. */
#include "../lib/edmtest.h"
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN (32 * EDMTEST_PAGE)
#define ROUNDS 200

static char *buf;
static volatile bool stop;

static void *evictor(void *arg)
{
    while (!stop)
        madvise(buf, LEN, MADV_PAGEOUT);
    return arg;
}

static int make_file(void)
{
    char *p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC | O_DIRECT, 0600);

    if (fd < 0 && errno == EINVAL)
        fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    EXPECT_CALL(fd);
    for (uint64_t i = 0; i < 4; i++) {
        edmtest_fill(p, LEN, 100 + i);
        EXPECT(pwrite(fd, p, LEN, (off_t)(i * LEN)) == (ssize_t)LEN, "pwrite: %m");
    }
    munmap(p, LEN);
    return fd;
}

int main(void)
{
    struct io_uring ring;
    struct iovec v;
    pthread_t t;
    int fd, rc;

    edmtest_begin("kernel_06_registered_dma", 90);
    fd = make_file();
    rc = io_uring_queue_init(4, &ring, 0);
    if (rc < 0)
        edmtest_skip("io_uring: %s", strerror(-rc));
    buf = edmtest_map(LEN);
    edmtest_pressure();
    edmtest_fill(buf, LEN, 1);
    edmtest_evict(buf, LEN);
    v = (struct iovec){buf, LEN};
    EXPECT(io_uring_register_buffers(&ring, &v, 1) == 0, "io_uring_register_buffers");
    EXPECT(pthread_create(&t, NULL, evictor, NULL) == 0, "pthread_create");
    for (uint64_t round = 0; round < ROUNDS; round++) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
        struct io_uring_cqe *cqe;

        io_uring_prep_read_fixed(sqe, fd, buf, LEN, round % 4 * LEN, 0);
        EXPECT(io_uring_submit(&ring) == 1, "io_uring_submit");
        EXPECT(io_uring_wait_cqe(&ring, &cqe) == 0 && cqe->res == (int)LEN, "read: %d", cqe->res);
        io_uring_cqe_seen(&ring, cqe);
        edmtest_expect(buf, LEN, 100 + round % 4, "registered buffer");
    }
    stop = true;
    pthread_join(t, NULL);
    io_uring_queue_exit(&ring);
    edmtest_evict(buf, LEN);
    edmtest_expect(buf, LEN, 100 + (ROUNDS - 1) % 4, "buffer, not registered any more");
    edmtest_ok();
}
