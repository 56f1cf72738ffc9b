/*
 * The arena's map: the whole reserved range cut into pieces of equal protection and state, kept in
 * a treap ordered by address, each node with the longest free piece of its subtree (as in the
 * kernel's old augmented rbtree of mappings). Nodes come from a static array, so that no call here
 * needs memory from anybody; 32 bit page numbers keep them small.
 */
#include "arena.h"
#include "shim.h"
#include "sys.h"
#include <errno.h>
#include <stdatomic.h>

#define PAGE_BITS 12
#define NODES (1u << 17)        /* twice the default vm.max_map_count */
#define NODES_SPARE 64u         /* kept from arena_take, for operations that must not fail */
#define ARENA_MAX (8ull << 40)  /* page numbers must fit in 32 bits */
#define ARENA_MIN (64ull << 20) /* less than this is not worth managing */
#define ARENA_ALIGN (2ull << 20)
#define PROT_SHIFT 8
#define ATTR_PROT (7u << PROT_SHIFT)
#define SIG_ALL UINT64_MAX

struct piece {
    uint32_t start, end;  /* pages from the arena's start */
    uint32_t left, right; /* node numbers, 0 = none */
    uint32_t prio;
    uint32_t attr; /* ARENA_* and protection; 0: free */
    uint32_t longest;
};

/* Constant after arena_init, which sets npages last: until then there is no arena. */
static uint64_t base;
static atomic_uint_fast64_t npages;

/* All below: protected by `lock`; the counters may be read without it. */
static struct piece nodes[NODES];
static uint32_t root, free_list, fresh_node = 1, free_nodes = NODES - 1;
static uint32_t seed = 2463534242u;
static atomic_uint_fast64_t taken_pages, accessible_pages;
static uint32_t used_lo = UINT32_MAX, used_hi;

static atomic_uint lock; /* futex: 0 free, 1 held, 2 held and waited for */
static uint64_t fork_sigmask;
static atomic_bool leave_signals;

void arena_leave_signals(void)
{
    atomic_store(&leave_signals, true);
}

/* Signals stay blocked while it is held: a handler may call mmap too. */
static uint64_t arena_lock(void)
{
    uint64_t all = SIG_ALL, old = 0;
    if (!atomic_load(&leave_signals))
        sys_sigprocmask(0 /* SIG_BLOCK */, &all, &old);
    uint32_t seen = 0;
    if (!atomic_compare_exchange_strong(&lock, &seen, 1)) {
        while (atomic_exchange(&lock, 2) != 0)
            sys_futex_wait(&lock, 2, NULL, FUTEX_PRIVATE_FLAG);
    }
    return old;
}

static void arena_unlock(uint64_t sigmask)
{
    if (atomic_exchange(&lock, 0) == 2)
        sys_futex_wake(&lock, 1, FUTEX_PRIVATE_FLAG);
    if (!atomic_load(&leave_signals))
        sys_sigprocmask(2 /* SIG_SETMASK */, &sigmask, NULL);
}

/* ---- the treap ---- */

static uint32_t node_get(void)
{
    uint32_t n = free_list;
    if (n)
        free_list = nodes[n].left;
    else
        n = fresh_node++;
    free_nodes--;
    seed ^= seed << 13;
    seed ^= seed >> 17;
    seed ^= seed << 5;
    nodes[n] = (struct piece){.prio = seed};
    return n;
}

static void node_put(uint32_t n)
{
    nodes[n].left = free_list;
    free_list = n;
    free_nodes++;
}

static void node_update(uint32_t n)
{
    struct piece *p = &nodes[n];
    uint32_t longest = p->attr ? 0 : p->end - p->start;
    if (nodes[p->left].longest > longest)
        longest = nodes[p->left].longest;
    if (nodes[p->right].longest > longest)
        longest = nodes[p->right].longest;
    p->longest = longest;
}

/* Nodes that start before `page` go to *l, the others to *r. */
static void tree_split(uint32_t t, uint32_t page, uint32_t *l, uint32_t *r)
{
    if (!t) {
        *l = *r = 0;
        return;
    }
    if (nodes[t].start < page) {
        *l = t;
        tree_split(nodes[t].right, page, &nodes[t].right, r);
    } else {
        *r = t;
        tree_split(nodes[t].left, page, l, &nodes[t].left);
    }
    node_update(t);
}

