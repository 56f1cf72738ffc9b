/*
 * mmap, munmap, mprotect.
 *
 * Where a new mapping goes: private anonymous memory without special wishes is a piece of the
 * arena. A hint inside the arena is honoured when that piece is free. A hint elsewhere is honoured
 * as the kernel would, unmanaged, for small mappings and for low addresses (who asks for those
 * needs them); large ones, the heaps of runtimes, are managed at an address of our choice, which
 * mmap allows.
 */
#include "hooks.h"
#include "managed.h"
#include <errno.h>

#define PUBLIC __attribute__((visibility("default")))
#define HINT_LOW (1ull << 32)    /* addresses below are wanted for themselves */
#define HINT_BYTES (64ull << 20) /* mappings from here on are managed rather than placed */

#ifndef MAP_TYPE
#define MAP_TYPE 0x0f
#endif

int pkey_mprotect(void *addr, size_t len, int prot, int pkey);

static bool can_manage(int prot, int flags)
{
    return shim_config.enabled && (flags & MAP_ANONYMOUS) && (flags & MAP_TYPE) == MAP_PRIVATE &&
           !(prot & ~(PROT_READ | PROT_WRITE)) &&
           !(flags & (MAP_STACK | MAP_GROWSDOWN | MAP_HUGETLB | MAP_LOCKED | MAP_32BIT)) &&
           !atomic_load(&managed_paused);
}

