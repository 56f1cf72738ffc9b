/*
 * The server's commands, as the LPET does them. Everything here runs on it: no libc, no TLS but the
 * bare block made in lpet_map, no access to managed memory but by MOVE, /proc/self/mem and madvise,
 * none of which can crash when the program unmaps the range at that moment.
 */
#include "lpet_int.h"
#include "uffd_abi.h"
#include <emmintrin.h>
#include <errno.h>

#define LPET_AGAIN_MAX 64 /* EAGAINs on one page before it is left alone as busy */

static uint64_t mask_of(uint32_t first, uint32_t n)
{
    uint64_t m = n >= 64 ? ~0ull : (1ull << n) - 1;
    return m << first;
}

/* ------------------------------------------------------------------ pages */

static bool page_is_zero(const void *page)
{
    const __m128i *p = page;
    const __m128i zero = _mm_setzero_si128();
    for (size_t i = 0; i < EDM_PAGE_SIZE / sizeof(*p); i += 4) {
        __m128i a = _mm_or_si128(_mm_load_si128(p + i), _mm_load_si128(p + i + 1));
        __m128i b = _mm_or_si128(_mm_load_si128(p + i + 2), _mm_load_si128(p + i + 3));
        if (_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_or_si128(a, b), zero)) != 0xffff)
            return false;
    }
    return true;
}

