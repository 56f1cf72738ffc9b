/*
 * mremap.
 *
 * Arena memory moves by MREMAP_DONTUNMAP: the source stays mapped (and registered), so there is
 * never a hole into which the kernel could put something else. The server registers the range
 * first (EDM_OP_UNLEASE), so that pieces split by leases are one mapping again.
 */
#include "managed.h"
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#define PUBLIC __attribute__((visibility("default")))
#define KNOWN_FLAGS (MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP)
#define MOVE_FLAGS (MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP)
#define TASK_END (1ull << 47)

struct remap {
    uint64_t old, old_len, new_len, to;
    int flags;
};

/* ---- the move itself ---- */

/* Moves mappings between two ranges that stay mapped. What is one range for us may be several
 * mappings for the kernel (EFAULT): then by halves. All or nothing. */
static long move_range(uint64_t from, uint64_t to, uint64_t len)
{
    long ret = sys_mremap(from, len, len, MOVE_FLAGS, to);
    if (ret != -EFAULT || len <= EDM_PAGE_SIZE)
        return sys_is_error(ret) ? ret : 0;
    uint64_t half = PAGE_UP(len / 2);
    ret = move_range(from, to, half);
    if (ret)
        return ret;
    ret = move_range(from + half, to + half, len - half);
    if (ret)
        move_range(to, from, half);
    return ret;
}

static long move_noted(uint64_t from, uint64_t to, uint64_t len)
{
    struct ops_guard g;
    bool attached = managed_attached();
    /* nothing is on its way out of the source, nor out of what was at the destination before */
    struct edm_op *src = attached ? ops_request_open(EDM_OP_UNLEASE, from, len, 0) : NULL;
    struct edm_op *dst = attached ? ops_request_open(EDM_OP_UNLEASE, to, len, 0) : NULL;
    ops_enter(&g);
    ops_note(&g, EDM_OP_REMAP, from, len, to);
    long ret = move_range(from, to, len);
    ops_leave(&g);
    ops_close(dst);
    ops_close(src);
    return ret;
}

/* What was asked for pages of `p` holds at their new place, `at`, too. The kernel knows already for
 * what it moved (moved = true); for new pages at the end of a grown range it has to be told. */
static void state_follow(uint64_t at, uint64_t len, const struct arena_piece *p, bool moved)
{
    bool attached = managed_attached();
    arena_set_state(at, len, ARENA_SPECIAL, p->state & ARENA_SPECIAL);
    if (p->state & ARENA_LOCKED) {
        if (attached)
            ops_request(EDM_OP_PIN, at, len, 0);
        if (!moved)
            sys_call3(SYS_mlock, (long)at, (long)len, 0);
    }
    if (p->state & ARENA_PINNED && attached)
        ops_request(EDM_OP_PIN, at, len, 1);
    if (p->state & ARENA_WIPE) {
        if (!moved)
            sys_madvise(at, len, MADV_WIPEONFORK);
        if (attached)
            ops_request(EDM_OP_WIPEONFORK, at, len, 1);
    }
    if (p->state & ARENA_DONTFORK) {
        if (!moved)
            sys_madvise(at, len, MADV_DONTFORK);
        if (attached)
            ops_request(EDM_OP_DONTFORK, at, len, 1);
    }
}

/* The record of [from, +len) is that of [to, +len) from now on. */
static void record_follow(uint64_t from, uint64_t to, uint64_t len)
{
    struct arena_piece p;
    for (uint64_t at = from; managed_piece(at, from + len, &p); at = p.end) {
        arena_protect(to + (at - from), p.end - at, p.prot);
        if (p.state & ARENA_SPECIAL)
            state_follow(to + (at - from), p.end - at, &p, true);
    }
}

/* Ends a move: the source is free, or empty memory when the program asked for that. */
static void source_done(const struct remap *r, uint64_t len)
{
    struct arena_piece p;
    if (!(r->flags & MREMAP_DONTUNMAP)) {
        managed_release(r->old, r->old + len);
        return;
    }
    for (uint64_t at = r->old; managed_piece(at, r->old + len, &p); at = p.end) {
        if (!(p.state & ARENA_LOCKED))
            continue;
        if (managed_attached())
            ops_request(EDM_OP_UNPIN, at, p.end - at, 0);
        arena_set_state(at, p.end - at, ARENA_LOCKED, 0);
    }
}

/* The rights of the mapping at `addr`: the kernel's word, for raw system calls change them, too. */
static int rights_at(uint64_t addr, const struct arena_piece *p)
{
    int prot = managed_attached() ? ops_request(EDM_OP_RIGHTS, addr, EDM_PAGE_SIZE, 0) : -ENOSYS;
    return prot < 0 ? p->prot : prot;
}