static uint32_t tree_merge(uint32_t l, uint32_t r)
{
    if (!l || !r)
        return l ? l : r;
    if (nodes[l].prio > nodes[r].prio) {
        nodes[l].right = tree_merge(nodes[l].right, r);
        node_update(l);
        return l;
    }
    nodes[r].left = tree_merge(l, nodes[r].left);
    node_update(r);
    return r;
}

static void tree_insert(uint32_t n)
{
    uint32_t l, r;
    node_update(n);
    tree_split(root, nodes[n].start, &l, &r);
    root = tree_merge(tree_merge(l, n), r);
}

static void tree_erase(uint32_t *t, uint32_t page)
{
    uint32_t n = *t;
    if (nodes[n].start == page) {
        *t = tree_merge(nodes[n].left, nodes[n].right);
        node_put(n);
        return;
    }
    tree_erase(page < nodes[n].start ? &nodes[n].left : &nodes[n].right, page);
    node_update(n);
}

/* Repairs `longest` on the way to the node that holds `page`. */
static void tree_fix(uint32_t n, uint32_t page)
{
    if (page < nodes[n].start)
        tree_fix(nodes[n].left, page);
    else if (page >= nodes[n].end)
        tree_fix(nodes[n].right, page);
    node_update(n);
}

static uint32_t tree_find(uint32_t page)
{
    uint32_t n = root;
    while (n && (page < nodes[n].start || page >= nodes[n].end))
        n = page < nodes[n].start ? nodes[n].left : nodes[n].right;
    return n;
}

/* First free node by address of at least `need` pages; 0 when there is none. */
static uint32_t tree_first(uint32_t need)
{
    uint32_t n = root;
    if (nodes[n].longest < need)
        return 0;
    for (;;) {
        if (nodes[nodes[n].left].longest >= need)
            n = nodes[n].left;
        else if (!nodes[n].attr && nodes[n].end - nodes[n].start >= need)
            return n;
        else
            n = nodes[n].right;
    }
}

/* ---- pieces ---- */

static bool piece_cut(uint32_t page)
{
    if (page >= npages)
        return true;
    uint32_t n = tree_find(page);
    if (nodes[n].start == page)
        return true;
    if (!free_nodes)
        return false;
    uint32_t m = node_get();
    nodes[m].start = page;
    nodes[m].end = nodes[n].end;
    nodes[m].attr = nodes[n].attr;
    nodes[n].end = page;
    tree_fix(root, nodes[n].start);
    tree_insert(m);
    return true;
}

/* Makes one piece of the two that meet at `page`, if they are alike. */
static void piece_join(uint32_t page)
{
    if (page == 0 || page >= npages)
        return;
    uint32_t r = tree_find(page), l = tree_find(page - 1);
    if (l == r || nodes[l].attr != nodes[r].attr)
        return;
    uint32_t end = nodes[r].end;
    tree_erase(&root, page);
    nodes[l].end = end;
    tree_fix(root, nodes[l].start);
}

static void piece_count(uint32_t attr, uint32_t pages, bool add)
{
    if (attr & ARENA_TAKEN)
        taken_pages += add ? pages : -(uint64_t)pages;
    if ((attr & ATTR_PROT) && !(attr & ARENA_FOREIGN))
        accessible_pages += add ? pages : -(uint64_t)pages;
}

enum which { PIECES_ALL, PIECES_TAKEN };

/* attr = (attr & ~clear) | set for the pieces of [from, to). */
static void pieces_change(uint32_t from, uint32_t to, uint32_t clear, uint32_t set,
                          enum which which)
{
    /* Without nodes left nothing is cut; then only whole pieces inside the range change. */
    bool cut = piece_cut(from);
    cut = piece_cut(to) && cut;
    for (uint32_t p = from; p < to;) {
        struct piece *s = &nodes[tree_find(p)];
        p = s->end;
        if (!cut && (s->start < from || s->end > to))
            continue;
        if (which == PIECES_TAKEN && !(s->attr & ARENA_TAKEN))
            continue;
        piece_count(s->attr, s->end - s->start, false);
        s->attr = (s->attr & ~clear) | set;
        piece_count(s->attr, s->end - s->start, true);
        tree_fix(root, s->start);
    }
    piece_join(from);
    for (uint32_t p = nodes[tree_find(from)].end; p <= to && p < npages;) {
        piece_join(p);
        p = nodes[tree_find(p)].end;
    }
}

