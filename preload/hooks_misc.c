/*
 * Calls on the whole process that do not go together with our thread, our reserved address space or
 * with pages that are not there. Everything else about them is the kernel's.
 */
#undef _FILE_OFFSET_BITS /* the 64-bit names are functions of their own here */

#include "../config/log.h"
#include "arena.h"
#include "attach.h"
#include "bss.h"
#include "hooks.h"
#include "managed.h"
#include "ops.h"
#include <dlfcn.h>
#include <errno.h>
#include <linux/nsfs.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

static long result(long ret)
{
    if (!sys_is_error(ret))
        return ret;
    errno = (int)-ret;
    return -1;
}

static bool is_on(void)
{
    return shim_state && shim_config.enabled;
}

/* ------------------------------------------------------------------ the end of our thread */

static bool let_go(const char *what)
{
    int saved = errno;
    int rc = attach_detach();
    if (rc)
        edm_warn("%s: memory cannot be given back (error %d): the call may fail", what, -rc);
    errno = saved;
    return !rc;
}

/* A filter may forbid what the LPET does, what attaching needs, even what the hooks do besides the
 * call itself: from then on they add nothing to it. */
static void before_filter(const char *what)
{
    if (!let_go(what))
        return;
    shim_config.enabled = false;
    arena_leave_signals();
}

static void before_seccomp(long op, const void *args)
{
    if (op == SECCOMP_SET_MODE_STRICT || (op == SECCOMP_SET_MODE_FILTER && args))
        before_filter("seccomp");
}

static void before_prctl(long option)
{
    if (option == PR_SET_SECCOMP)
        before_filter("prctl(PR_SET_SECCOMP)");
}

/* These fail in a process with two threads. */
static void before_unshare(long flags)
{
    if (flags & (CLONE_NEWUSER | CLONE_THREAD | CLONE_SIGHAND | CLONE_VM))
        let_go("unshare");
}

static void before_setns(long fd, long type)
{
    if (!type)
        type = sys_ioctl((int)fd, NS_GET_NSTYPE, NULL);
    if (sys_is_error(type) || (type & CLONE_NEWUSER))
        let_go("setns");
}

EXPORT int prctl(int option, ...)
{
    unsigned long a[4];
    va_list ap;
    va_start(ap, option);
    for (int i = 0; i < 4; i++)
        a[i] = va_arg(ap, unsigned long);
    va_end(ap);
    before_prctl(option);
    return (int)result(
        sys_call6(SYS_prctl, option, (long)a[0], (long)a[1], (long)a[2], (long)a[3], 0));
}

EXPORT int unshare(int flags)
{
    before_unshare(flags);
    return (int)result(sys_call3(SYS_unshare, flags, 0, 0));
}

EXPORT int setns(int fd, int type)
{
    before_setns(fd, type);
    return (int)result(sys_call3(SYS_setns, fd, type, 0));
}

/*
 * syscall(2) as it is, but for the calls above: libseccomp and others come that way. In assembly,
 * because it must work for calls that return twice.
 */
__attribute__((used, visibility("hidden"))) void hooks_before_syscall(long nr, long a, long b,
                                                                      long c);

void hooks_before_syscall(long nr, long a, long b, long c)
{
    if (nr == SYS_seccomp)
        before_seccomp(a, (const void *)c);
    else if (nr == SYS_prctl)
        before_prctl(a);
    else if (nr == SYS_unshare)
        before_unshare(a);
    else if (nr == SYS_setns)
        before_setns(a, b);
}

_Static_assert(SYS_prctl == 157 && SYS_unshare == 272 && SYS_setns == 308 && SYS_seccomp == 317,
               "numbers in the assembly below");
