/*
 * jemalloc, linked in as the program's malloc: its settings, and what it asks of the system. Its
 * calls of mmap, munmap, mprotect and madvise are linked to the __wrap_ functions below
 * (-Wl,--wrap), so that they can be told from the program's own.
 */
#include "managed.h"
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define PROBE_BYTES 65536ul /* jemalloc maps less only to try out madvise, at load */

/*
 * retain: address space is kept and reused, not unmapped. Pages that nobody asks for again are
 * given back late and by no thread of its own: each MADV_DONTNEED of managed memory costs an event.
 * No brk, which could not be managed.
 */
extern const char *malloc_conf;
const char *malloc_conf = "retain:true,background_thread:false,dss:disabled,thp:default,"
                          "metadata_thp:disabled,narenas:8,dirty_decay_ms:20000,muzzy_decay_ms:0";

void *__wrap_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off);
int __wrap_munmap(void *addr, size_t len);
int __wrap_mprotect(void *addr, size_t len, int prot);
int __wrap_madvise(void *addr, size_t len, int advice);
ssize_t __wrap_readlink(const char *path, char *buf, size_t len);
long __wrap_syscall(long nr, ...);
double __wrap_log(double x);
double __wrap_exp(double x);
double __wrap_round(double x);

/* ---- memory ---- */

static int as_status(long ret)
{
    if (!ret)
        return 0;
    errno = (int)-ret;
    return -1;
}

void *__wrap_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
    long ret;
    /* jemalloc asks for NORESERVE; malloc must still fail for what can never be stored. */
    flags &= ~MAP_NORESERVE;
    if (len < PROBE_BYTES)
        ret = sys_mmap((uint64_t)addr, len, prot, flags, fd, off);
    else
        ret = managed_mmap((uint64_t)addr, len, prot, flags, fd, off, EDM_MANAGE_MALLOC);
    if (!sys_is_error(ret))
        return (void *)ret;
    errno = (int)-ret;
    return MAP_FAILED;
}

int __wrap_munmap(void *addr, size_t len)
{
    return as_status(managed_munmap((uint64_t)addr, len));
}

int __wrap_mprotect(void *addr, size_t len, int prot)
{
    return as_status(managed_mprotect((uint64_t)addr, len, prot, -1));
}

int __wrap_madvise(void *addr, size_t len, int advice)
{
    return as_status(managed_madvise((uint64_t)addr, len, advice));
}

/* ---- start-up: questions whose answers we know, at a few µs each in every command ---- */

/* /etc/malloc.conf: the settings are ours. */
ssize_t __wrap_readlink(const char *path, char *buf, size_t len)
{
    long ret = -ENOENT;
    if (strcmp(path, "/etc/malloc.conf") != 0)
        ret = sys_call3(SYS_readlink, (long)path, (long)buf, (long)len);
    if (ret >= 0)
        return ret;
    errno = (int)-ret;
    return -1;
}

#define OVERCOMMIT_FD 0x6f766572l /* stands for the open file */

long __wrap_syscall(long nr, ...)
{
    long a[6];
    va_list ap;
    va_start(ap, nr);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(ap, long);
    va_end(ap);
    if (nr == SYS_open && !strcmp((const char *)a[0], "/proc/sys/vm/overcommit_memory"))
        return OVERCOMMIT_FD;
    if (nr == SYS_open && !strncmp((const char *)a[0], "/sys/kernel/mm/", 15)) {
        errno = ENOENT; /* huge pages: leave it to the system's default */
        return -1;
    }
    if (a[0] == OVERCOMMIT_FD && nr == SYS_read) {
        *(char *)a[1] = '1'; /* purged pages stay mapped */
        return 1;
    }
    if (a[0] == OVERCOMMIT_FD && nr == SYS_close)
        return 0;
    long ret = sys_call6(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (!sys_is_error(ret))
        return ret;
    errno = (int)-ret;
    return -1;
}

/* ---- mathematics for jemalloc's profiler, not worth loading libm into every command ---- */

double __wrap_log(double x)
{
    long double r;
    __asm__("fldln2\n\tfxch\n\tfyl2x" : "=t"(r) : "0"((long double)x) : "st(1)");
    return (double)r;
}

double __wrap_exp(double x)
{
    long double r;
    __asm__("fldl2e\n\tfmulp\n\tfld %%st(0)\n\tfrndint\n\tfsub %%st(0), %%st(1)\n\tfxch\n\t"
            "f2xm1\n\tfld1\n\tfaddp\n\tfscale\n\tfstp %%st(1)"
            : "=t"(r)
            : "0"((long double)x)
            : "st(1)", "st(2)");
    return (double)r;
}

double __wrap_round(double x)
{
    return (double)(long long)(x < 0 ? x - 0.5 : x + 0.5);
}