/* New memory behind the moved part, as the last page of the source is. */
static long tail_commit(const struct remap *r, uint64_t at, uint64_t len)
{
    struct arena_piece p;
    if (!managed_piece(r->old + r->old_len - EDM_PAGE_SIZE, r->old + r->old_len, &p))
        return -EFAULT;
    int prot = rights_at(p.start, &p);
    if (managed_refuse(len, prot, 0))
        return -ENOMEM;
    long ret = managed_commit(at, len, prot);
    if (!ret && (p.state & ARENA_SPECIAL))
        state_follow(at, len, &p, false);
    return ret;
}

/* ---- where to ---- */

static long grow_in_place(const struct remap *r)
{
    uint64_t end = r->old + r->old_len, more = r->new_len - r->old_len;
    if (!arena_take_at(end, more))
        return -ENOMEM;
    long ret = tail_commit(r, end, more);
    if (ret) {
        managed_release(end, end + more);
        return ret;
    }
    return (long)r->old;
}

static long move_anywhere(const struct remap *r)
{
    uint64_t align = r->new_len % EDM_CHUNK_SIZE ? EDM_PAGE_SIZE : EDM_CHUNK_SIZE;
    uint64_t to = arena_take(r->new_len, align);
    long ret = 0;
    if (!to)
        return -ENOMEM;
    if (r->new_len > r->old_len)
        ret = tail_commit(r, to + r->old_len, r->new_len - r->old_len);
    if (!ret)
        ret = move_noted(r->old, to, r->old_len);
    if (ret) {
        managed_release(to, to + r->new_len);
        return ret;
    }
    record_follow(r->old, to, r->old_len);
    source_done(r, r->old_len);
    return (long)to;
}

/* MREMAP_FIXED, all of the new range in the arena. old_len is at most new_len by now. */
static long move_inside(const struct remap *r)
{
    managed_drop_state(r->to, r->new_len);
    arena_claim(r->to, r->new_len);
    long ret = 0;
    if (r->new_len > r->old_len) {
        ret = managed_map_fixed(r->to + r->old_len, r->new_len - r->old_len, PROT_NONE,
                                MAP_NORESERVE);
        if (!sys_is_error(ret))
            ret = tail_commit(r, r->to + r->old_len, r->new_len - r->old_len);
        if (ret)
            return ret;
    }
    ret = move_noted(r->old, r->to, r->old_len);
    if (ret)
        return ret;
    arena_set_state(r->to, r->old_len, ARENA_SPECIAL, 0);
    record_follow(r->old, r->to, r->old_len);
    source_done(r, r->old_len);
    return (long)r->to;
}

/* Copies what is not zero. */
static void copy_pages(uint64_t from, uint64_t to, uint64_t len)
{
    for (uint64_t off = 0; off < len; off += EDM_PAGE_SIZE) {
        const uint64_t *s = (const uint64_t *)(from + off);
        for (size_t i = 0; i < EDM_PAGE_SIZE / sizeof(*s); i++) {
            if (s[i]) {
                memcpy((void *)(to + off), s, EDM_PAGE_SIZE);
                break;
            }
        }
    }
}

/* Outside of the arena the kernel keeps what was asked for pages of a piece. */
static void state_outside(uint64_t at, uint64_t len, uint32_t state)
{
    if (state & ARENA_WIPE)
        managed_madvise(at, len, MADV_WIPEONFORK);
    if (state & ARENA_DONTFORK)
        managed_madvise(at, len, MADV_DONTFORK);
    if (state & ARENA_LOCKED)
        sys_call3(SYS_mlock, (long)at, (long)len, 0);
}

static void copy_piece(const struct remap *r, struct arena_piece *p)
{
    uint64_t to = r->to + (p->start - r->old), n = p->end - p->start;
    p->prot = rights_at(p->start, p);
    if (!(p->prot & PROT_READ))
        sys_mprotect(p->start, n, PROT_READ);
    copy_pages(p->start, to, n);
    if (!(p->prot & PROT_READ))
        sys_mprotect(p->start, n, p->prot);
    managed_mprotect(to, n, p->prot, -1);
    state_outside(to, n, p->state);
}

/* To where the server does not serve: the contents are fetched and copied. */
static long move_by_copy(const struct remap *r)
{
    struct arena_piece p = {.prot = PROT_NONE};
    struct ops_guard g;
    long ret = managed_map_fixed(r->to, r->new_len, PROT_READ | PROT_WRITE, 0);
    if (sys_is_error(ret))
        return ret;
    for (uint64_t at = r->old; managed_piece(at, r->old + r->old_len, &p); at = p.end)
        copy_piece(r, &p);
    if (r->new_len > r->old_len) { /* as the last page of the source is */
        managed_mprotect(r->to + r->old_len, r->new_len - r->old_len, p.prot, -1);
        state_outside(r->to + r->old_len, r->new_len - r->old_len, p.state);
    }
    if (r->flags & MREMAP_DONTUNMAP) {
        ops_enter(&g);
        ops_note(&g, EDM_OP_REMOVE, r->old, r->old_len, 0);
        sys_madvise(r->old, r->old_len, MADV_DONTNEED);
        ops_leave(&g);
    }
    source_done(r, r->old_len);
    return (long)r->to;
}

