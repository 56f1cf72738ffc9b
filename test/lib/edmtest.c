#include "edmtest.h"
#include "monitor.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BUDGET_DEFAULT (16 * EDMTEST_MIB)
#define PRESSURE_SEED 0x70726573ull
#define EVICT_LIMIT_MS 20000

static const char *test_name = "?";
static struct monitor_shared *shared;
static char *ballast;
static size_t ballast_len;

/* The first small memory of a program may be left to the kernel, for the sake of short commands.
 * What tests use is meant to be managed: ask for something larger first. */
static void pass_first_memory(void)
{
    void *p = edmtest_map(4 * EDMTEST_MIB), *volatile q = malloc(4 * EDMTEST_MIB);

    EXPECT(q, "no memory");
    free(q);
    EXPECT_CALL(munmap(p, 4 * EDMTEST_MIB));
}

void edmtest_begin(const char *name, unsigned seconds)
{
    test_name = name;
    shared = monitor_start(name, seconds);
    pass_first_memory();
}

void edmtest_stall_limit(unsigned seconds)
{
    shared->stall_seconds = seconds;
}

void edmtest_beat(void)
{
    __atomic_add_fetch(&shared->beats, 1, __ATOMIC_RELAXED);
}

static void say(const char *verdict, const char *where, const char *fmt, va_list ap)
{
    char line[1024];
    int n = snprintf(line, sizeof(line), "%s %s: %s", verdict, test_name, where);

    n += vsnprintf(line + n, sizeof(line) - (size_t)n, fmt, ap);
    if (n > (int)sizeof(line) - 2)
        n = sizeof(line) - 2;
    line[n++] = '\n';
    if (write(1, line, (size_t)n) != n)
        _exit(2);
}

void edmtest_ok(void)
{
    printf("ok %s\n", test_name);
    exit(fflush(stdout) == 0 ? 0 : 2);
}

void edmtest_skip(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    say("skip", "", fmt, ap);
    va_end(ap);
    exit(EDMTEST_SKIPPED);
}

void edmtest_fail(const char *file, int line, const char *fmt, ...)
{
    const char *base = strrchr(file, '/');
    char where[96];
    va_list ap;

    snprintf(where, sizeof(where), "%s:%d: ", base ? base + 1 : file, line);
    va_start(ap, fmt);
    say("not ok", where, fmt, ap);
    va_end(ap);
    _exit(1);
}

bool edmtest_native(void)
{
    const char *text = getenv("EDM_TEST_NATIVE");

    return text && strcmp(text, "1") == 0;
}

size_t edmtest_budget(void)
{
    struct edmtest_counters c;
    const char *text = getenv("EDM_TEST_BUDGET");

    if (!edmtest_native() && edmtest_counters(0, &c) == 0)
        return c.local_memory;
    return text ? strtoull(text, NULL, 0) : BUDGET_DEFAULT;
}

void *edmtest_map(size_t len)
{
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    EXPECT(p != MAP_FAILED, "mmap of %zu bytes: %m", len);
    return p;
}

static uint64_t word_of(uint64_t seed, uint64_t i)
{
    uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15ull + i * 0xd1342543de82ef95ull;

    x ^= x >> 29;
    return x * 0xbf58476d1ce4e5b9ull;
}

void edmtest_fill(void *p, size_t len, uint64_t seed)
{
    uint64_t *w = p;

    for (size_t i = 0; i < len / 8; i++)
        w[i] = word_of(seed, i);
}

ssize_t edmtest_check(const void *p, size_t len, uint64_t seed)
{
    const uint64_t *w = p;

    for (size_t i = 0; i < len / 8; i++)
        if (w[i] != word_of(seed, i))
            return (ssize_t)(i * 8);
    return -1;
}

ssize_t edmtest_check_zero(const void *p, size_t len)
{
    const char *c = p;

    for (size_t i = 0; i < len; i++)
        if (c[i])
            return (ssize_t)i;
    return -1;
}

void edmtest_expect(const void *p, size_t len, uint64_t seed, const char *what)
{
    ssize_t at = edmtest_check(p, len, seed);

    if (at >= 0) {
        uint64_t found = *(const uint64_t *)((const char *)p + at);

        EXPECT(at < 0, "%s: wrong at %p (page %zd of %zu): found %016lx, expected %016lx", what,
               (const char *)p + at, at / 4096, len / 4096, found, word_of(seed, (uint64_t)at / 8));
    }
}

