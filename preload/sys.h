/*
 * Raw system calls: results as the kernel gives them (-errno on failure), no errno, no TLS, no
 * cancellation point, nothing of libc's state. Callable from the LPET, from signal handlers, and
 * before the constructor. None of them meets our own hooks.
 */
#ifndef EDM_SYS_H
#define EDM_SYS_H

#include <linux/futex.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>

#if !defined(__x86_64__)
#error "raw system calls are written for x86-64 only"
#endif

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_COLD
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* One call with six arguments; unused ones cost a register each and nothing else. */
static inline long sys_call6(long nr, long a, long b, long c, long d, long e, long f)
{
    long ret;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}

static inline long sys_call3(long nr, long a, long b, long c)
{
    long ret;
    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(nr), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory");
    return ret;
}

static inline long sys_call4(long nr, long a, long b, long c, long d)
{
    return sys_call6(nr, a, b, c, d, 0, 0);
}

/* True for a result that is -errno. */
static inline int sys_is_error(long ret)
{
    return (unsigned long)ret > -4096ul;
}

/* ---- memory ---- */
static inline long sys_mmap(uint64_t addr, size_t len, int prot, int flags, int fd, off_t off)
{
    return sys_call6(SYS_mmap, (long)addr, (long)len, prot, flags, fd, off);
}

static inline long sys_munmap(uint64_t addr, size_t len)
{
    return sys_call3(SYS_munmap, (long)addr, (long)len, 0);
}

static inline long sys_mprotect(uint64_t addr, size_t len, int prot)
{
    return sys_call3(SYS_mprotect, (long)addr, (long)len, prot);
}

static inline long sys_madvise(uint64_t addr, size_t len, int advice)
{
    return sys_call3(SYS_madvise, (long)addr, (long)len, advice);
}

static inline long sys_mremap(uint64_t old, size_t old_len, size_t new_len, int flags, uint64_t to)
{
    return sys_call6(SYS_mremap, (long)old, (long)old_len, (long)new_len, flags, (long)to, 0);
}

/* ---- descriptors ---- */
static inline long sys_ioctl(int fd, unsigned long req, const void *arg)
{
    return sys_call3(SYS_ioctl, fd, (long)req, (long)arg);
}

static inline long sys_read(int fd, void *buf, size_t len)
{
    return sys_call3(SYS_read, fd, (long)buf, (long)len);
}

static inline long sys_write(int fd, const void *buf, size_t len)
{
    return sys_call3(SYS_write, fd, (long)buf, (long)len);
}

static inline long sys_open(const char *path, int flags, int mode)
{
    return sys_call4(SYS_openat, -100 /* AT_FDCWD */, (long)path, flags, mode);
}

static inline long sys_close(int fd)
{
    return sys_call3(SYS_close, fd, 0, 0);
}

static inline long sys_fcntl(int fd, int cmd, long arg)
{
    return sys_call3(SYS_fcntl, fd, cmd, arg);
}

static inline long sys_poll(void *fds, unsigned n, int timeout_ms)
{
    return sys_call3(SYS_poll, (long)fds, n, timeout_ms);
}

static inline long sys_sendmsg(int fd, const void *msg, int flags)
{
    return sys_call3(SYS_sendmsg, fd, (long)msg, flags);
}

static inline long sys_recvmsg(int fd, void *msg, int flags)
{
    return sys_call3(SYS_recvmsg, fd, (long)msg, flags);
}

/* ---- threads, signals, time ---- */
static inline int sys_gettid(void)
{
    return (int)sys_call3(SYS_gettid, 0, 0, 0);
}

static inline int sys_getpid(void)
{
    return (int)sys_call3(SYS_getpid, 0, 0, 0);
}

/* how: SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK; masks are the kernel's 64 bits. */
static inline long sys_sigprocmask(int how, const uint64_t *set, uint64_t *old)
{
    return sys_call4(SYS_rt_sigprocmask, how, (long)set, (long)old, sizeof(uint64_t));
}

/* Waits while *word == val; timeout relative, NULL = none. Shared between processes unless op has
 * FUTEX_PRIVATE_FLAG. */
static inline long sys_futex_wait(const void *word, uint32_t val, const struct timespec *timeout,
                                  int private_flag)
{
    return sys_call6(SYS_futex, (long)word, FUTEX_WAIT | private_flag, val, (long)timeout, 0, 0);
}

static inline long sys_futex_wake(const void *word, int n, int private_flag)
{
    return sys_call3(SYS_futex, (long)word, FUTEX_WAKE | private_flag, n);
}

static inline long sys_sched_yield(void)
{
    return sys_call3(SYS_sched_yield, 0, 0, 0);
}

__attribute__((noreturn)) static inline void sys_exit_group(int code)
{
    for (;;)
        sys_call3(SYS_exit_group, code, 0, 0);
}

#endif