static long move_outside(const struct remap *r)
{
    if (managed_attached() || arena_overlaps(r->to, r->new_len))
        return move_by_copy(r);
    struct arena_piece p;
    if (!managed_piece(r->old + r->old_len - EDM_PAGE_SIZE, r->old + r->old_len, &p))
        return -EFAULT;
    /* First map all of it: the tail stays, and halves find something to be moved over. */
    long ret = sys_mmap(r->to, r->new_len, p.prot, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!sys_is_error(ret))
        ret = move_range(r->old, r->to, r->old_len);
    if (ret)
        return ret;
    if (r->new_len > r->old_len)
        state_outside(r->to + r->old_len, r->new_len - r->old_len, p.state);
    source_done(r, r->old_len);
    return (long)r->to;
}

/* ---- mappings that are not ours, in the arena or on their way there ---- */

/* The kernel may have left a hole in the arena: fills it, unless somebody was faster. */
static void fill_hole(uint64_t addr, uint64_t len)
{
    long ret = sys_mmap(addr, len, PROT_NONE,
                        MAP_FIXED_NOREPLACE | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ret != (long)addr)
        return;
    sys_madvise(addr, len, MADV_DONTDUMP);
    if (managed_attached())
        ops_request(EDM_OP_REFRESHED, addr, len, 0);
    arena_give(addr, len);
}

static long remap_foreign(const struct remap *r)
{
    bool fixed = r->flags & MREMAP_FIXED;
    uint64_t lo = r->to > arena_start() ? r->to : arena_start();
    uint64_t end = r->to + r->new_len, arena_end = arena_start() + arena_len();
    uint64_t hi = end < arena_end ? end : arena_end;
    bool into = fixed && arena_overlaps(r->to, r->new_len);
    struct arena_piece p = {.prot = PROT_READ | PROT_WRITE};
    struct ops_guard g;
    /* nothing may be on its way out: it would take pages of the mapping that comes */
    struct edm_op *op =
        into && managed_attached() ? ops_request_open(EDM_OP_UNLEASE, lo, hi - lo, 0) : NULL;

    managed_piece(r->old, r->old + EDM_PAGE_SIZE, &p);
    ops_enter(&g);
    if (into) {
        managed_drop_state(lo, hi - lo);
        ops_note(&g, EDM_OP_UNMAP, lo, hi - lo, 0);
    }
    long ret = sys_mremap(r->old, r->old_len, r->new_len, r->flags, r->to);
    ops_leave(&g);
    ops_close(op);
    if (into && sys_is_error(ret))
        fill_hole(lo, hi - lo);
    if (sys_is_error(ret))
        return ret;
    if (into) {
        arena_claim(lo, hi - lo);
        arena_set_state(lo, hi - lo, ARENA_SPECIAL, ARENA_FOREIGN | ARENA_MARKED);
        arena_protect(lo, hi - lo, p.prot);
    }
    if (ret != (long)r->old && r->old_len && !(r->flags & MREMAP_DONTUNMAP) &&
        arena_contains(r->old, r->old_len))
        fill_hole(r->old, r->old_len);
    return ret;
}

/* ---- memory that was there before us ---- */

/* Which of the n <= 64 pages from addr on have contents; all, when that cannot be told. */
static uint64_t pages_used(int pagemap, uint64_t addr, unsigned n)
{
    uint64_t entry[64], used = 0;
    long got = sys_call4(SYS_pread64, pagemap, (long)entry, (long)(n * sizeof(*entry)),
                         (long)(addr / EDM_PAGE_SIZE * sizeof(*entry)));
    if (got != (long)(n * sizeof(*entry)))
        return UINT64_MAX;
    for (unsigned i = 0; i < n; i++)
        used |= (uint64_t)(entry[i] >> 62 != 0) << i; /* present, or swapped */
    return used;
}

static void copy_used(uint64_t from, uint64_t to, uint64_t len)
{
    int pagemap = (int)sys_open("/proc/self/pagemap", 02000000 /* O_CLOEXEC */, 0);
    for (uint64_t off = 0; off < len; off += 64 * EDM_PAGE_SIZE) {
        uint64_t n = (len - off) / EDM_PAGE_SIZE;
        n = n < 64 ? n : 64;
        uint64_t used = pages_used(pagemap, from + off, (unsigned)n);
        for (uint64_t i = 0; i < n; i++)
            if (used >> i & 1)
                copy_pages(from + off + i * EDM_PAGE_SIZE, to + off + i * EDM_PAGE_SIZE,
                           EDM_PAGE_SIZE);
    }
    if (pagemap >= 0)
        sys_close(pagemap);
}