void edmtest_expect_zero(const void *p, size_t len, const char *what)
{
    ssize_t at = edmtest_check_zero(p, len);

    EXPECT(at < 0, "%s: not zero at %p (page %zd of %zu)", what, (const char *)p + at, at / 4096,
           len / 4096);
}

static void ballast_make(size_t len)
{
    if (ballast)
        munmap(ballast, ballast_len);
    ballast = edmtest_map(len);
    ballast_len = len;
    edmtest_fill(ballast, len, PRESSURE_SEED);
}

void edmtest_pressure(void)
{
    ballast_make(4 * edmtest_budget());
    if (edmtest_native())
        return;
    if (ballast_len < 4 * edmtest_budget()) /* known for sure only when attached */
        ballast_make(4 * edmtest_budget());
    edmtest_evicted_at_least(2 * edmtest_budget());
}

void edmtest_pressure_check(void)
{
    edmtest_expect(ballast, ballast_len, PRESSURE_SEED, "memory of edmtest_pressure");
}

size_t edmtest_present(const void *p, size_t len)
{
    uint64_t entry[512];
    size_t first = (uintptr_t)p / 4096, count = len / 4096, present = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

    EXPECT(fd >= 0, "/proc/self/pagemap: %m");
    for (size_t done = 0; done < count;) {
        size_t n = count - done < 512 ? count - done : 512;

        EXPECT(pread(fd, entry, n * 8, (off_t)((first + done) * 8)) == (ssize_t)(n * 8),
               "pagemap: %m");
        for (size_t i = 0; i < n; i++)
            present += entry[i] >> 63;
        done += n;
    }
    close(fd);
    return present;
}

bool edmtest_try_evict(void *p, size_t len, unsigned ms)
{
    struct timespec pause = {.tv_nsec = 2000000};

    if (edmtest_native())
        return true;
    for (unsigned spent = 0; spent <= ms; spent += 2) {
        if (spent % 200 == 0) /* pages that were just touched may be spared the first time */
            EXPECT(madvise(p, len, MADV_PAGEOUT) == 0, "MADV_PAGEOUT: %m");
        if (edmtest_present(p, len) == 0)
            return true;
        nanosleep(&pause, NULL);
    }
    return false;
}

void edmtest_evict(void *p, size_t len)
{
    EXPECT(edmtest_try_evict(p, len, EVICT_LIMIT_MS),
           "%zu of %zu pages at %p are still resident %d s after MADV_PAGEOUT",
           edmtest_present(p, len), len / 4096, p, EVICT_LIMIT_MS / 1000);
}

uint64_t edmtest_anon_rss(const void *skip, size_t len)
{
    static char line[512];
    FILE *f = fopen("/proc/self/smaps", "re");
    uint64_t total = 0, rss = 0;
    unsigned long start, end, inode, kib;
    char perm[5];
    bool counts = false;

    EXPECT(f, "/proc/self/smaps: %m");
    while (fgets(line, sizeof(line), f)) {
        int name = 0;

        if (sscanf(line, "%lx-%lx %4s %*x %*s %lu %n", &start, &end, perm, &inode, &name) == 4) {
            counts = inode == 0 && perm[3] == 'p' && (!line[name] || line[name] == '\n');
            if (start >= (uintptr_t)skip && end <= (uintptr_t)skip + len)
                counts = false;
            rss = 0;
        } else if (sscanf(line, "Rss: %lu kB", &kib) == 1) {
            rss = kib * 1024;
        } else if (strncmp(line, "VmFlags:", 8) == 0 && counts && !strstr(line, " lo")) {
            total += rss;
        }
    }
    fclose(f);
    return total;
}

long edmtest_raw_fork(void)
{
    long ret;
    register long r10 __asm__("r10") = 0;
    register long r8 __asm__("r8") = 0;

    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(SYS_clone), "D"(SIGCHLD), "S"(0), "d"(0), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return ret;
}

void edmtest_reap(pid_t pid, const char *what)
{
    int status;

    EXPECT(waitpid(pid, &status, 0) == pid, "%s: waitpid: %m", what);
    EXPECT(!WIFSIGNALED(status), "%s: killed by signal %d", what, WTERMSIG(status));
    EXPECT(WEXITSTATUS(status) == 0, "%s: exit status %d", what, WEXITSTATUS(status));
}
