/*
 * Rule 32: forks that fail after the memory was copied are announced like others. Nothing may be
 * left of them, and the program goes on.
 */
#include "../lib/edmtest.h"
#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LEN (2 * EDMTEST_MIB)
#define ROUNDS 100

/* The process number asked for is taken: the kernel notices late. */
static void failing_fork(void)
{
    pid_t tid = getpid();
    struct clone_args args = {
        .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&tid, .set_tid_size = 1};
    long ret = syscall(SYS_clone3, &args, sizeof(args));

    if (ret == 0)
        _exit(7);
    if (ret == -1 && (errno == EPERM || errno == ENOSYS))
        edmtest_skip("clone3 with set_tid: %m");
    EXPECT(ret == -1 && errno == EEXIST, "clone3: %ld %m", ret);
}

int main(void)
{
    struct edmtest_counters before, after;
    char *p;

    edmtest_begin("kernel_32_failing_fork", 60);
    edmtest_pressure();
    p = edmtest_map(LEN);
    edmtest_fill(p, LEN, 1);
    edmtest_evict(p, LEN);
    before = edmtest_now();
    for (int i = 0; i < ROUNDS; i++) {
        pid_t pid;

        failing_fork();
        if (i % 10)
            continue;
        EXPECT_CALL(pid = fork());
        if (pid == 0) {
            edmtest_expect(p, LEN, 1, "child");
            _exit(0);
        }
        edmtest_reap(pid, "child after failed forks");
        edmtest_expect(p, LEN, 1, "parent");
        edmtest_fill(p, LEN, 1);
        edmtest_evict(p, LEN);
    }
    edmtest_expect(p, LEN, 1, "parent at the end");
    after = edmtest_now();
    EXPECT(edmtest_native() || after.forks >= before.forks + ROUNDS / 10, "no fork events");
    EXPECT(after.stored_pages < before.stored_pages + 2 * LEN / EDMTEST_PAGE,
           "stored pages grew from %lu to %lu", before.stored_pages, after.stored_pages);
    edmtest_pressure_check();
    edmtest_ok();
}
