/*
 * A debugger looks at evicted memory of a stopped program: an error at once, never a hang and
 * never wrong bytes; after `edm fetch PID` the right ones. Natively the right bytes at once.
 */
#include "../lib/edmtest.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LEN (64 * EDMTEST_PAGE)

static char *p;

static void wait_byte(int fd)
{
    char c;

    EXPECT(read(fd, &c, 1) == 1, "the other process is gone");
}

static double seconds_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void look(pid_t target, int mem, bool must_see)
{
    static uint64_t right[LEN / 8];
    double start = seconds_now();

    edmtest_fill(right, LEN, 1);
    for (size_t off = 0; off < LEN; off += EDMTEST_PAGE) {
        uint64_t word;
        ssize_t n = pread(mem, &word, 8, (off_t)(uintptr_t)(p + off));
        long peeked;

        EXPECT(n == 8 || (n == -1 && !must_see), "/proc/PID/mem: %zd %m", n);
        EXPECT(n != 8 || word == right[off / 8], "/proc/PID/mem: wrong bytes at %zu", off);
        errno = 0;
        peeked = ptrace(PTRACE_PEEKDATA, target, p + off, NULL);
        EXPECT(!errno || !must_see, "PTRACE_PEEKDATA: %m");
        EXPECT(errno || (uint64_t)peeked == right[off / 8], "PTRACE_PEEKDATA: wrong bytes at %zu",
               off);
        EXPECT(n == 8 || errno == EIO, "PTRACE_PEEKDATA of an evicted page: %m");
    }
    EXPECT(seconds_now() - start < 5, "looking took %.1f s", seconds_now() - start);
}

static void debugger(pid_t target, int from)
{
    char path[64];
    int status, mem;

    wait_byte(from);
    EXPECT_CALL(ptrace(PTRACE_SEIZE, target, NULL, NULL));
    EXPECT_CALL(ptrace(PTRACE_INTERRUPT, target, NULL, NULL));
    EXPECT(waitpid(target, &status, __WALL) == target && WIFSTOPPED(status), "did not stop: %m");
    snprintf(path, sizeof(path), "/proc/%d/mem", (int)target);
    EXPECT_CALL(mem = open(path, O_RDONLY | O_CLOEXEC));
    look(target, mem, edmtest_native());
    EXPECT(edmtest_edm("fetch", target) == 0, "edm fetch failed");
    look(target, mem, true);
    EXPECT_CALL(ptrace(PTRACE_DETACH, target, NULL, NULL));
    _exit(0);
}

int main(void)
{
    size_t ballast = 3 * edmtest_budget();
    char *more;
    int down[2];
    pid_t pid;

    edmtest_begin("faults_debugger", 60);
    p = edmtest_map(LEN);
    EXPECT_CALL(pipe(down));
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    EXPECT_CALL(pid = fork());
    if (pid == 0)
        debugger(getppid(), down[0]);
    edmtest_fill(p, LEN, 1);
    more = edmtest_map(ballast); /* not edmtest_pressure: all of it comes back at once */
    edmtest_fill(more, ballast, 2);
    edmtest_evicted_at_least(edmtest_budget());
    edmtest_evict(p, LEN);
    EXPECT(write(down[1], "x", 1) == 1, "pipe: %m");
    edmtest_reap(pid, "debugger");
    edmtest_expect(p, LEN, 1, "memory");
    edmtest_expect(more, ballast, 2, "the other memory");
    edmtest_ok();
}