static void page_copy(void *to, const void *from)
{
    size_t n = EDM_PAGE_SIZE / 8;
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

static void *ring_page(const struct lpet *l, uint32_t slot)
{
    return (char *)l->chan + l->data_offset + (uint64_t)slot * EDM_PAGE_SIZE;
}

/* Bits of the pages of [addr, +n) whose pagemap entry has one of these bits; `unknown` when they
 * cannot be read. */
static uint64_t pages_with(const struct lpet *l, uint64_t addr, uint32_t n, uint64_t bits,
                           uint64_t unknown)
{
    uint64_t entries[EDM_CMD_PAGES], with = 0;
    long got = sys_call4(SYS_pread64, l->pagemap_fd, (long)entries, (long)(n * 8ul),
                         (long)((addr >> EDM_PAGE_SHIFT) * 8));
    if (got != (long)(n * 8ul))
        return unknown;
    for (uint32_t i = 0; i < n; i++)
        if (entries[i] & bits)
            with |= 1ull << i;
    return with;
}

/* … that are there: present or swapped out by the kernel. None is called missing that may be there.
 */
static uint64_t pages_there(const struct lpet *l, uint64_t addr, uint32_t n)
{
    return pages_with(l, addr, n, EDM_PM_PRESENT | EDM_PM_SWAPPED, mask_of(0, n));
}

/* ------------------------------------------------------------------ staging */

/* Gives frames back. They are never written again by us: somebody may still hold a plain reference
 * to them (KERNEL.md 14). DONTNEED_LOCKED because of mlockall (KERNEL.md 16). */
static void frames_drop(uint64_t addr, uint64_t len)
{
    if (sys_is_error(sys_madvise(addr, len, MADV_DONTNEED_LOCKED)))
        sys_madvise(addr, len, MADV_DONTNEED);
}

void lpet_staging_drop(struct lpet *l)
{
    if (l->staging_used)
        frames_drop(l->staging, l->staging_used * EDM_PAGE_SIZE);
    l->staging_used = 0;
}

/* Staging for n pages; what is handed out has no page yet. */
static uint64_t staging_take(struct lpet *l, uint32_t n)
{
    if (l->staging_used + n > EDM_STAGING_PAGES)
        lpet_staging_drop(l);
    uint64_t addr = l->staging + l->staging_used * EDM_PAGE_SIZE;
    l->staging_used += n;
    return addr;
}

/* ------------------------------------------------------------------ EDM_CMD_MOVE */

struct move_run {
    uint64_t src, dst;
    uint32_t n;
    uint64_t out, busy, gone, refused; /* pages, by outcome */
    uint64_t populated;                /* pages that were made exclusive already */
    uint32_t limit;                    /* most pages of the next call */
    uint32_t again;                    /* EAGAINs since the last progress */
};

/* One UFFDIO_MOVE. Returns the pages that moved (> 0) or -errno. */
static long move_once(const struct lpet *l, const struct move_run *r, uint32_t first, uint32_t n)
{
    struct uffdio_move mv = {.dst = r->dst + first * EDM_PAGE_SIZE,
                             .src = r->src + first * EDM_PAGE_SIZE,
                             .len = n * EDM_PAGE_SIZE,
                             .mode = UFFDIO_MOVE_MODE_DONTWAKE};
    long ret = sys_ioctl(l->staging_uffd, UFFDIO_MOVE, &mv);
    if (!ret)
        return n;
    if (mv.move > 0)
        return (long)((uint64_t)mv.move >> EDM_PAGE_SHIFT);
    return ret;
}

/*
 * Pages shared with a forked child, or ever shared since, are not exclusive: a populating write
 * makes them so (KERNEL.md 17). Only pages that are there, for a fault on a hole would wait for the
 * server. The program may still discard one in between: the server answers faults of the LPET's own
 * thread with zeros, whatever command is outstanding.
 */
static void make_exclusive(const struct lpet *l, struct move_run *r, uint32_t first)
{
    uint64_t there = pages_there(l, r->src + first * EDM_PAGE_SIZE, r->n - first) << first;
    uint32_t i = first;
    r->populated |= mask_of(first, r->n - first);
    while (i < r->n) {
        uint32_t end = i;
        while (end < r->n && (there & (1ull << end)))
            end++;
        if (end > i)
            sys_madvise(r->src + i * EDM_PAGE_SIZE, (end - i) * EDM_PAGE_SIZE, MADV_POPULATE_WRITE);
        i = end + 1;
    }
}

/*
 * Linux 6.18 may have moved pages that it does not count: when a page table entry changes while it
 * looks (a processor notes that the page was read), it goes round again, meets what it has just
 * moved, and says EEXIST. Staging has their only copy then. Somebody who reads or locks all memory
 * leaves a page of zeros there, and the page is still where it was.
 */
static bool has_moved(const struct lpet *l, const struct move_run *r, uint32_t i)
{
    uint64_t dst = r->dst + i * EDM_PAGE_SIZE, src = r->src + i * EDM_PAGE_SIZE;
    if (!pages_there(l, dst, 1))
        return false;
    return !pages_there(l, src, 1) || !page_is_zero((const void *)dst);
}

/* What a failed move of page `i` (and those behind it) means. Returns the next page to look at. */
static uint32_t move_failed(const struct lpet *l, struct move_run *r, uint32_t i, uint32_t tried,
                            long err)
{
    uint64_t bit = 1ull << i;
    if ((err == -EEXIST || err == -ENOENT) && has_moved(l, r, i)) {
        r->out |= bit;
        r->again = 0;
        return i + 1;
    }
    switch (err) {
    case -EAGAIN: /* a lock of the page's was taken just then, or mappings are changing */
        if (++r->again < LPET_AGAIN_MAX) {
            sys_sched_yield();
            return i;
        }
        r->again = 0;
        r->busy |= bit;
        return i + 1;
    case -ENOENT:
        r->gone |= bit;
        return i + 1;
    case -EBUSY:
        if (!(r->populated & bit)) {
            make_exclusive(l, r, i);
            return i;
        }
        r->busy |= bit;
        return i + 1;
    case -EINVAL: /* a mapping ends inside, or it is not plain read-write memory */
        if (tried > 1) {
            r->limit = tried / 2;
            return i;
        }
        r->refused |= bit;
        return i + 1;
    case -EEXIST: /* an outside reader touched our staging, or mlockall filled it */
        if (++r->again < LPET_AGAIN_MAX) {
            frames_drop(r->dst + i * EDM_PAGE_SIZE, EDM_PAGE_SIZE);
            return i;
        }
        r->again = 0;
        r->busy |= bit;
        return i + 1;
    default: /* ENOMEM, EFAULT, ESRCH: it is still where it was */
        r->busy |= bit;
        return i + 1;
    }
}

static void cmd_move(struct lpet *l, struct edm_cmd *cmd, uint32_t slot, uint64_t staged,
                     struct move_run *r)
{
    uint32_t i = 0;
    r->dst = staged;
    r->limit = r->n;
    while (i < r->n) {
        uint32_t n = r->n - i < r->limit ? r->n - i : r->limit;
        long got = move_once(l, r, i, n);
        if (got > 0) {
            r->out |= mask_of(i, (uint32_t)got);
            r->again = 0;
            i += (uint32_t)got;
            if (r->limit < r->n) /* beyond the boundary the run may be whole again */
                r->limit *= 2;
        } else {
            i = move_failed(l, r, i, n, got);
        }
    }
    uint64_t zero = 0;
    for (i = 0; i < r->n; i++) {
        if (!(r->out & (1ull << i)))
            continue;
        const void *page = (const void *)(r->dst + i * EDM_PAGE_SIZE);
        if (page_is_zero(page))
            zero |= 1ull << i;
        else
            page_copy(ring_page(l, slot + i), page);
    }
    cmd->moved = r->out & ~zero;
    cmd->zero = zero;
    cmd->busy = r->busy;
    cmd->gone = r->gone;
    cmd->refused = r->refused;
}

/* ------------------------------------------------------------------ EDM_CMD_COPY */

/*
 * Could the page be moved by now? It is copied because MOVE refused it once, and the program may
 * have given it other rights since and have it pinned (KERNEL.md 6): MOVE knows of that, a copy
 * does not. Asked without moving anything, by its errors: EINVAL comes before EEXIST.
 */
static bool is_movable(const struct lpet *l, uint64_t at)
{
    struct uffdio_move mv = {
        .dst = l->probe, .src = at, .len = EDM_PAGE_SIZE, .mode = UFFDIO_MOVE_MODE_DONTWAKE};
    return shim_config.settings.evict_method != EDM_EVICT_COPY &&
           sys_ioctl(l->staging_uffd, UFFDIO_MOVE, &mv) != -EINVAL;
}

/*
 * The server has write-protected the page; the program, writing to it meanwhile, waits for the
 * outcome. Read through /proc/self/mem: EIO for a hole or an unmapped page where a load would wait
 * or crash, and no read permission needed. One that is not protected has come here since: its
 * contents are still being changed. Page by page: the kernel repeats the REMOVE event of a range
 * whose mapping is split meanwhile, which would look like the program's own discard (KERNEL.md 7);
 * and the next page must not wait, copied, for that event to be read.
 */
static bool page_take_copy(const struct lpet *l, void *to, uint64_t at)
{
    return !is_movable(l, at) &&
           sys_call4(SYS_pread64, l->mem_fd, (long)to, EDM_PAGE_SIZE, (long)at) ==
               (long)EDM_PAGE_SIZE &&
           pages_with(l, at, 1, EDM_PM_UFFD_WP, 0) &&
           !sys_is_error(sys_madvise(at, EDM_PAGE_SIZE, MADV_DONTNEED));
}

static void cmd_copy(struct lpet *l, struct edm_cmd *cmd, uint32_t slot, uint64_t addr, uint32_t n)
{
    uint64_t moved = 0, zero = 0, gone = 0;
    for (uint32_t i = 0; i < n; i++) {
        void *to = ring_page(l, slot + i);
        uint64_t at = addr + i * EDM_PAGE_SIZE, bit = 1ull << i;
        if (page_take_copy(l, to, at))
            *(page_is_zero(to) ? &zero : &moved) |= bit;
        else if (!pages_there(l, at, 1))
            gone |= bit;
    }
    cmd->moved = moved;
    cmd->zero = zero;
    cmd->busy = mask_of(0, n) & ~(moved | zero | gone);
    cmd->gone = gone;
    cmd->refused = 0;
}

/* ------------------------------------------------------------------ commands */

/* Says that a command is being done, unless a fork wants none: then waits for the fork first. */
static void busy_begin(struct edm_chan *c)
{
    for (;;) {
        __atomic_store_n(&c->lpet_busy, 1, __ATOMIC_SEQ_CST);
        if (!__atomic_load_n(&c->fork_hold, __ATOMIC_SEQ_CST))
            return;
        __atomic_store_n(&c->lpet_busy, 0, __ATOMIC_SEQ_CST);
        sys_futex_wake(&c->lpet_busy, INT32_MAX, 0);
        sys_futex_wait(&c->fork_hold, 1, NULL, 0);
    }
}

static void busy_end(struct edm_chan *c)
{
    __atomic_store_n(&c->lpet_busy, 0, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&c->fork_hold, __ATOMIC_SEQ_CST))
        sys_futex_wake(&c->lpet_busy, INT32_MAX, 0);
}

