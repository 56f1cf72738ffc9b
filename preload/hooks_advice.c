/*
 * madvise, posix_madvise, mlock, mlock2, munlock.
 */
#include "managed.h"
#include <errno.h>
#include <limits.h>

#define PUBLIC __attribute__((visibility("default")))

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

/* ---- madvise ---- */

/* The contents go. MADV_FREE may keep them for a while, which the server's tables could not say:
 * while attached they go at once. */
static long advise_discard(uint64_t addr, uint64_t len, int advice)
{
    struct ops_guard g;
    if (advice == MADV_FREE && managed_attached())
        advice = MADV_DONTNEED;
    ops_enter(&g);
    ops_note(&g, EDM_OP_REMOVE, addr, len, 0);
    long ret = sys_madvise(addr, len, advice);
    ops_leave(&g);
    return ret;
}

/* Guard pages announce nothing: what the server stores for them is discarded first. */
static long advise_guard(uint64_t addr, uint64_t len)
{
    if (managed_attached()) {
        long ret = advise_discard(addr, len, MADV_DONTNEED);
        if (ret)
            return ret;
    }
    arena_mark(addr, len);
    return sys_madvise(addr, len, MADV_GUARD_INSTALL);
}

static long advise_fork(uint64_t addr, uint64_t len, int advice)
{
    bool wipe = advice == MADV_WIPEONFORK || advice == MADV_KEEPONFORK;
    bool on = advice == MADV_WIPEONFORK || advice == MADV_DONTFORK;
    int undo = wipe ? (on ? MADV_KEEPONFORK : MADV_WIPEONFORK) : (on ? MADV_DOFORK : MADV_DONTFORK);
    uint32_t bit = wipe ? ARENA_WIPE : ARENA_DONTFORK;
    long ret = sys_madvise(addr, len, advice);
    if (ret)
        return ret;
    arena_set_state(addr, len, on ? 0 : bit, ARENA_MARKED | (on ? bit : 0));
    if (!managed_attached() ||
        ops_request(wipe ? EDM_OP_WIPEONFORK : EDM_OP_DONTFORK, addr, len, on) != -ENOMEM)
        return 0;
    arena_set_state(addr, len, on ? bit : 0, on ? 0 : bit);
    sys_madvise(addr, len, undo); /* the server keeps thousands of large ranges, not more */
    return -ENOMEM;
}

/* To swap is not where these pages go. */
static long advise_pageout(uint64_t addr, uint64_t len, int advice)
{
    if (!managed_attached())
        return sys_madvise(addr, len, advice);
    ops_request(EDM_OP_PAGEOUT, addr, len, 0);
    return 0;
}

static long advise_piece(uint64_t addr, uint64_t len, int advice)
{
    switch (advice) {
    case MADV_DONTNEED:
    case MADV_DONTNEED_LOCKED:
    case MADV_FREE:
    case MADV_REMOVE:
        return advise_discard(addr, len, advice);
    case MADV_WILLNEED:
        if (managed_attached())
            ops_request(EDM_OP_WILLNEED, addr, len, 0);
        return sys_madvise(addr, len, advice);
    case MADV_COLD:
    case MADV_PAGEOUT:
        return advise_pageout(addr, len, advice);
    case MADV_DONTFORK:
    case MADV_DOFORK:
    case MADV_WIPEONFORK:
    case MADV_KEEPONFORK:
        return advise_fork(addr, len, advice);
    case MADV_GUARD_INSTALL:
        return advise_guard(addr, len);
    case MADV_RANDOM:
    case MADV_SEQUENTIAL:
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
    case MADV_DONTDUMP:
    case MADV_MERGEABLE:
        arena_mark(addr, len);
        return sys_madvise(addr, len, advice);
    default: /* POPULATE_*, COLLAPSE, DODUMP, …: nothing stays, or what stays is the default */
        return sys_madvise(addr, len, advice);
    }
}

/* Memory that mremap took out of the arena is still the server's: it must know who inherits it. */
static long advise_outside(uint64_t addr, uint64_t len, int advice)
{
    long ret = sys_madvise(addr, len, advice);
    bool wipe = advice == MADV_WIPEONFORK || advice == MADV_KEEPONFORK;
    bool away = advice == MADV_DONTFORK || advice == MADV_DOFORK;
    if (!ret && (wipe || away) && managed_attached())
        ops_request(wipe ? EDM_OP_WIPEONFORK : EDM_OP_DONTFORK, addr, PAGE_UP(len),
                    advice == MADV_WIPEONFORK || advice == MADV_DONTFORK);
    return ret;
}

