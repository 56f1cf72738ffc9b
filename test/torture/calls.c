#include "torture.h"
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static long raw_call(long nr, long a, long b, long c, long d, long e, long f)
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

bool is_error(long result)
{
    return (unsigned long)result > -4096ul;
}

static bool use_raw(struct worker *w)
{
    if (w->only_raw || settings.calls == CALLS_RAW)
        return true;
    return settings.calls == CALLS_MIXED && worker_chance(w, 50);
}

bool call_may_libc(const struct worker *w)
{
    return !w->only_raw && settings.calls != CALLS_RAW;
}

static long do_mmap(bool raw, uint64_t addr, uint64_t len, int prot, int flags, int fd,
                    uint64_t off)
{
    long ret;

    if (raw)
        return raw_call(SYS_mmap, (long)addr, (long)len, prot, flags, fd, (long)off);
    ret = (long)mmap((void *)addr, len, prot, flags, fd, (off_t)off);
    return ret == -1 ? -errno : ret;
}

long call_mmap_file(struct worker *w, uint64_t addr, uint64_t len, int prot, int flags, int fd,
                    uint64_t off)
{
    bool raw = use_raw(w);
    long ret = do_mmap(raw, addr, len, prot, flags, fd, off);

    note(w, "mmap file", raw, addr, len, off, 0, ret);
    return ret;
}

long call_mmap_at(struct worker *w, uint64_t addr, uint64_t len, int prot, int flags, bool *raw)
{
    long ret;

    *raw = use_raw(w);
    if (!w->only_raw && worker_count(w, P_RAW) + len / PAGE > w->raw_max)
        *raw = false;
    ret = do_mmap(*raw, addr, len, prot, flags, -1, 0);
    note(w, flags & MAP_FIXED ? "mmap FIXED" : "mmap NOREPLACE", *raw, addr, len, (uint64_t)flags,
         0, ret);
    return ret;
}

long call_mmap_libc(struct worker *w, uint64_t addr, uint64_t len, int prot, int flags)
{
    long ret = do_mmap(w->only_raw, addr, len, prot, flags, -1, 0);

    note(w, "mmap new", w->only_raw, addr, 0, is_error(ret) ? 0 : (uint64_t)ret, len, ret);
    return ret;
}

long call_munmap(struct worker *w, uint64_t addr, uint64_t len)
{
    bool raw = use_raw(w);
    long ret;

    if (raw)
        ret = raw_call(SYS_munmap, (long)addr, (long)len, 0, 0, 0, 0);
    else
        ret = munmap((void *)addr, len) ? -errno : 0;
    note(w, "munmap", raw, addr, len, 0, 0, ret);
    return ret;
}

long call_mremap(struct worker *w, uint64_t old, uint64_t old_len, uint64_t len, int flags,
                 uint64_t to)
{
    static const char *const names[] = {"mremap",
                                        "mremap MAYMOVE",
                                        "mremap FIXED?",
                                        "mremap MAYMOVE|FIXED",
                                        "mremap DONTUNMAP?",
                                        "mremap MAYMOVE|DONTUNMAP",
                                        "mremap FIXED|DONTUNMAP?",
                                        "mremap MAYMOVE|FIXED|DONTUNMAP"};
    bool raw = use_raw(w);
    long ret;

    if (raw) {
        ret = raw_call(SYS_mremap, (long)old, (long)old_len, (long)len, flags, (long)to, 0);
    } else {
        ret = (long)mremap((void *)old, old_len, len, flags, (void *)to);
        ret = ret == -1 ? -errno : ret;
    }
    note(w, names[flags & 7], raw, old, old_len, is_error(ret) ? to : (uint64_t)ret, len, ret);
    return ret;
}

long call_madvise(struct worker *w, uint64_t addr, uint64_t len, int advice)
{
    static const struct {
        int advice;
        const char *name;
    } names[] = {{MADV_DONTNEED, "DONTNEED"},
                 {MADV_FREE, "FREE"},
                 {MADV_REMOVE, "REMOVE"},
                 {MADV_WILLNEED, "WILLNEED"},
                 {MADV_COLD, "COLD"},
                 {MADV_PAGEOUT, "PAGEOUT"},
                 {MADV_POPULATE_READ, "POPULATE_READ"},
                 {MADV_POPULATE_WRITE, "POPULATE_WRITE"},
                 {MADV_DONTFORK, "DONTFORK"},
                 {MADV_DOFORK, "DOFORK"},
                 {MADV_WIPEONFORK, "WIPEONFORK"},
                 {MADV_KEEPONFORK, "KEEPONFORK"},
                 {MADV_HUGEPAGE, "HUGEPAGE"},
                 {MADV_NOHUGEPAGE, "NOHUGEPAGE"},
                 {MADV_COLLAPSE, "COLLAPSE"}};
    const char *name = "madvise";
    bool raw = use_raw(w);
    long ret;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (names[i].advice == advice)
            name = names[i].name;
    if (raw)
        ret = raw_call(SYS_madvise, (long)addr, (long)len, advice, 0, 0, 0);
    else
        ret = madvise((void *)addr, len, advice) ? -errno : 0;
    note(w, name, raw, addr, len, 0, 0, ret);
    return ret;
}

long call_mprotect(struct worker *w, uint64_t addr, uint64_t len, int prot)
{
    bool raw = use_raw(w);
    long ret;

    if (raw)
        ret = raw_call(SYS_mprotect, (long)addr, (long)len, prot, 0, 0, 0);
    else
        ret = mprotect((void *)addr, len, prot) ? -errno : 0;
    note(w, "mprotect", raw, addr, len, (uint64_t)prot, 0, ret);
    return ret;
}

long call_fork(struct worker *w, bool *raw)
{
    long ret;

    *raw = use_raw(w);
    if (*raw)
        ret = raw_call(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0);
    else
        ret = (ret = fork()) < 0 ? -errno : ret;
    note(w, "fork", *raw, 0, ~0ul, 0, 0, ret);
    return ret;
}