__asm__(".section .text.syscall,\"ax\",@progbits\n"
        ".globl syscall\n"
        ".type syscall, @function\n"
        "syscall:\n"
        "	.cfi_startproc\n"
        "	cmpq $157, %rdi\n"
        "	je 2f\n"
        "	cmpq $272, %rdi\n"
        "	je 2f\n"
        "	cmpq $308, %rdi\n"
        "	je 2f\n"
        "	cmpq $317, %rdi\n"
        "	je 2f\n"
        "1:	movq %rdi, %rax\n"
        "	movq %rsi, %rdi\n"
        "	movq %rdx, %rsi\n"
        "	movq %rcx, %rdx\n"
        "	movq %r8, %r10\n"
        "	movq %r9, %r8\n"
        "	movq 8(%rsp), %r9\n"
        "	syscall\n"
        "	cmpq $-4095, %rax\n"
        "	jae 3f\n"
        "	ret\n"
        "2:	pushq %rdi\n"
        "	.cfi_adjust_cfa_offset 8\n"
        "	pushq %rsi\n"
        "	.cfi_adjust_cfa_offset 8\n"
        "	pushq %rdx\n"
        "	.cfi_adjust_cfa_offset 8\n"
        "	pushq %rcx\n"
        "	.cfi_adjust_cfa_offset 8\n"
        "	pushq %r8\n"
        "	.cfi_adjust_cfa_offset 8\n"
        "	pushq %r9\n"
        "	.cfi_adjust_cfa_offset 8\n"
        "	subq $8, %rsp\n"
        "	.cfi_adjust_cfa_offset 8\n"
        "	call hooks_before_syscall\n"
        "	addq $8, %rsp\n"
        "	.cfi_adjust_cfa_offset -8\n"
        "	popq %r9\n"
        "	.cfi_adjust_cfa_offset -8\n"
        "	popq %r8\n"
        "	.cfi_adjust_cfa_offset -8\n"
        "	popq %rcx\n"
        "	.cfi_adjust_cfa_offset -8\n"
        "	popq %rdx\n"
        "	.cfi_adjust_cfa_offset -8\n"
        "	popq %rsi\n"
        "	.cfi_adjust_cfa_offset -8\n"
        "	popq %rdi\n"
        "	.cfi_adjust_cfa_offset -8\n"
        "	jmp 1b\n"
        "3:	negl %eax\n"
        "	pushq %rax\n"
        "	.cfi_adjust_cfa_offset 8\n"
        "	call __errno_location@PLT\n"
        "	popq %rcx\n"
        "	.cfi_adjust_cfa_offset -8\n"
        "	movl %ecx, (%rax)\n"
        "	movq $-1, %rax\n"
        "	ret\n"
        "	.cfi_endproc\n"
        ".size syscall, .-syscall\n"
        ".text\n");

/* ------------------------------------------------------------------ RLIMIT_AS */

/*
 * The kernel counts the reserved arena; the program should not notice. What was set for it, and
 * what the kernel was told instead; a limit changed from outside is shown as it is.
 */
static struct rlimit as_asked, as_told;
static atomic_bool as_set;

static rlim_t limit_plus(rlim_t v, rlim_t more)
{
    return v == RLIM_INFINITY || v + more < v ? RLIM_INFINITY : v + more;
}

static void as_show(struct rlimit *lim)
{
    if (!atomic_load(&as_set))
        return;
    if (lim->rlim_cur == as_told.rlim_cur)
        lim->rlim_cur = as_asked.rlim_cur;
    if (lim->rlim_max == as_told.rlim_max)
        lim->rlim_max = as_asked.rlim_max;
}

static long prlimit_raw(pid_t pid, int which, const struct rlimit *lim, struct rlimit *old)
{
    return sys_call4(SYS_prlimit64, pid, which, (long)lim, (long)old);
}