long managed_madvise(uint64_t addr, uint64_t len, int advice)
{
    uint64_t end = addr + PAGE_UP(len);
    if (!IS_PAGE_ALIGNED(addr) || end <= addr || !arena_overlaps(addr, end - addr))
        return advise_outside(addr, len, advice);
    bool holes = false;
    while (addr < end) {
        bool inside;
        struct arena_piece p = {.end = managed_part(addr, end, &inside)};
        long ret;
        if (!inside || (managed_piece(addr, p.end, &p) && (p.state & ARENA_FOREIGN)))
            ret = advise_outside(addr, p.end - addr, advice);
        else if (p.state & ARENA_TAKEN)
            ret = advise_piece(addr, p.end - addr, advice);
        else { /* free arena is a hole; bad advice comes first */
            arena_piece_at(addr, &p);
            p.end = p.end < end ? p.end : end;
            ret = sys_madvise(addr, 0, advice);
            holes = true;
        }
        if (ret == -ENOMEM && !inside) {
            holes = true;
            ret = 0;
        }
        if (ret)
            return ret;
        addr = p.end;
    }
    return holes ? -ENOMEM : 0;
}

/* ---- mlock ---- */

/* Pins (or frees) the managed pieces of the range that are not (or are) pinned already: mlock does
 * not nest, pins do. */
static long pin(uint64_t addr, uint64_t end, bool on)
{
    struct arena_piece p;
    bool inside;
    while (addr < end) {
        uint64_t stop = managed_part(addr, end, &inside);
        if (inside && managed_piece(addr, stop, &p)) {
            stop = p.end;
            bool is_on = p.state & ARENA_LOCKED;
            if (!(p.state & ARENA_FOREIGN) && is_on != on) {
                if (managed_attached() &&
                    ops_request(on ? EDM_OP_PIN : EDM_OP_UNPIN, addr, stop - addr, 0) == -ENOMEM)
                    return -ENOMEM; /* as advise_fork */
                arena_set_state(addr, stop - addr, on ? 0 : ARENA_LOCKED,
                                ARENA_MARKED | (on ? ARENA_LOCKED : 0));
            }
        }
        addr = stop;
    }
    return 0;
}

static long call_mlock(uint64_t addr, uint64_t len, unsigned flags)
{
    if (!flags)
        return sys_call3(SYS_mlock, (long)addr, (long)len, 0);
    return sys_call3(SYS_mlock2, (long)addr, (long)len, flags);
}

long managed_mlock(uint64_t addr, uint64_t len, unsigned flags)
{
    uint64_t start = addr & ~(EDM_PAGE_SIZE - 1), end = PAGE_UP(addr + len), hole;
    if (end <= start || addr + len < addr || !arena_overlaps(start, end - start))
        return call_mlock(addr, len, flags);
    bool whole = managed_whole(start, end, &hole);
    if (!whole)
        end = hole;
    if (end > start) {
        long ret = pin(start, end, true);
        if (!ret)
            ret = call_mlock(start, end - start, flags);
        if (ret == -EPERM || ret == -EINVAL) /* nothing was locked */
            pin(start, end, false);
        if (ret)
            return ret;
    }
    return whole ? 0 : -ENOMEM;
}

long managed_munlock(uint64_t addr, uint64_t len)
{
    uint64_t start = addr & ~(EDM_PAGE_SIZE - 1), end = PAGE_UP(addr + len), hole;
    if (end <= start || addr + len < addr || !arena_overlaps(start, end - start))
        return sys_call3(SYS_munlock, (long)addr, (long)len, 0);
    bool whole = managed_whole(start, end, &hole);
    if (!whole)
        end = hole;
    if (end > start) {
        long ret = sys_call3(SYS_munlock, (long)start, (long)(end - start), 0);
        if (ret)
            return ret;
        pin(start, end, false);
    }
    return whole ? 0 : -ENOMEM;
}

/* ---- what the program calls ---- */

static int as_status(long ret)
{
    if (!ret)
        return 0;
    errno = (int)-ret;
    return -1;
}

PUBLIC int madvise(void *addr, size_t len, int advice)
{
    return as_status(managed_madvise((uint64_t)addr, len, advice));
}

PUBLIC int posix_madvise(void *addr, size_t len, int advice)
{
    /* As in libc: POSIX does not let this one lose data. */
    if (advice == POSIX_MADV_DONTNEED)
        return 0;
    return (int)-managed_madvise((uint64_t)addr, len, advice);
}

PUBLIC int mlock(const void *addr, size_t len)
{
    return as_status(managed_mlock((uint64_t)addr, len, 0));
}

PUBLIC int mlock2(const void *addr, size_t len, unsigned flags)
{
    return as_status(managed_mlock((uint64_t)addr, len, flags));
}

PUBLIC int munlock(const void *addr, size_t len)
{
    return as_status(managed_munlock((uint64_t)addr, len));
}