/* ---- interface ---- */

/* The part of [addr, +len) inside the arena, in pages; false when there is none. */
static bool clip(uint64_t addr, uint64_t len, uint32_t *from, uint32_t *to)
{
    uint64_t end = addr + len, limit = base + (npages << PAGE_BITS);
    if (addr < base)
        addr = base;
    if (end > limit)
        end = limit;
    if (addr >= end)
        return false;
    *from = (uint32_t)((addr - base) >> PAGE_BITS);
    *to = (uint32_t)((end - base + (1u << PAGE_BITS) - 1) >> PAGE_BITS);
    return true;
}

int arena_init(uint64_t size)
{
    if (npages)
        return -EEXIST;
    if (size > ARENA_MAX)
        size = ARENA_MAX;
    size &= ~(ARENA_ALIGN - 1);
    long at = -ENOMEM;
    for (; size >= ARENA_MIN; size = (size / 2) & ~(ARENA_ALIGN - 1)) {
        at = sys_mmap(0, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (!sys_is_error(at))
            break;
    }
    if (sys_is_error(at))
        return (int)at;
    uint64_t start = ((uint64_t)at + ARENA_ALIGN - 1) & ~(ARENA_ALIGN - 1);
    if (start != (uint64_t)at) { /* kernels before 6.7 do not align by themselves */
        sys_munmap((uint64_t)at, start - (uint64_t)at);
        size -= ARENA_ALIGN;
        sys_munmap(start + size, (uint64_t)at + ARENA_ALIGN - start);
    }
    /* Under mlockall(MCL_FUTURE) it came locked, and cannot work. */
    if (sys_madvise(start, 1u << PAGE_BITS, MADV_DONTNEED)) {
        sys_munmap(start, size);
        return -EINVAL;
    }
    sys_madvise(start, size, MADV_DONTDUMP);
    base = start;
    root = node_get();
    nodes[root].end = (uint32_t)(size >> PAGE_BITS);
    node_update(root);
    npages = size >> PAGE_BITS;
    return 0;
}

bool arena_contains(uint64_t addr, uint64_t len)
{
    uint64_t size = arena_len();
    return size && addr >= base && addr - base <= size && len <= size - (addr - base);
}

bool arena_overlaps(uint64_t addr, uint64_t len)
{
    uint64_t size = arena_len();
    return size && len && addr < base + size && addr + len > base;
}

uint64_t arena_start(void)
{
    return base;
}

uint64_t arena_len(void)
{
    return npages << PAGE_BITS;
}

void arena_used(uint64_t *start, uint64_t *end)
{
    uint64_t mask = arena_lock();
    *start = used_hi ? base + ((uint64_t)used_lo << PAGE_BITS) : base;
    *end = base + ((uint64_t)used_hi << PAGE_BITS);
    arena_unlock(mask);
}

static void take_pages(uint32_t from, uint32_t to)
{
    if (from < used_lo)
        used_lo = from;
    if (to > used_hi)
        used_hi = to;
    pieces_change(from, to, 0, ARENA_TAKEN, PIECES_ALL);
}

static uint64_t first_aligned(uint32_t n, uint64_t align)
{
    uint64_t addr = base + ((uint64_t)nodes[n].start << PAGE_BITS);
    return ((addr + align - 1) & ~(align - 1)) - base;
}

/* Any free node that has `need` pages at an aligned address, tree order; 0 = none. */
static uint32_t tree_first_aligned(uint32_t n, uint64_t need, uint64_t align)
{
    if (!n || nodes[n].longest < need)
        return 0;
    uint32_t found = tree_first_aligned(nodes[n].left, need, align);
    if (found)
        return found;
    if (!nodes[n].attr && (first_aligned(n, align) >> PAGE_BITS) + need <= (uint64_t)nodes[n].end)
        return n;
    return tree_first_aligned(nodes[n].right, need, align);
}

uint64_t arena_take(uint64_t len, uint64_t align)
{
    uint64_t need = len >> PAGE_BITS, addr = 0;
    if (!need || need > npages)
        return 0;
    if (align < (1u << PAGE_BITS))
        align = 1u << PAGE_BITS;
    uint64_t mask = arena_lock();
    uint64_t roomy = need + (align >> PAGE_BITS) - 1;
    uint32_t n = 0;
    if (free_nodes > NODES_SPARE) {
        n = roomy <= npages ? tree_first((uint32_t)roomy) : 0;
        if (!n && roomy > need)
            n = tree_first_aligned(root, need, align);
    }
    if (n) {
        uint32_t from = (uint32_t)(first_aligned(n, align) >> PAGE_BITS);
        take_pages(from, from + (uint32_t)need);
        addr = base + ((uint64_t)from << PAGE_BITS);
    }
    arena_unlock(mask);
    return addr;
}

bool arena_take_at(uint64_t addr, uint64_t len)
{
    uint32_t from, to;
    if (!len || !arena_contains(addr, len) || !clip(addr, len, &from, &to))
        return false;
    uint64_t mask = arena_lock();
    const struct piece *p = &nodes[tree_find(from)];
    bool ok = !p->attr && p->end >= to && free_nodes > NODES_SPARE;
    if (ok)
        take_pages(from, to);
    arena_unlock(mask);
    return ok;
}

void arena_claim(uint64_t addr, uint64_t len)
{
    uint32_t from, to;
    if (!clip(addr, len, &from, &to))
        return;
    uint64_t mask = arena_lock();
    take_pages(from, to);
    arena_unlock(mask);
}

static void change(uint64_t addr, uint64_t len, uint32_t clear, uint32_t set)
{
    uint32_t from, to;
    if (!clip(addr, len, &from, &to))
        return;
    uint64_t mask = arena_lock();
    pieces_change(from, to, clear, set, PIECES_TAKEN);
    arena_unlock(mask);
}

void arena_give(uint64_t addr, uint64_t len)
{
    change(addr, len, UINT32_MAX, 0);
}

uint64_t arena_taken(void)
{
    return taken_pages << PAGE_BITS;
}

uint64_t arena_accessible(void)
{
    return accessible_pages << PAGE_BITS;
}

void arena_mark(uint64_t addr, uint64_t len)
{
    change(addr, len, 0, ARENA_MARKED);
}

void arena_unmark(uint64_t addr, uint64_t len)
{
    change(addr, len, ARENA_MARKED, 0);
}

void arena_protect(uint64_t addr, uint64_t len, int prot)
{
    change(addr, len, ATTR_PROT, ((uint32_t)prot << PROT_SHIFT) & ATTR_PROT);
}

static bool any_locked; /* ever, since the last fork */

void arena_set_state(uint64_t addr, uint64_t len, uint32_t clear, uint32_t set)
{
    if (set & ARENA_LOCKED)
        any_locked = true;
    change(addr, len, clear & ~(ATTR_PROT | ARENA_TAKEN), set & ~(ATTR_PROT | ARENA_TAKEN));
}

AT_LOAD void arena_forget_locks(void)
{
    if (!any_locked)
        return;
    arena_set_state(base, npages << PAGE_BITS, ARENA_LOCKED, 0);
    any_locked = false;
}

bool arena_marked(uint64_t addr, uint64_t len)
{
    uint32_t from, to;
    bool found = false;
    if (!clip(addr, len, &from, &to))
        return false;
    uint64_t mask = arena_lock();
    while (from < to && !found) {
        const struct piece *p = &nodes[tree_find(from)];
        found = p->attr & ARENA_MARKED;
        from = p->end;
    }
    arena_unlock(mask);
    return found;
}

bool arena_piece_at(uint64_t addr, struct arena_piece *out)
{
    uint32_t from, to;
    if (!clip(addr, 1, &from, &to))
        return false;
    uint64_t mask = arena_lock();
    const struct piece *p = &nodes[tree_find(from)];
    out->start = base + ((uint64_t)p->start << PAGE_BITS);
    out->end = base + ((uint64_t)p->end << PAGE_BITS);
    out->state = p->attr & ~ATTR_PROT;
    out->prot = (int)((p->attr & ATTR_PROT) >> PROT_SHIFT);
    arena_unlock(mask);
    return true;
}

void arena_lock_for_fork(void)
{
    uint64_t mask = arena_lock();
    fork_sigmask = mask;
}

void arena_unlock_after_fork(void)
{
    arena_unlock(fork_sigmask);
}