static long as_change(const struct rlimit *asked)
{
    struct rlimit told, now, shown;
    rlim_t more = arena_len();
    if (asked->rlim_cur > asked->rlim_max)
        return -EINVAL;
    told.rlim_cur = limit_plus(asked->rlim_cur, more);
    told.rlim_max = limit_plus(asked->rlim_max, more);
    long rc = prlimit_raw(0, RLIMIT_AS, &told, NULL);
    if (rc == -EPERM && !prlimit_raw(0, RLIMIT_AS, NULL, &now)) {
        shown = now;
        as_show(&shown);
        if (asked->rlim_max > shown.rlim_max)
            return -EPERM;
        told.rlim_max = now.rlim_max; /* as far as it goes without privilege */
        if (told.rlim_cur > told.rlim_max)
            told.rlim_cur = told.rlim_max;
        rc = prlimit_raw(0, RLIMIT_AS, &told, NULL);
    }
    if (!rc) {
        as_asked = *asked;
        as_told = told;
        atomic_store(&as_set, true);
    }
    return rc;
}

static long limit_call(pid_t pid, int which, const struct rlimit *lim, struct rlimit *old)
{
    if (which != RLIMIT_AS || !is_on() || (pid && pid != sys_getpid()))
        return prlimit_raw(pid, which, lim, old);
    struct rlimit before, asked;
    long rc = prlimit_raw(0, which, NULL, &before);
    if (rc)
        return rc;
    as_show(&before);
    if (lim) {
        asked = *lim;
        rc = as_change(&asked);
    }
    if (!rc && old)
        *old = before;
    return rc;
}

/* Pages of address space, the first number in /proc/self/statm; 0 when it cannot be read. */
static uint64_t space_pages(void)
{
    char buf[32];
    uint64_t n = 0;
    int fd = (int)sys_open("/proc/self/statm", 02000000 /* O_CLOEXEC */, 0);
    if (fd < 0)
        return 0;
    long got = sys_read(fd, buf, sizeof(buf));
    sys_close(fd);
    for (long i = 0; i < got && buf[i] >= '0' && buf[i] <= '9'; i++)
        n = n * 10 + (uint64_t)(buf[i] - '0');
    return n;
}

bool hooks_misc_as_refuses(uint64_t more)
{
    if (!atomic_load(&as_set) || as_asked.rlim_cur == RLIM_INFINITY)
        return false;
    uint64_t space = space_pages() * EDM_PAGE_SIZE;
    uint64_t used = space > arena_len() ? space - arena_len() + arena_taken() : 0;
    return used + more > as_asked.rlim_cur;
}

_Static_assert(sizeof(struct rlimit) == sizeof(struct rlimit64), "one layout for both");

EXPORT int prlimit(pid_t pid, enum __rlimit_resource which, const struct rlimit *lim,
                   struct rlimit *old)
{
    return (int)result(limit_call(pid, (int)which, lim, old));
}

EXPORT int prlimit64(pid_t pid, enum __rlimit_resource which, const struct rlimit64 *lim,
                     struct rlimit64 *old)
{
    return (int)result(
        limit_call(pid, (int)which, (const struct rlimit *)lim, (struct rlimit *)old));
}

EXPORT int setrlimit(__rlimit_resource_t which, const struct rlimit *lim)
{
    return (int)result(limit_call(0, (int)which, lim, NULL));
}

EXPORT int setrlimit64(__rlimit_resource_t which, const struct rlimit64 *lim)
{
    return (int)result(limit_call(0, (int)which, (const struct rlimit *)lim, NULL));
}

EXPORT int getrlimit(__rlimit_resource_t which, struct rlimit *lim)
{
    return (int)result(limit_call(0, (int)which, NULL, lim));
}

EXPORT int getrlimit64(__rlimit_resource_t which, struct rlimit64 *lim)
{
    return (int)result(limit_call(0, (int)which, NULL, (struct rlimit *)lim));
}

/* ------------------------------------------------------------------ mlockall */

static atomic_bool all_pinned;

static void pin_all(bool on)
{
    if (arena_len() && atomic_exchange(&all_pinned, on) != on)
        ops_request(on ? EDM_OP_PIN : EDM_OP_UNPIN, arena_start(), arena_len(), 0);
}

