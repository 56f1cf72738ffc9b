/*
 * Rule 6: a page that was read-only once is evicted by copying, but not when it can be written and
 * is pinned by now: what a device then writes into it is never lost.
 */
#include "../lib/edmtest.h"
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN (32 * EDMTEST_PAGE)
#define ROUNDS 8

static char *buf;

static int make_file(void)
{
    int fd = memfd_create("contents", MFD_CLOEXEC);
    char *p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    EXPECT(fd >= 0 && p != MAP_FAILED, "memfd: %m");
    for (uint64_t i = 0; i < ROUNDS; i++) {
        edmtest_fill(p, LEN, 100 + i);
        EXPECT(pwrite(fd, p, LEN, (off_t)(i * LEN)) == (ssize_t)LEN, "pwrite: %m");
    }
    munmap(p, LEN);
    return fd;
}

/* MOVE refuses the pages, and they stay in memory. */
static void refused_once(void)
{
    EXPECT_CALL(mprotect(buf, LEN, PROT_READ));
    EXPECT_CALL(madvise(buf, LEN, MADV_PAGEOUT));
    edmtest_now(); /* takes longer than that */
    EXPECT_CALL(mprotect(buf, LEN, PROT_READ | PROT_WRITE));
}

static void read_fixed(struct io_uring *ring, int fd, uint64_t round)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    struct io_uring_cqe *cqe;

    io_uring_prep_read_fixed(sqe, fd, buf, LEN, round * LEN, 0);
    EXPECT(io_uring_submit(ring) == 1, "io_uring_submit");
    EXPECT(io_uring_wait_cqe(ring, &cqe) == 0 && cqe->res == (int)LEN, "read: %d", cqe->res);
    io_uring_cqe_seen(ring, cqe);
}

int main(void)
{
    struct io_uring ring;
    struct iovec v;
    int fd, rc;

    edmtest_begin("kernel_06_pinned_after_readonly", 90);
    fd = make_file();
    rc = io_uring_queue_init(4, &ring, 0);
    if (rc < 0)
        edmtest_skip("io_uring: %s", strerror(-rc));
    edmtest_pressure();
    for (uint64_t round = 0; round < ROUNDS; round++) {
        buf = edmtest_map(LEN);
        edmtest_fill(buf, LEN, 1);
        refused_once();
        v = (struct iovec){buf, LEN};
        EXPECT(io_uring_register_buffers(&ring, &v, 1) == 0, "io_uring_register_buffers");
        edmtest_pressure();
        edmtest_try_evict(buf, LEN, 200);
        read_fixed(&ring, fd, round);
        edmtest_expect(buf, LEN, 100 + round, "registered buffer");
        EXPECT(io_uring_unregister_buffers(&ring) == 0, "io_uring_unregister_buffers");
        edmtest_evict(buf, LEN);
        edmtest_expect(buf, LEN, 100 + round, "buffer, not registered any more");
    }
    io_uring_queue_exit(&ring);
    edmtest_pressure_check();
    edmtest_ok();
}
