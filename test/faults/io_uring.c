/* io_uring with plain and with registered buffers, while the buffers are asked to go away. */
#include "../lib/edmtest.h"
#include <fcntl.h>
#include <liburing.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN (64 * EDMTEST_PAGE)

static struct io_uring ring;
static int file;

static void run(struct io_uring_sqe *sqe, int expected, const char *what)
{
    struct io_uring_cqe *cqe;

    (void)sqe;
    EXPECT(io_uring_submit_and_wait(&ring, 1) == 1, "io_uring_submit: %m");
    EXPECT(io_uring_wait_cqe(&ring, &cqe) == 0, "io_uring_wait_cqe");
    EXPECT(cqe->res == expected, "%s: %d", what, cqe->res);
    io_uring_cqe_seen(&ring, cqe);
}

static void plain(char *from, char *to, bool evicted, uint64_t seed)
{
    struct io_uring_sqe *sqe;

    edmtest_fill(from, LEN, seed);
    edmtest_fill(to, LEN, seed + 1);
    if (evicted) {
        edmtest_evict(from, LEN);
        edmtest_evict(to, LEN);
    }
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_write(sqe, file, from, LEN, 0);
    run(sqe, LEN, "write");
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_read(sqe, file, to, LEN, 0);
    sqe->flags |= IOSQE_ASYNC; /* by a worker thread of the kernel */
    run(sqe, LEN, "read");
    edmtest_expect(to, LEN, seed, "plain buffers");
}

/* Registered buffers are pinned: they cannot be evicted, and what lands in them must be seen. */
static void registered(char *from, char *to, uint64_t seed)
{
    struct iovec v[2] = {{from, LEN}, {to, LEN}};
    struct io_uring_sqe *sqe;

    edmtest_fill(from, LEN, seed);
    edmtest_evict(from, LEN);
    edmtest_evict(to, LEN);
    EXPECT(io_uring_register_buffers(&ring, v, 2) == 0, "io_uring_register_buffers");
    for (int round = 0; round < 20; round++) {
        edmtest_fill(from, LEN, seed + (uint64_t)round);
        EXPECT_CALL(madvise(from, LEN, MADV_PAGEOUT));
        EXPECT_CALL(madvise(to, LEN, MADV_PAGEOUT));
        sqe = io_uring_get_sqe(&ring);
        io_uring_prep_write_fixed(sqe, file, from, LEN, 0, 0);
        run(sqe, LEN, "write from a registered buffer");
        EXPECT_CALL(madvise(to, LEN, MADV_PAGEOUT));
        sqe = io_uring_get_sqe(&ring);
        io_uring_prep_read_fixed(sqe, file, to, LEN, 0, 1);
        run(sqe, LEN, "read into a registered buffer");
        edmtest_expect(to, LEN, seed + (uint64_t)round, "registered buffers");
    }
    io_uring_unregister_buffers(&ring);
}

int main(void)
{
    struct edmtest_counters before;
    char *from, *to;
    int rc;

    edmtest_begin("faults_io_uring", 60);
    from = edmtest_map(LEN);
    to = edmtest_map(LEN);
    EXPECT_CALL(file = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    rc = io_uring_queue_init(8, &ring, 0);
    if (rc < 0)
        edmtest_skip("io_uring: %s", strerror(-rc));
    edmtest_pressure();
    before = edmtest_now();
    plain(from, to, false, 10);
    plain(from, to, true, 20);
    edmtest_came_back(&before, LEN / EDMTEST_PAGE);
    registered(from, to, 30);
    edmtest_pressure();
    registered(from, to, 60);
    edmtest_evict(to, LEN); /* not pinned any more */
    edmtest_expect(to, LEN, 79, "after unregistering");
    edmtest_ok();
}
