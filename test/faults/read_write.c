/* read, write and their relatives into and out of evicted buffers, of all lengths and offsets. */
#include "../lib/edmtest.h"
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define LEN (64 * EDMTEST_PAGE)

static char *from, *to;
static int file, pipes[2], sockets[2];

static void prepare(bool evicted, uint64_t seed)
{
    edmtest_fill(from, LEN, seed);
    edmtest_fill(to, LEN, seed + 1);
    if (evicted) {
        edmtest_evict(from, LEN);
        edmtest_evict(to, LEN);
    }
}

static void check(uint64_t seed, size_t len, const char *what)
{
    edmtest_expect(to, len, seed, what);
    edmtest_expect(from, LEN, seed, what);
}

static void by_file(bool evicted)
{
    struct iovec out[3] = {{from, 100}, {from + 100, 9000}, {from + 9100, LEN - 9100}};
    struct iovec in[3] = {{to, 5000}, {to + 5000, 1}, {to + 5001, LEN - 5001}};

    prepare(evicted, 10);
    EXPECT(pwrite(file, from, LEN, 0) == LEN, "pwrite: %m");
    EXPECT(pread(file, to, LEN, 0) == LEN, "pread: %m");
    check(10, LEN, "pwrite, pread");
    prepare(evicted, 20);
    EXPECT_CALL(lseek(file, 0, SEEK_SET));
    EXPECT(write(file, from, LEN) == LEN, "write: %m");
    EXPECT_CALL(lseek(file, 0, SEEK_SET));
    EXPECT(read(file, to, LEN) == LEN, "read: %m");
    check(20, LEN, "write, read");
    prepare(evicted, 30);
    EXPECT(pwritev(file, out, 3, 0) == LEN, "pwritev: %m");
    EXPECT(preadv(file, in, 3, 0) == LEN, "preadv: %m");
    check(30, LEN, "pwritev, preadv");
}

static void by_pipe(bool evicted)
{
    struct iovec out[2] = {{from, 4097}, {from + 4097, 32768 - 4097}};
    struct iovec in[2] = {{to, 12000}, {to + 12000, 32768 - 12000}};

    prepare(evicted, 40);
    EXPECT(write(pipes[1], from, 32768) == 32768, "write to a pipe: %m");
    EXPECT(read(pipes[0], to, 32768) == 32768, "read from a pipe: %m");
    check(40, 32768, "pipe");
    prepare(evicted, 50);
    EXPECT(writev(pipes[1], out, 2) == 32768, "writev: %m");
    EXPECT(readv(pipes[0], in, 2) == 32768, "readv: %m");
    check(50, 32768, "pipe, writev, readv");
}

static void by_socket(bool evicted)
{
    struct iovec out = {from, 32768}, in = {to, 32768};
    struct msghdr send_msg = {.msg_iov = &out, .msg_iovlen = 1};
    struct mmsghdr recv_msg = {.msg_hdr = {.msg_iov = &in, .msg_iovlen = 1}};

    prepare(evicted, 60);
    EXPECT(send(sockets[0], from, 32768, 0) == 32768, "send: %m");
    EXPECT(recv(sockets[1], to, 32768, MSG_WAITALL) == 32768, "recv: %m");
    check(60, 32768, "socket");
    prepare(evicted, 70);
    EXPECT(sendmsg(sockets[0], &send_msg, 0) == 32768, "sendmsg: %m");
    EXPECT(recvmmsg(sockets[1], &recv_msg, 1, MSG_WAITALL, NULL) == 1, "recvmmsg: %m");
    EXPECT(recv_msg.msg_len == 32768, "recvmmsg: %u bytes", recv_msg.msg_len);
    check(70, 32768, "sendmsg, recvmmsg");
}

int main(void)
{
    struct edmtest_counters before;

    edmtest_begin("faults_read_write", 60);
    from = edmtest_map(LEN);
    to = edmtest_map(LEN);
    EXPECT_CALL(file = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    EXPECT_CALL(pipe(pipes));
    EXPECT_CALL(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
    edmtest_pressure();
    before = edmtest_now();
    for (int evicted = 0; evicted < 2; evicted++) {
        by_file(evicted);
        by_pipe(evicted);
        by_socket(evicted);
    }
    edmtest_came_back(&before, 7 * LEN / EDMTEST_PAGE);
    edmtest_pressure_check();
    edmtest_ok();
}
