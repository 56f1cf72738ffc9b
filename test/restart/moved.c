/*
 * moved SERVER-PID-FILE: while the server stands, the program forks, and then moves evicted pages
 * away and others to where they were; the server dies before it knows. Its successor sees the
 * mappings as they are now, and hears only later how they came to be so.
 */
#include "../lib/edmtest.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LEN (64 * EDMTEST_PAGE)
#define ROUNDS 4
#define TICK_US 10000
#define TICKS 1000
#define THREADS_MAX 256

enum move { EVICTED, RESIDENT, MOVES };

struct mover {
    pthread_t thread;
    char *from, *to;
    atomic_bool go;
};

static struct mover movers[MOVES];
static atomic_bool fork_begins;
static atomic_int ready; /* threads that touch nothing new any more */
static int main_tid, server;

/* Without memory of the heap: while the server stands nobody serves it. */
static bool is_mapped(void *p)
{
    unsigned char vec[LEN / EDMTEST_PAGE];

    return syscall(SYS_mincore, p, LEN, vec) == 0;
}

static void *mover_main(void *arg)
{
    struct mover *m = arg;

    ready++;
    while (!m->go)
        usleep(TICK_US);
    if (syscall(SYS_mremap, m->from, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, m->to) != (long)m->to)
        abort();
    return NULL;
}

/* Does the thread wait for its event to be read? */
static bool waits_for_server(int tid)
{
    char path[64], text[64] = "";
    int fd, n = snprintf(path, sizeof(path), "/proc/self/task/%d/wchan", tid);

    if (n < 0 || (fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
        abort();
    (void)!read(fd, text, sizeof(text) - 1);
    close(fd);
    return strncmp(text, "userfaultfd_event", 17) == 0;
}

static void *conductor_main(void *arg)
{
    (void)arg;
    ready++;
    while (!fork_begins)
        usleep(TICK_US);
    for (int i = 0; i < TICKS && !waits_for_server(main_tid); i++)
        usleep(TICK_US);
    if (!waits_for_server(main_tid))
        abort();
    for (int i = 0; i < MOVES; i++) {
        movers[i].go = true;
        for (int t = 0; t < TICKS && is_mapped(movers[i].from); t++)
            usleep(TICK_US);
        if (is_mapped(movers[i].from))
            abort();
    }
    kill(server, SIGKILL);
    return NULL;
}

/* Each server is killed once: its file goes, and that of the next is waited for. */
static int server_pid(const char *path)
{
    int pid = 0;

    for (int tries = 0; pid <= 1 && tries < TICKS; tries++) {
        FILE *f = fopen(path, "re");

        if (!f || fscanf(f, "%d", &pid) != 1)
            usleep(TICK_US);
        if (f)
            fclose(f);
    }
    EXPECT(pid > 1, "no pid in %s", path);
    unlink(path);
    return pid;
}

/* Until each of its threads stands; from the first on without memory of the heap. */
static void server_stop(void)
{
    int tids[THREADS_MAX], n = 0;
    struct dirent *e;
    char path[64], stat[512];

    snprintf(path, sizeof(path), "/proc/%d/task", server);
    DIR *dir = opendir(path);
    EXPECT(dir, "%s: %s", path, strerror(errno));
    while (n < THREADS_MAX && (e = readdir(dir)))
        if (e->d_name[0] != '.')
            tids[n++] = atoi(e->d_name);
    closedir(dir);
    kill(server, SIGSTOP);
    for (int i = 0; i < n;) {
        snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", server, tids[i]);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t got = fd < 0 ? 0 : read(fd, stat, sizeof(stat) - 1);
        close(fd);
        stat[got > 0 ? got : 0] = 0;
        const char *name_end = strrchr(stat, ')');
        if (!name_end || name_end[2] == 'T') /* it has ended, or stands */
            i++;
        else
            usleep(TICK_US);
    }
}

static pid_t fork_while_the_server_stands(void)
{
    pthread_t conductor;
    pid_t pid;

    ready = 0;
    fork_begins = false;
    for (int i = 0; i < MOVES; i++) {
        movers[i].go = false;
        EXPECT(pthread_create(&movers[i].thread, NULL, mover_main, &movers[i]) == 0, "thread");
    }
    EXPECT(pthread_create(&conductor, NULL, conductor_main, NULL) == 0, "thread");
    while (ready < MOVES + 1)
        usleep(TICK_US);
    server_stop();
    fork_begins = true;
    pid = (pid_t)edmtest_raw_fork();
    if (pid == 0)
        return 0;
    pthread_join(conductor, NULL);
    for (int i = 0; i < MOVES; i++)
        pthread_join(movers[i].thread, NULL);
    return pid;
}

/* An address range of nobody's. */
static void *reserve(void)
{
    long ret = syscall(SYS_mmap, NULL, LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    EXPECT(ret > 0, "no address range");
    return (void *)ret;
}

static void round_of(uint64_t seed, const char *path)
{
    char *evicted = edmtest_map(LEN), *resident = edmtest_map(LEN), *away = reserve();
    pid_t pid;

    edmtest_fill(evicted, LEN, seed);
    edmtest_evict(evicted, LEN);
    edmtest_fill(resident, LEN, seed + 1);
    EXPECT(edmtest_present(evicted, LEN) == 0, "not evicted");
    movers[EVICTED].from = evicted;
    movers[EVICTED].to = away;
    movers[RESIDENT].from = resident;
    movers[RESIDENT].to = evicted;
    server = server_pid(path);
    pid = fork_while_the_server_stands();
    EXPECT(pid >= 0, "no child");
    if (pid == 0) {
        edmtest_expect(evicted, LEN, seed, "child: evicted when it was made");
        edmtest_expect(resident, LEN, seed + 1, "child: resident then");
        _exit(0);
    }
    edmtest_expect(away, LEN, seed, "evicted, and moved away");
    edmtest_expect(evicted, LEN, seed + 1, "moved to where those were");
    edmtest_reap(pid, "child");
}

int main(int argc, char **argv)
{
    edmtest_begin("moved", 120);
    EXPECT(argc == 2, "usage: moved SERVER-PID-FILE");
    main_tid = (int)syscall(SYS_gettid);
    edmtest_pressure();
    for (uint64_t seed = 1; seed <= ROUNDS; seed++)
        round_of(seed * 10, argv[1]);
    edmtest_pressure_check();
    edmtest_ok();
}
