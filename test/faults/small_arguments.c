/* System calls whose structures, strings and vectors are on evicted pages. */
#include "../lib/edmtest.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SLOT(i) (memory + (i)*EDMTEST_PAGE)

static char *memory;

static void evict(void)
{
    edmtest_evict(memory, 8 * EDMTEST_PAGE);
}

static void paths_and_structures(void)
{
    struct stat *st = (struct stat *)SLOT(1);
    struct timespec *ts = (struct timespec *)SLOT(2);
    int fd;

    strcpy(SLOT(0), "/dev/zero");
    memset(SLOT(1), 1, sizeof(*st));
    evict();
    EXPECT_CALL(stat(SLOT(0), st));
    EXPECT(S_ISCHR(st->st_mode), "stat filled in a wrong mode");
    evict();
    EXPECT_CALL(fd = open(SLOT(0), O_RDONLY | O_CLOEXEC));
    close(fd);
    memset(ts, 1, sizeof(*ts));
    evict();
    EXPECT_CALL(syscall(SYS_clock_gettime, CLOCK_REALTIME, ts));
    EXPECT(ts->tv_nsec < 1000000000 && ts->tv_sec > 1600000000, "clock_gettime: %ld.%09ld",
           ts->tv_sec, ts->tv_nsec);
    *ts = (struct timespec){.tv_nsec = 1000};
    evict();
    EXPECT_CALL(syscall(SYS_nanosleep, ts, NULL));
    memset(SLOT(3), 'x', 256);
    evict();
    EXPECT(syscall(SYS_getcwd, SLOT(3), 256) > 0, "getcwd: %m");
    EXPECT(SLOT(3)[0] == '/' && strlen(SLOT(3)) < 256, "getcwd: wrong bytes");
}

static void vectors(void)
{
    struct iovec *v = (struct iovec *)SLOT(4);
    struct pollfd *p = (struct pollfd *)SLOT(5);
    int *count = (int *)SLOT(6), fds[2];

    EXPECT_CALL(pipe(fds));
    strcpy(SLOT(0), "abcdef");
    v[0] = (struct iovec){SLOT(0), 3};
    v[1] = (struct iovec){SLOT(0) + 3, 3};
    evict();
    EXPECT(writev(fds[1], v, 2) == 6, "writev with an evicted vector: %m");
    p[0] = (struct pollfd){.fd = fds[0], .events = POLLIN};
    *count = -1;
    evict();
    EXPECT(poll(p, 1, 0) == 1 && p->revents == POLLIN, "poll with an evicted array");
    evict();
    EXPECT_CALL(ioctl(fds[0], FIONREAD, count));
    EXPECT(*count == 6, "FIONREAD: %d", *count);
    close(fds[0]), close(fds[1]);
}

/* execve copies its strings and vectors from the old memory. */
static void exec_arguments(void)
{
    char **argv = (char **)SLOT(1), **env = (char **)SLOT(2);
    pid_t pid;

    strcpy(SLOT(0), "/bin/sh");
    strcpy(SLOT(3), "-c");
    strcpy(SLOT(4), "test \"$EVICTED\" = yes");
    strcpy(SLOT(5), "EVICTED=yes");
    argv[0] = SLOT(0), argv[1] = SLOT(3), argv[2] = SLOT(4), argv[3] = NULL;
    env[0] = SLOT(5), env[1] = NULL;
    evict();
    EXPECT_CALL(pid = fork());
    if (pid == 0) {
        execve(argv[0], argv, env);
        _exit(9);
    }
    edmtest_reap(pid, "exec with evicted arguments");
}

int main(void)
{
    struct edmtest_counters before;

    edmtest_begin("faults_small_arguments", 60);
    memory = edmtest_map(8 * EDMTEST_PAGE);
    edmtest_pressure();
    before = edmtest_now();
    paths_and_structures();
    vectors();
    exec_arguments();
    edmtest_came_back(&before, 8);
    edmtest_ok();
}