/* Taken pieces are locked now and must not go back as they are; free ones are to be as before. */
static void after_lock_current(void)
{
    struct arena_piece p;
    for (uint64_t at = arena_start(); arena_piece_at(at, &p); at = p.end) {
        if (p.state & ARENA_TAKEN)
            arena_mark(p.start, p.end - p.start);
        else
            sys_call3(SYS_munlock, (long)p.start, (long)(p.end - p.start), 0);
    }
}

/* Reads /proc/self/maps: the next mapping that can be accessed. */
struct maps {
    int fd;
    uint32_t at, len;
    char buf[1024];
};

static int maps_char(struct maps *m)
{
    if (m->at == m->len) {
        long n = sys_read(m->fd, m->buf, sizeof(m->buf));
        if (n <= 0)
            return -1;
        m->at = 0;
        m->len = (uint32_t)n;
    }
    return m->buf[m->at++];
}

static uint64_t maps_hex(struct maps *m)
{
    uint64_t v = 0;
    for (int c; (c = maps_char(m)) >= 0 && c != '-' && c != ' ';)
        v = v << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    return v;
}

static bool maps_next(struct maps *m, uint64_t *start, uint64_t *end)
{
    for (;;) {
        *start = maps_hex(m);
        *end = maps_hex(m);
        int read = maps_char(m), write = maps_char(m), exec = maps_char(m), c;
        while ((c = maps_char(m)) >= 0 && c != '\n')
            ;
        if (c < 0)
            return false;
        if ((read != '-' || write != '-' || exec != '-') && *end < 1ull << 47)
            return true;
    }
}

/*
 * The kernel weighs RLIMIT_MEMLOCK against the whole address space, reserved or not, and says
 * ENOMEM. Then mapping by mapping, without what is free of the arena.
 */
static long lock_each(int flags)
{
    struct maps m;
    uint64_t start, end;
    unsigned how = flags & MCL_ONFAULT ? MLOCK_ONFAULT : 0;
    long rc = 0;
    m.at = m.len = 0;
    m.fd = (int)sys_open("/proc/self/maps", 02000000 /* O_CLOEXEC */, 0);
    if (m.fd < 0)
        return -ENOMEM;
    while (!rc && maps_next(&m, &start, &end))
        rc = sys_call3(SYS_mlock2, (long)start, (long)(end - start), how);
    sys_close(m.fd);
    if (!rc && (flags & MCL_FUTURE))
        rc = sys_call3(SYS_mlockall, flags & ~MCL_CURRENT, 0, 0);
    if (rc)
        sys_call3(SYS_munlockall, 0, 0, 0);
    return rc;
}

EXPORT int mlockall(int flags)
{
    if (!is_on())
        return (int)result(sys_call3(SYS_mlockall, flags, 0, 0));
    bool had = atomic_load(&all_pinned);
    if (flags & MCL_CURRENT)
        pin_all(true);
    long rc = sys_call3(SYS_mlockall, flags, 0, 0);
    if (rc == -ENOMEM && (flags & MCL_CURRENT))
        rc = lock_each(flags);
    if (rc && !had)
        pin_all(false);
    if (!rc && (flags & MCL_CURRENT)) {
        after_lock_current();
        attach_unlock_staging();
    }
    if (!rc)
        atomic_store(&managed_paused, (flags & MCL_FUTURE) != 0);
    return (int)result(rc);
}

EXPORT int munlockall(void)
{
    long rc = sys_call3(SYS_munlockall, 0, 0, 0);
    if (!rc && is_on()) {
        atomic_store(&managed_paused, false);
        pin_all(false);
    }
    return (int)result(rc);
}

AT_LOAD void hooks_misc_forked(void)
{
    if (atomic_load(&all_pinned)) /* what is not written need not be copied */
        atomic_store(&all_pinned, false);
    if (atomic_load(&managed_paused))
        atomic_store(&managed_paused, false);
}

