/* Another process reads and writes evicted memory with process_vm_readv and process_vm_writev. */
#include "../lib/edmtest.h"
#include <string.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define LEN (64 * EDMTEST_PAGE)

static char *p;

static void wait_byte(int fd)
{
    char c;

    EXPECT(read(fd, &c, 1) == 1, "the other process is gone");
}

/* Made before anything was managed: knows the address, shares nothing. */
static void other_process(pid_t target, int from, int to)
{
    static char buf[LEN];
    struct iovec local = {buf, LEN}, remote = {p, LEN};

    wait_byte(from);
    EXPECT(process_vm_readv(target, &local, 1, &remote, 1, 0) == (ssize_t)LEN,
           "process_vm_readv: %m");
    edmtest_expect(buf, LEN, 1, "process_vm_readv");
    EXPECT(write(to, "x", 1) == 1, "pipe: %m");
    wait_byte(from);
    edmtest_fill(buf, LEN, 2);
    EXPECT(process_vm_writev(target, &local, 1, &remote, 1, 0) == (ssize_t)LEN,
           "process_vm_writev: %m");
    _exit(0);
}

int main(void)
{
    struct edmtest_counters before;
    int down[2], up[2];
    pid_t pid;

    edmtest_begin("faults_process_vm", 60);
    p = edmtest_map(LEN);
    EXPECT_CALL(pipe(down));
    EXPECT_CALL(pipe(up));
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    EXPECT_CALL(pid = fork());
    if (pid == 0)
        other_process(getppid(), down[0], up[1]);
    edmtest_fill(p, LEN, 1);
    edmtest_pressure();
    edmtest_evict(p, LEN);
    before = edmtest_now();
    EXPECT(write(down[1], "x", 1) == 1, "pipe: %m");
    wait_byte(up[0]);
    edmtest_evict(p, LEN);
    EXPECT(write(down[1], "x", 1) == 1, "pipe: %m");
    edmtest_reap(pid, "other process");
    edmtest_came_back(&before, 2 * LEN / EDMTEST_PAGE);
    edmtest_expect(p, LEN, 2, "after process_vm_writev");
    edmtest_evict(p, LEN);
    edmtest_expect(p, LEN, 2, "after process_vm_writev, evicted");
    edmtest_ok();
}