long managed_adopt(uint64_t addr, uint64_t len)
{
    const int prot = PROT_READ | PROT_WRITE;
    long from = managed_mmap(0, len, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, EDM_MANAGE_BSS);
    if (sys_is_error(from))
        return from;
    long ret = -ENOMEM;
    if (arena_contains((uint64_t)from, len)) {
        copy_used(addr, (uint64_t)from, len);
        ret = move_noted((uint64_t)from, addr, len);
    }
    managed_munmap((uint64_t)from, len);
    return ret;
}

/* ---- the call ---- */

/* What the kernel checks before it looks at any mapping. */
static long check(const struct remap *r)
{
    bool fixed = r->flags & MREMAP_FIXED, keep = r->flags & MREMAP_DONTUNMAP;
    if ((r->flags & ~KNOWN_FLAGS) || ((fixed || keep) && !(r->flags & MREMAP_MAYMOVE)))
        return -EINVAL;
    if (!IS_PAGE_ALIGNED(r->old) || !r->new_len || r->new_len > TASK_END ||
        (keep && r->old_len != r->new_len) || r->old + r->old_len < r->old)
        return -EINVAL;
    if (!fixed)
        return 0;
    if (!IS_PAGE_ALIGNED(r->to) || r->to > TASK_END - r->new_len ||
        (r->old + r->old_len > r->to && r->to + r->new_len > r->old))
        return -EINVAL;
    return 0;
}

/* True when the pages are one mapping as far as we know. */
static bool is_uniform(const struct remap *r)
{
    struct arena_piece p;
    return managed_piece(r->old, r->old + r->old_len, &p) && p.end == r->old + r->old_len;
}

static long remap_managed(struct remap *r)
{
    bool fixed = r->flags & MREMAP_FIXED;
    if (!r->old_len) /* only shared mappings can be duplicated */
        return -EINVAL;
    if (r->new_len < r->old_len) {
        long ret = managed_munmap(r->old + r->new_len, r->old_len - r->new_len);
        if (ret)
            return ret;
        r->old_len = r->new_len;
    }
    if (!fixed && r->old_len == r->new_len && !(r->flags & MREMAP_DONTUNMAP))
        return (long)r->old;
    uint64_t hole;
    if (!arena_contains(r->old, r->old_len) || !managed_whole(r->old, r->old + r->old_len, &hole) ||
        (managed_states(r->old, r->old + r->old_len) & ARENA_FOREIGN))
        return -EFAULT;
    if (r->new_len > r->old_len && !is_uniform(r))
        return -EFAULT;
    if (fixed)
        return arena_contains(r->to, r->new_len) ? move_inside(r) : move_outside(r);
    if (r->new_len > r->old_len) {
        long ret = grow_in_place(r);
        if (!sys_is_error(ret) || !(r->flags & MREMAP_MAYMOVE))
            return ret;
    }
    return move_anywhere(r);
}

long managed_mremap(uint64_t old, uint64_t old_len, uint64_t new_len, int flags, uint64_t to)
{
    struct remap r = {old, PAGE_UP(old_len), PAGE_UP(new_len), to, flags};
    uint64_t span = r.old_len ? r.old_len : EDM_PAGE_SIZE;
    bool from_arena = arena_overlaps(old, span);
    bool to_arena = (flags & MREMAP_FIXED) && arena_overlaps(to, r.new_len);
    if (!from_arena && !to_arena)
        return sys_mremap(old, old_len, new_len, flags, to);
    long ret = check(&r);
    if (ret)
        return ret;
    if (!arena_contains(old, EDM_PAGE_SIZE))
        return from_arena ? -EFAULT : remap_foreign(&r);
    struct arena_piece p;
    if (!managed_piece(old, old + span, &p))
        return -EFAULT;
    if (!(p.state & ARENA_FOREIGN))
        return remap_managed(&r);
    if (r.new_len < r.old_len && !(flags & MREMAP_FIXED)) {
        ret = managed_munmap(old + r.new_len, r.old_len - r.new_len);
        return ret ? ret : (long)old;
    }
    return remap_foreign(&r);
}

PUBLIC void *mremap(void *old, size_t old_len, size_t new_len, int flags, ...)
{
    uint64_t to = 0;
    if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
        va_list ap;
        va_start(ap, flags);
        to = (uint64_t)va_arg(ap, void *);
        va_end(ap);
    }
    long ret = managed_mremap((uint64_t)old, old_len, new_len, flags, to);
    if (!sys_is_error(ret))
        return (void *)ret;
    errno = (int)-ret;
    return MAP_FAILED;
}
