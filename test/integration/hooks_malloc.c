/*
 * The malloc family from its first call on: jemalloc is not started until a process needs it, and
 * whichever call needs it first must find it ready. One process each, as it is and with the shim.
 */
#include <errno.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define KIB 1024ul
#define PAGE 4096ul

/* jemalloc's own, which only the shim has here. */
void *mallocx(size_t size, int flags) __attribute__((weak));
size_t nallocx(size_t size, int flags) __attribute__((weak));
int mallctl(const char *name, void *old, size_t *len, void *new, size_t newlen)
    __attribute__((weak));
int mallctlnametomib(const char *name, size_t *mib, size_t *len) __attribute__((weak));
void malloc_stats_print(void (*write)(void *, const char *), void *arg, const char *opts)
    __attribute__((weak));

static bool usable(void *p, size_t size, size_t align)
{
    if (!p || (uintptr_t)p % align || malloc_usable_size(p) < size)
        return false;
    memset(p, 0x5a, size);
    free(p);
    return true;
}

static bool large(void)
{
    return usable(malloc(600 * KIB), 600 * KIB, 16);
}

static bool many(void)
{
    for (int i = 0; i < 40000; i++)
        if (!usable(malloc(200), 200, 16))
            return false;
    return true;
}

static bool aligned(void)
{
    return usable(memalign(64 * KIB, 100), 100, 64 * KIB);
}

static bool grown(void)
{
    char *p = calloc(1, 100 * KIB);
    if (!p || p[PAGE])
        return false;
    p[PAGE] = 7;
    p = realloc(p, 900 * KIB);
    return p && p[PAGE] == 7 && usable(p, 900 * KIB, 16);
}

static bool wrong(void)
{
    void *p = NULL;
    volatile size_t huge = SIZE_MAX / 2;
    errno = 0;
    if (calloc(huge, 4) || errno != ENOMEM)
        return false;
    return posix_memalign(&p, 24, 100) == EINVAL && !p && posix_memalign(&p, 4, 100) == EINVAL;
}

static bool extended(void)
{
    return !mallocx || usable(mallocx(5000, 0), 5000, 16);
}

static bool rounded(void)
{
    return !nallocx || nallocx(5000, 0) >= 5000;
}

static bool asked(void)
{
    const char *version = NULL;
    size_t len = sizeof(version);
    return !mallctl || (!mallctl("version", &version, &len, NULL, 0) && strlen(version) > 2);
}

static bool asked_by_name(void)
{
    size_t mib[4], len = 4;
    return !mallctlnametomib || (!mallctlnametomib("arenas.narenas", mib, &len) && len == 2);
}

static void count(void *arg, const char *text)
{
    *(size_t *)arg += strlen(text);
}

static bool printed(void)
{
    size_t n = 0;
    if (malloc_stats_print)
        malloc_stats_print(count, &n, NULL);
    return !malloc_stats_print || n > 1000;
}

int main(void)
{
    static const struct {
        const char *name;
        bool (*run)(void);
    } firsts[] = {
        {"a large malloc", large},
        {"many small ones", many},
        {"a large alignment", aligned},
        {"realloc", grown},
        {"wrong arguments", wrong},
        {"mallocx", extended},
        {"nallocx", rounded},
        {"mallctl", asked},
        {"mallctlnametomib", asked_by_name},
        {"malloc_stats_print", printed},
    };
    int failures = 0;
    for (size_t i = 0; i < sizeof(firsts) / sizeof(firsts[0]); i++) {
        int status = 0;
        pid_t pid = fork();
        if (pid == 0)
            _exit(!firsts[i].run());
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status) {
            printf("%s first: status %#x\n", firsts[i].name, status);
            failures++;
        }
    }
    return failures != 0;
}
