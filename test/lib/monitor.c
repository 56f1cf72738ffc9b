#include "monitor.h"
#include "edmtest.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MONITOR_VARIABLE "EDMTEST_MONITOR"
#define FAMILY_MAX 256

extern char **environ;

static void print_file(const char *format, int pid, int tid, const char *file)
{
    char path[128], text[4096];
    int fd;
    ssize_t n;

    snprintf(path, sizeof(path), format, pid, tid, file);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    n = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (n <= 0)
        return;
    text[n] = 0;
    printf("#     %s: ", file);
    for (ssize_t i = 0; i < n; i++) {
        putchar(text[i]);
        if (text[i] == '\n' && i + 1 < n)
            fputs("#       ", stdout);
    }
    if (text[n - 1] != '\n')
        putchar('\n');
}

/* Calls visit for every thread of pid. */
static void for_each_thread(int pid, void (*visit)(int pid, int tid, void *arg), void *arg)
{
    char path[64];
    DIR *dir;
    struct dirent *e;

    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    dir = opendir(path);
    if (!dir)
        return;
    while ((e = readdir(dir)))
        if (e->d_name[0] != '.')
            visit(pid, atoi(e->d_name), arg);
    closedir(dir);
}

static void print_thread(int pid, int tid, void *arg)
{
    static const char *const files[] = {"comm", "wchan", "syscall", "stack"};

    (void)arg;
    printf("#   process %d thread %d\n", pid, tid);
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
        print_file("/proc/%d/task/%d/%s", pid, tid, files[i]);
}

struct family {
    int pids[FAMILY_MAX];
    size_t count;
};

static void add_children(int pid, int tid, void *arg)
{
    struct family *fam = arg;
    char path[96];
    FILE *f;
    int child;

    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, tid);
    f = fopen(path, "re");
    if (!f)
        return;
    while (fam->count < FAMILY_MAX && fscanf(f, "%d", &child) == 1)
        fam->pids[fam->count++] = child;
    fclose(f);
}

static void report_and_kill(int pid, const char *name, const char *why)
{
    struct family fam = {.pids = {pid}, .count = 1};

    for (size_t i = 0; i < fam.count; i++)
        for_each_thread(fam.pids[i], add_children, &fam);
    printf("not ok %s: %s\n", name, why);
    for (size_t i = 0; i < fam.count; i++)
        for_each_thread(fam.pids[i], print_thread, NULL);
    fflush(stdout);
    if (getenv("EDM_TEST_ON_STALL")) /* where the servers stand */
        (void)!system("$EDM_TEST_ON_STALL");
    for (size_t i = 0; i < fam.count; i++)
        kill(fam.pids[i], SIGKILL);
}

static double seconds_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void watch(int pid, int pidfd, const struct monitor_shared *sh)
{
    double start = seconds_now(), last = start;
    uint64_t beats = sh->beats;

    for (;;) {
        struct pollfd p = {.fd = pidfd, .events = POLLIN};

        if (poll(&p, 1, 500) > 0)
            return;
        if (beats != sh->beats) {
            beats = sh->beats;
            last = seconds_now();
        }
        if (seconds_now() - start > sh->limit_seconds)
            return report_and_kill(pid, sh->name, "time limit reached");
        if (sh->stall_seconds && seconds_now() - last > sh->stall_seconds)
            return report_and_kill(pid, sh->name, "no progress");
    }
}

/* In the spawned copy of the program, before its main. "PID:FD" */
__attribute__((constructor)) static void monitor_main(void)
{
    const char *text = getenv(MONITOR_VARIABLE);
    int pid, fd, pidfd;
    struct monitor_shared *sh;

    if (!text)
        return;
    if (sscanf(text, "%d:%d", &pid, &fd) != 2)
        _exit(1);
    pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    sh = mmap(NULL, sizeof(*sh), PROT_READ, MAP_SHARED, fd, 0);
    if (pidfd < 0 || sh == MAP_FAILED)
        _exit(1);
    switch (fork()) { /* so that the watched program does not have one child more to wait for */
    case -1:
        _exit(1);
    case 0:
        setsid();
        watch(pid, pidfd, sh);
        _exit(0);
    default:
        _exit(0);
    }
}

static char **monitor_environment(int fd)
{
    static char *env[512];
    static char variable[64];
    size_t n = 0;

    snprintf(variable, sizeof(variable), MONITOR_VARIABLE "=%d:%d", getpid(), fd);
    env[n++] = variable;
    for (char **e = environ; *e && n < 510; e++)
        if (strncmp(*e, "LD_PRELOAD=", 11) != 0)
            env[n++] = *e;
    return env;
}

struct monitor_shared *monitor_start(const char *name, unsigned seconds)
{
    struct monitor_shared *sh;
    char *argv[] = {"edmtest-monitor", NULL};
    int status, fd = (int)syscall(SYS_memfd_create, "edmtest", 0);
    pid_t pid;

    EXPECT(fd >= 0 && ftruncate(fd, sizeof(*sh)) == 0, "monitor: %m");
    sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    EXPECT(sh != MAP_FAILED, "monitor: %m");
    snprintf(sh->name, sizeof(sh->name), "%s", name);
    sh->limit_seconds = seconds;
    errno = posix_spawn(&pid, "/proc/self/exe", NULL, NULL, argv, monitor_environment(fd));
    EXPECT(errno == 0, "monitor: %m");
    EXPECT_CALL(waitpid(pid, &status, 0));
    EXPECT(status == 0, "monitor did not start");
    close(fd);
    return sh;
}
