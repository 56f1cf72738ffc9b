/* Rule 20: a seccomp filter for all threads does not kill the program; its memory is all there. */
#include "../lib/edmtest.h"
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Allows what a program that only computes needs; anything else kills the process. */
static void filter_all_threads(int how)
{
    static struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 6, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 5, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_munmap, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(rules) / sizeof(rules[0]), rules};

    EXPECT_CALL(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (how == 0)
        EXPECT_CALL(
            syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program));
    else
        EXPECT_CALL(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0));
}

static void child(int how)
{
    size_t len = 2 * edmtest_budget(); /* all of it is resident in the end */
    char *p = edmtest_map(len), *q;

    edmtest_fill(p, len, 1);
    edmtest_evicted_at_least(edmtest_budget() / 2);
    edmtest_evict(p, 64 * EDMTEST_PAGE);
    filter_all_threads(how);
    edmtest_expect(p, len, 1, "under seccomp");
    edmtest_fill(p, len, 2);
    edmtest_expect(p, len, 2, "written under seccomp");
    q = edmtest_map(64 * EDMTEST_PAGE);
    edmtest_expect_zero(q, 64 * EDMTEST_PAGE, "mapped under seccomp");
    edmtest_fill(q, 64 * EDMTEST_PAGE, 3);
    EXPECT_CALL(munmap(q, 64 * EDMTEST_PAGE));
    _exit(0);
}

int main(void)
{
    edmtest_begin("kernel_20_seccomp", 60);
    for (int how = 0; how < 2; how++) {
        pid_t pid = fork();

        EXPECT_CALL(pid);
        if (pid == 0)
            child(how);
        edmtest_reap(pid, how ? "prctl(PR_SET_SECCOMP)" : "seccomp with TSYNC");
    }
    edmtest_ok();
}