void hooks_misc_attached(void)
{
    if (atomic_load(&all_pinned))
        ops_request(EDM_OP_PIN, arena_start(), arena_len(), 0);
}

/* ------------------------------------------------------------------ memory the kernel does not
 * wait for */

/* Outside of the arena the server knows of a page when it has been touched. */
static void pin_bss(uint64_t at, uint64_t end)
{
    if (!bss_overlaps(&at, &end))
        return;
    for (uint64_t a = at; a < end; a += EDM_PAGE_SIZE)
        (void)*(const volatile char *)a;
    ops_request(EDM_OP_PIN, at, end - at, 1);
}

/* Keeps the pages of [addr, +len) resident for as long as they are this mapping (KERNEL.md 18). The
 * arena's tables remember it for a later attach. */
static void pin_pages(const void *addr, size_t len)
{
    uint64_t at = (uint64_t)addr & ~(EDM_PAGE_SIZE - 1);
    uint64_t end = PAGE_UP((uint64_t)addr + len);
    struct arena_piece p;
    int saved = errno;
    if (!is_on() || end <= at)
        return;
    pin_bss(at, end);
    if (!arena_overlaps(at, end - at))
        return;
    if (at < arena_start())
        at = arena_start();
    for (; at < end && arena_piece_at(at, &p); at = p.end) {
        uint64_t stop = p.end < end ? p.end : end;
        if (!(p.state & ARENA_TAKEN) || (p.state & (ARENA_FOREIGN | ARENA_PINNED)))
            continue;
        ops_request(EDM_OP_PIN, at, stop - at, 1);
        arena_set_state(at, stop - at, 0, ARENA_MARKED | ARENA_PINNED);
    }
    errno = saved;
}

/* glibc's own name for it: needs no dlsym, which may allocate, inside jemalloc's initialisation. */
int libc_pthread_mutex_init(pthread_mutex_t *m, const pthread_mutexattr_t *attr);
__asm__(".symver libc_pthread_mutex_init, __pthread_mutex_init@GLIBC_2.2.5");

EXPORT int pthread_mutex_init(pthread_mutex_t *m, const pthread_mutexattr_t *attr)
{
    int protocol = PTHREAD_PRIO_NONE, robust = PTHREAD_MUTEX_STALLED;
    int rc = libc_pthread_mutex_init(m, attr);
    if (rc || !attr)
        return rc;
    pthread_mutexattr_getprotocol(attr, &protocol);
    pthread_mutexattr_getrobust(attr, &robust);
    if (protocol != PTHREAD_PRIO_NONE || robust != PTHREAD_MUTEX_STALLED)
        pin_pages(m, sizeof(*m));
    return 0;
}

EXPORT int pthread_attr_setstack(pthread_attr_t *attr, void *stack, size_t size)
{
    static int (*_Atomic real)(pthread_attr_t *, void *, size_t);
    if (!real)
        real = (int (*)(pthread_attr_t *, void *, size_t))dlsym(RTLD_NEXT, "pthread_attr_setstack");
    int rc = real(attr, stack, size);
    if (!rc)
        pin_pages(stack, size);
    return rc;
}

/* The size is set on its own, before or after: pinned is what the attribute says now, or 64 KiB. */
EXPORT int pthread_attr_setstackaddr(pthread_attr_t *attr, void *top)
{
    static int (*_Atomic real)(pthread_attr_t *, void *);
    size_t size = 0;
    if (!real)
        real = (int (*)(pthread_attr_t *, void *))dlsym(RTLD_NEXT, "pthread_attr_setstackaddr");
    int rc = real(attr, top);
    if (rc)
        return rc;
    if (pthread_attr_getstacksize(attr, &size) || !size || size > (uint64_t)top)
        size = 65536;
    pin_pages((char *)top - size, size);
    return 0;
}