static void populate(uint64_t addr, uint64_t len, int prot, int flags)
{
    if ((flags & (MAP_POPULATE | MAP_NONBLOCK)) != MAP_POPULATE || prot == PROT_NONE)
        return;
    sys_madvise(addr, len, prot & PROT_WRITE ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
}

/* A piece of the arena; 0 when the mapping has to be the kernel's own after all. */
static long map_piece(uint64_t hint, uint64_t len, int prot, int flags)
{
    /* As the kernel does, so that huge pages and leases fit. */
    uint64_t align = len % EDM_CHUNK_SIZE ? EDM_PAGE_SIZE : EDM_CHUNK_SIZE;
    uint64_t addr = hint && arena_take_at(hint, len) ? hint : arena_take(len, align);
    if (!addr)
        return 0;
    if (managed_commit(addr, len, prot)) { /* max_map_count, RLIMIT_DATA */
        arena_give(addr, len);
        return 0;
    }
    populate(addr, len, prot, flags);
    return (long)addr;
}

static long map_anywhere(uint64_t hint, uint64_t len, int prot, int flags, bool place)
{
    hint &= ~(EDM_PAGE_SIZE - 1);
    if (hint && place && !arena_overlaps(hint, len) && (hint < HINT_LOW || len < HINT_BYTES)) {
        long ret = sys_mmap(hint, len, prot, flags | MAP_FIXED_NOREPLACE, -1, 0);
        if (ret == (long)hint)
            return ret;
        if (!sys_is_error(ret)) /* before Linux 4.17 the flag was no more than a hint */
            sys_munmap((uint64_t)ret, len);
    }
    if (managed_refuse(len, prot, flags) || hooks_misc_as_refuses(len))
        return -ENOMEM;
    long ret = map_piece(arena_contains(hint, len) ? hint : 0, len, prot, flags);
    return ret ? ret : sys_mmap(hint, len, prot, flags, -1, 0);
}

/* ---- MAP_FIXED ---- */

/* New zero memory over part of the arena, whatever was there. */
static long fixed_managed(uint64_t addr, uint64_t len, int prot, int flags)
{
    long ret;
    if (managed_refuse(len, prot, flags))
        return -ENOMEM;
    if (managed_attached() && !(managed_states(addr, addr + len) & ARENA_SPECIAL)) {
        struct ops_guard g;
        ops_enter(&g);
        ops_note(&g, EDM_OP_REMOVE, addr, len, 0);
        ret = sys_madvise(addr, len, MADV_DONTNEED);
        ops_leave(&g);
    } else {
        ret = -EINVAL;
    }
    if (ret || managed_tampered()) {
        managed_drop_state(addr, len);
        ret = managed_fresh(addr, len);
        if (ret)
            return ret;
        arena_set_state(addr, len, ARENA_SPECIAL, 0);
        arena_protect(addr, len, PROT_NONE);
    }
    arena_claim(addr, len);
    if (prot == PROT_NONE)
        ret = sys_mprotect(addr, len, PROT_NONE);
    if (!ret)
        ret = managed_commit(addr, len, prot);
    if (ret)
        return ret;
    arena_protect(addr, len, prot);
    populate(addr, len, prot, flags);
    return (long)addr;
}

/* Something else over part of the arena: it stays where the program wants it, unmanaged. */
static long fixed_foreign(uint64_t addr, uint64_t len, int prot, int flags, int fd, int64_t off)
{
    struct ops_guard g;
    managed_drop_state(addr, len);
    arena_claim(addr, len); /* first: a fork in between must not find it free */
    /* nothing may be on its way out: it would take pages of the new mapping */
    struct edm_op *op = managed_attached() ? ops_request_open(EDM_OP_UNLEASE, addr, len, 0) : NULL;
    ops_enter(&g);
    ops_note(&g, EDM_OP_UNMAP, addr, len, 0);
    long ret = sys_mmap(addr, len, prot, (flags & ~MAP_FIXED_NOREPLACE) | MAP_FIXED, fd, off);
    ops_leave(&g);
    ops_close(op);
    if (sys_is_error(ret))
        return ret;
    arena_set_state(addr, len, ARENA_SPECIAL, ARENA_FOREIGN | ARENA_MARKED);
    arena_protect(addr, len, prot);
    return ret;
}

static long map_fixed(uint64_t addr, uint64_t len, int prot, int flags, int fd, int64_t off)
{
    uint64_t start = addr, end = addr + len;
    while (addr < end) {
        bool inside;
        uint64_t n = managed_part(addr, end, &inside) - addr;
        int64_t at = flags & MAP_ANONYMOUS ? 0 : off + (int64_t)(addr - start);
        long ret;
        if (!inside)
            ret = sys_mmap(addr, n, prot, flags, fd, at);
        else if (can_manage(prot, flags))
            ret = fixed_managed(addr, n, prot, flags);
        else
            ret = fixed_foreign(addr, n, prot, flags, fd, at);
        if (sys_is_error(ret))
            return ret;
        addr += n;
    }
    return (long)start;
}

long managed_map_fixed(uint64_t addr, uint64_t len, int prot, int flags)
{
    return map_fixed(addr, len, prot, flags | MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* MAP_FIXED_NOREPLACE: takes the arena's part first, so that nobody else can. */
static long map_noreplace(uint64_t addr, uint64_t len, int prot, int flags, int fd, int64_t off)
{
    uint64_t lo = addr > arena_start() ? addr : arena_start();
    uint64_t arena_end = arena_start() + arena_len();
    uint64_t hi = addr + len < arena_end ? addr + len : arena_end;
    if (!arena_take_at(lo, hi - lo))
        return -EEXIST;
    long ret = 0;
    if (lo > addr)
        ret = sys_mmap(addr, lo - addr, prot, flags, fd, off);
    if (!sys_is_error(ret) && hi < addr + len) {
        ret = sys_mmap(hi, addr + len - hi, prot, flags, fd, off + (int64_t)(hi - addr));
        if (sys_is_error(ret) && lo > addr)
            sys_munmap(addr, lo - addr);
    }
    if (!sys_is_error(ret)) {
        int64_t at = flags & MAP_ANONYMOUS ? 0 : off + (int64_t)(lo - addr);
        ret = map_fixed(lo, hi - lo, prot, (flags & ~MAP_FIXED_NOREPLACE) | MAP_FIXED, fd, at);
    }
    if (!sys_is_error(ret))
        return (long)addr;
    managed_release(lo, hi);
    return ret;
}

long managed_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, int64_t off,
                  uint32_t manage)
{
    uint64_t size = PAGE_UP(len);
    bool fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE);
    if (!shim_config.enabled || len == 0 || size < len || !IS_PAGE_ALIGNED(off))
        return sys_mmap(addr, len, prot, flags, fd, off);
    if (fixed) {
        if (!IS_PAGE_ALIGNED(addr) || addr + size < addr || !arena_overlaps(addr, size))
            return sys_mmap(addr, len, prot, flags, fd, off);
        if (flags & MAP_FIXED_NOREPLACE)
            return map_noreplace(addr, size, prot, flags, fd, off);
        return map_fixed(addr, size, prot, flags, fd, off);
    }
    if (!(shim_config.settings.manage & manage) || !can_manage(prot, flags) || !managed_open())
        return sys_mmap(addr, len, prot, flags, fd, off);
    return map_anywhere(addr, size, prot, flags, manage == EDM_MANAGE_MMAP);
}

/* ---- munmap, mprotect ---- */

long managed_munmap(uint64_t addr, uint64_t len)
{
    uint64_t end = addr + PAGE_UP(len);
    if (!IS_PAGE_ALIGNED(addr) || end <= addr || !arena_overlaps(addr, end - addr))
        return sys_munmap(addr, len);
    while (addr < end) {
        bool inside;
        uint64_t stop = managed_part(addr, end, &inside);
        long ret = inside ? managed_release(addr, stop) : sys_munmap(addr, stop - addr);
        if (ret)
            return ret;
        addr = stop;
    }
    return 0;
}

/* Bytes of the range that are managed and PROT_NONE now. */
static uint64_t inaccessible(uint64_t addr, uint64_t end)
{
    uint64_t sum = 0;
    while (addr < end) {
        bool inside;
        uint64_t stop = managed_part(addr, end, &inside);
        struct arena_piece p;
        if (inside && managed_piece(addr, stop, &p)) {
            if (p.prot == PROT_NONE && !(p.state & ARENA_FOREIGN))
                sum += p.end - addr;
            stop = p.end;
        }
        addr = stop;
    }
    return sum;
}

static long call_mprotect(uint64_t addr, uint64_t len, int prot, int pkey)
{
    if (pkey == -1)
        return sys_mprotect(addr, len, prot);
    return sys_call4(SYS_pkey_mprotect, (long)addr, (long)len, prot, pkey);
}

long managed_mprotect(uint64_t addr, uint64_t len, int prot, int pkey)
{
    uint64_t end = addr + PAGE_UP(len), hole = end;
    if (!IS_PAGE_ALIGNED(addr) || end <= addr || !arena_overlaps(addr, end - addr))
        return call_mprotect(addr, len, prot, pkey);
    bool whole = managed_whole(addr, end, &hole);
    if (hole == addr)
        return -ENOMEM;
    if (prot != PROT_NONE) {
        uint64_t more = inaccessible(addr, hole);
        if (more)
            managed_grow(more);
    }
    long ret = call_mprotect(addr, hole - addr, prot, pkey);
    if (ret)
        return ret;
    arena_protect(addr, hole - addr, prot);
    if (pkey != -1)
        arena_mark(addr, hole - addr);
    return whole ? 0 : -ENOMEM;
}

/* ---- what the program calls ---- */

static void *as_pointer(long ret)
{
    if (sys_is_error(ret)) {
        errno = (int)-ret;
        return MAP_FAILED;
    }
    return (void *)ret;
}

static int as_status(long ret)
{
    if (!ret)
        return 0;
    errno = (int)-ret;
    return -1;
}

PUBLIC void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
    return as_pointer(managed_mmap((uint64_t)addr, len, prot, flags, fd, off, EDM_MANAGE_MMAP));
}

PUBLIC void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t off)
    __attribute__((alias("mmap")));

PUBLIC int munmap(void *addr, size_t len)
{
    return as_status(managed_munmap((uint64_t)addr, len));
}

PUBLIC int mprotect(void *addr, size_t len, int prot)
{
    return as_status(managed_mprotect((uint64_t)addr, len, prot, -1));
}

PUBLIC int pkey_mprotect(void *addr, size_t len, int prot, int pkey)
{
    return as_status(managed_mprotect((uint64_t)addr, len, prot, pkey));
}