static void results_none(struct edm_cmd *cmd, uint32_t n)
{
    cmd->moved = cmd->zero = cmd->gone = cmd->refused = 0;
    cmd->busy = n ? mask_of(0, n > EDM_CMD_PAGES ? EDM_CMD_PAGES : n) : 0;
}

/* Fields are read once: what was checked is what is used. Returns the command's kind. */
static uint32_t cmd_run(struct lpet *l, struct edm_cmd *cmd)
{
    uint64_t addr = __atomic_load_n(&cmd->addr, __ATOMIC_RELAXED);
    uint32_t n = __atomic_load_n(&cmd->npages, __ATOMIC_RELAXED);
    uint32_t slot = __atomic_load_n(&cmd->slot, __ATOMIC_RELAXED);
    uint32_t kind = __atomic_load_n(&cmd->kind, __ATOMIC_RELAXED);
    bool is_move = kind == EDM_CMD_MOVE, is_copy = kind == EDM_CMD_COPY;
    uint64_t staged = 0;

    if (is_move || is_copy) {
        uint64_t room = (l->chan_size - l->data_offset) >> EDM_PAGE_SHIFT;
        if (!n || n > EDM_CMD_PAGES || addr % EDM_PAGE_SIZE || (uint64_t)slot + n > room ||
            addr + n * EDM_PAGE_SIZE < addr) {
            results_none(cmd, n);
            return EDM_CMD_NOP;
        }
    }
    if (is_move) {
        staged = staging_take(l, n);
        __atomic_store_n(&cmd->staged, staged, __ATOMIC_RELAXED);
    }
    uint32_t posted = EDM_CMD_POSTED;
    if (!__atomic_compare_exchange_n(&cmd->state, &posted, EDM_CMD_RUNNING, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST)) {
        if (is_move) /* nothing was put there */
            l->staging_used -= n;
        results_none(cmd, n);
        return EDM_CMD_NOP;
    }
    if (is_move) {
        struct move_run r;
        r.src = addr;
        r.n = n;
        r.out = r.busy = r.gone = r.refused = r.populated = 0;
        r.again = 0;
        cmd_move(l, cmd, slot, staged, &r);
    } else if (is_copy) {
        cmd_copy(l, cmd, slot, addr, n);
    } else {
        results_none(cmd, 0);
    }
    return kind;
}

static void tell_server(struct lpet *l)
{
    uint64_t one = 1;
    l->since_comp = 0;
    sys_write(l->comp_fd, &one, sizeof(one));
}

/* One command, if there is one. Returns its kind, or -1. */
int lpet_command_next(struct lpet *l)
{
    struct edm_chan *c = l->chan;
    uint32_t tail = c->cmd_tail;
    uint32_t head = __atomic_load_n(&c->cmd_head, __ATOMIC_ACQUIRE);
    if (head == tail || head - tail > EDM_CHAN_CMDS)
        return -1;
    busy_begin(c);
    uint32_t kind = cmd_run(l, &c->cmds[tail % EDM_CHAN_CMDS]);
    __atomic_store_n(&c->cmd_tail, tail + 1, __ATOMIC_SEQ_CST);
    busy_end(c);
    l->since_comp++;
    if (__atomic_load_n(&c->comp_wanted, __ATOMIC_SEQ_CST) || l->since_comp >= 4 ||
        __atomic_load_n(&c->cmd_head, __ATOMIC_ACQUIRE) == tail + 1)
        tell_server(l);
    return (int)kind;
}
