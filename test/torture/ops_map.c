/* mmap, munmap, mremap, mprotect. */
#include "torture.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define RW (PROT_READ | PROT_WRITE)
#define FRESH (P_MAPPED | P_READ | P_WRITE)

static uint32_t prot_flags(int prot)
{
    return P_MAPPED | (prot & PROT_READ ? P_READ : 0) | (prot & PROT_WRITE ? P_WRITE : 0);
}

static int random_prot(struct worker *w)
{
    uint64_t k = worker_random(w, 100);

    return k < 80 ? RW : k < 92 ? PROT_READ : PROT_NONE;
}

/* Where the program would like it; the kernel need not agree. A place of its own choice far from
 * everything is not managed, nor is MAP_STACK: *unmanaged. */
static uint64_t random_hint(struct worker *w, bool *unmanaged)
{
    struct region *r = &w->regions[worker_random(w, REGIONS)];

    switch (worker_random(w, 12)) {
    case 0:
    case 1:
        return r->n ? r->base + r->n * PAGE : 0;
    case 2:
        return r->n ? r->base : 0;
    case 3:
        *unmanaged = true;
        return 0x10000000000ul + worker_random(w, 1ul << 30) * PAGE;
    default:
        return 0;
    }
}

static int random_map_flags(struct worker *w, bool *unmanaged)
{
    switch (worker_random(w, 12)) {
    case 0:
        return MAP_NORESERVE;
    case 1:
        return MAP_POPULATE;
    case 2:
        *unmanaged = true;
        return MAP_STACK;
    default:
        return 0;
    }
}

struct request {
    uint64_t hint;
    uint32_t n;
    int prot, flags;
    bool unmanaged;
};

static struct request random_request(struct worker *w, uint32_t max)
{
    struct request q = {.prot = random_prot(w)};

    q.hint = random_hint(w, &q.unmanaged);
    q.flags = random_map_flags(w, &q.unmanaged);
    max = max < w->region_max ? max : w->region_max;
    q.n = worker_chance(w, 50) ? worker_length(w, max) : 1 + (uint32_t)worker_random(w, max);
    if (q.n > 128 && q.flags == MAP_POPULATE)
        q.n = 128;
    if (q.unmanaged && worker_count(w, P_RAW) + (q.n = q.n < 16 ? q.n : 16) > w->raw_max) {
        q.unmanaged = false;
        q.hint = 0;
        q.flags = 0;
    }
    return q;
}

bool op_map(struct worker *w)
{
    uint32_t mapped = worker_mapped(w);
    struct region *r = region_free(w);
    struct request q;
    long addr;

    if (!r || mapped >= w->pages_max / 8 * 7) /* leaves room for mremap to grow */
        return op_unmap(w);
    q = random_request(w, w->pages_max - mapped);
    addr = call_mmap_libc(w, q.hint, q.n * PAGE, q.prot, ANON | q.flags);
    if (is_error(addr))
        torture_fail(w, 0, "mmap of %u pages, prot %d, flags %x: %s", q.n, q.prot, q.flags,
                     strerror((int)-addr));
    model_expect_free(w, (uint64_t)addr, q.n * PAGE, "mmap");
    r = region_new(w, (uint64_t)addr, q.n);
    for (uint32_t i = 0; i < q.n; i++)
        r->page[i].flags = prot_flags(q.prot) | (q.unmanaged ? P_RAW : 0);
    if (q.prot == RW && worker_chance(w, 70))
        for (uint32_t i = 0; i < q.n; i++)
            page_write(w, r, i);
    note(w, "first write", false, r->base, q.n * PAGE, 0, 0, 0);
    return true;
}

bool op_map_fixed(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED, 0, w->region_max, false);
    int prot = random_prot(w);
    bool raw;
    long addr;

    if (!run.r)
        return false;
    addr = call_mmap_at(w, run_addr(run), run.n * PAGE, prot, ANON | MAP_FIXED, &raw);
    if (addr != (long)run_addr(run))
        torture_fail(w, run_addr(run), "mmap MAP_FIXED: %lx", addr);
    for (uint32_t i = 0; i < run.n; i++) {
        page_unmap(w, run_page(run, i));
        run_page(run, i)->flags = prot_flags(prot) | (raw ? P_RAW : 0);
    }
    return true;
}

static bool noreplace_over_mapped(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED, 0, 64, false);
    bool raw;
    long addr;

    if (!run.r)
        return false;
    addr = call_mmap_at(w, run_addr(run), run.n * PAGE, RW, ANON | MAP_FIXED_NOREPLACE, &raw);
    if (addr != -EEXIST)
        torture_fail(w, run_addr(run), "MAP_FIXED_NOREPLACE over mapped memory: %lx", addr);
    return true;
}

/* Into a hole: another thread, or the heap, may have taken it. */
bool op_map_noreplace(struct worker *w)
{
    struct run run = run_pick(w, 0, P_MAPPED, w->region_max, false);
    bool raw;
    long addr;

    if (!run.r || worker_chance(w, 30))
        return noreplace_over_mapped(w);
    addr = call_mmap_at(w, run_addr(run), run.n * PAGE, RW, ANON | MAP_FIXED_NOREPLACE, &raw);
    if (addr == -EEXIST)
        return false;
    if (addr != (long)run_addr(run))
        torture_fail(w, run_addr(run), "MAP_FIXED_NOREPLACE into a hole: %lx", addr);
    model_expect_free(w, (uint64_t)addr, run.n * PAGE, "MAP_FIXED_NOREPLACE");
    for (uint32_t i = 0; i < run.n; i++)
        run_page(run, i)->flags = FRESH | (raw ? P_RAW : 0);
    return true;
}

bool op_map_file(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED, P_LOCKED, 64, false);
    bool share = worker_chance(w, 40);
    uint32_t first = (uint32_t)worker_random(w, FILE_PAGES - 64);
    long addr;

    if (!run.r)
        return false;
    addr =
        call_mmap_file(w, run_addr(run), run.n * PAGE, share ? PROT_READ : RW,
                       MAP_FIXED | (share ? MAP_SHARED : MAP_PRIVATE), pattern_file, first * PAGE);
    if (addr != (long)run_addr(run))
        torture_fail(w, run_addr(run), "mmap of a file, MAP_FIXED: %lx", addr);
    for (uint32_t i = 0; i < run.n; i++) {
        struct page *p = run_page(run, i);

        page_unmap(w, p);
        p->flags = share ? P_MAPPED | P_READ | P_SHARED : FRESH | P_FILE;
        page_from_file(p, first + i);
    }
    return true;
}

bool op_unmap(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED, 0, w->region_max, false);
    long ret;

    if (!run.r)
        return false;
    ret = call_munmap(w, run_addr(run), run.n * PAGE);
    if (ret)
        torture_fail(w, run_addr(run), "munmap: %s", strerror((int)-ret));
    for (uint32_t i = 0; i < run.n; i++)
        page_unmap(w, run_page(run, i));
    if (settings.threads == 1) /* else another thread may have mapped something there */
        expect_no_access(w, run_addr(run) + worker_random(w, run.n) * PAGE, false);
    region_settle(run.r);
    return true;
}

bool op_protect(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED, P_SHARED, 256, false);
    int prot = worker_chance(w, 60) ? RW : random_prot(w);
    long ret;

    if (!run.r)
        return false;
    ret = call_mprotect(w, run_addr(run), run.n * PAGE, prot);
    if (ret)
        torture_fail(w, run_addr(run), "mprotect: %s", strerror((int)-ret));
    for (uint32_t i = 0; i < run.n; i++) {
        struct page *p = run_page(run, i);

        p->flags &= ~(uint32_t)(P_READ | P_WRITE);
        p->flags |= prot_flags(prot);
    }
    return true;
}

/* ---- mremap ---- */

bool op_remap_shrink(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED, 0, w->region_max, true);
    uint32_t left;
    long ret;

    if (!run.r || run.n < 2)
        return false;
    left = 1 + (uint32_t)worker_random(w, run.n - 1);
    ret = call_mremap(w, run_addr(run), run.n * PAGE, left * PAGE, 0, 0);
    if (ret != (long)run_addr(run))
        torture_fail(w, run_addr(run), "mremap to shrink: %lx", ret);
    for (uint32_t i = left; i < run.n; i++)
        page_unmap(w, run_page(run, i));
    return true;
}

/* Pages that mremap added behind [run] keep its rights and advice, and are zero. */
static void grown(struct worker *w, struct run run, uint32_t n)
{
    struct page *first = run_page(run, 0);

    model_expect_free(w, run_addr(run) + run.n * PAGE, (n - run.n) * PAGE, "mremap in place");
    for (uint32_t i = run.n; i < n; i++) {
        if (run.at + i >= run.r->n) {
            memset(run_page(run, i), 0, sizeof(*first));
            run.r->n = run.at + i + 1;
        }
        *run_page(run, i) = (struct page){.flags = first->flags & ~(uint32_t)P_MAYZERO};
    }
}

/* EFAULT: the range is several mappings in the kernel, which then refuses. */
static bool refused(struct worker *w, struct run run, long ret, const char *what)
{
    if (ret == -ENOMEM || (ret == -EFAULT && run.n > 1))
        return true;
    if (is_error(ret))
        torture_fail(w, run_addr(run), "%s: %s", what, strerror((int)-ret));
    return false;
}

static uint32_t grown_length(struct worker *w, struct run run)
{
    uint32_t room = w->region_max - run.at, mapped = worker_mapped(w);

    if (room > run.n + w->pages_max - mapped)
        room = run.n + w->pages_max - mapped;
    if (mapped >= w->pages_max || room <= run.n)
        return 0;
    return run.n + worker_length(w, room - run.n);
}

bool op_remap_grow(struct worker *w)
{
    struct run run =
        run_pick(w, P_MAPPED, P_FILE | P_SHARED | P_LOCKED | P_RAW, w->region_max, true);
    uint32_t n;
    long ret;

    if (!run.r || !(n = grown_length(w, run)))
        return false;
    ret = call_mremap(w, run_addr(run), run.n * PAGE, n * PAGE, 0, 0);
    if (refused(w, run, ret, "mremap to grow in place"))
        return false;
    if (ret != (long)run_addr(run))
        torture_fail(w, run_addr(run), "mremap without MAYMOVE moved to %lx", ret);
    grown(w, run, n);
    return true;
}

/* The model's part of a move to `to`, where n pages of *target begin. */
static void moved(struct worker *w, struct run run, struct region *target, uint32_t at, uint32_t n,
                  bool keep_source)
{
    uint32_t rights = run_page(run, 0)->flags & ~(uint32_t)P_MAYZERO;

    for (uint32_t i = 0; i < n; i++) {
        target->page[at + i] = (struct page){.flags = rights};
        if (i < run.n)
            target->page[at + i] = *run_page(run, i);
    }
    for (uint32_t i = 0; i < run.n; i++) {
        if (keep_source)
            page_zero(run_page(run, i));
        else
            page_unmap(w, run_page(run, i));
    }
    region_settle(run.r);
}

bool op_remap_move(struct worker *w)
{
    struct run run =
        run_pick(w, P_MAPPED, P_FILE | P_SHARED | P_LOCKED | P_RAW, w->region_max, true);
    struct region *target = region_free(w);
    uint32_t n;
    long ret;

    if (!run.r || !target || !(n = grown_length(w, run)))
        return false;
    ret = call_mremap(w, run_addr(run), run.n * PAGE, n * PAGE, MREMAP_MAYMOVE, 0);
    if (refused(w, run, ret, "mremap MAYMOVE"))
        return false;
    if (ret == (long)run_addr(run)) {
        grown(w, run, n);
        return true;
    }
    model_expect_free(w, (uint64_t)ret, n * PAGE, "mremap MAYMOVE");
    moved(w, run, region_new(w, (uint64_t)ret, n), 0, n, false);
    return true;
}

/* A mapped range that does not overlap the source. */
static struct run pick_target(struct worker *w, struct run source, uint32_t max)
{
    struct run run = run_pick(w, P_MAPPED, P_LOCKED, max, false);

    if (run.r == source.r && run.at < source.at + source.n && source.at < run.at + run.n)
        run.r = NULL;
    return run;
}

/* After a refusal nobody says what of it is still there, or moved already: never use it again. */
static void run_lost(struct worker *w, struct run target)
{
    for (uint32_t i = 0; i < target.n; i++)
        page_unmap(w, run_page(target, i));
    region_settle(target.r);
}

bool op_remap_fixed(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED, P_LOCKED, 256, true), target;
    bool is_file;
    long ret;

    if (!run.r)
        return false;
    is_file = run_page(run, 0)->flags & (P_FILE | P_SHARED);
    target = pick_target(w, run, is_file ? run.n : 256);
    if (!target.r)
        return false;
    ret = call_mremap(w, run_addr(run), run.n * PAGE, target.n * PAGE,
                      MREMAP_MAYMOVE | MREMAP_FIXED, run_addr(target));
    if (refused(w, run, ret, "mremap MREMAP_FIXED")) {
        run_lost(w, target);
        run_lost(w, run);
        return false;
    }
    if (ret != (long)run_addr(target))
        torture_fail(w, run_addr(target), "mremap MREMAP_FIXED went to %lx", ret);
    for (uint32_t i = 0; i < target.n; i++)
        page_unmap(w, run_page(target, i));
    moved(w, run, target.r, target.at, target.n, false);
    return true;
}

static bool dontunmap_fixed(struct worker *w, struct run run)
{
    struct run target = pick_target(w, run, run.n);
    long ret;

    if (!target.r)
        return false;
    run.n = target.n;
    ret = call_mremap(w, run_addr(run), run.n * PAGE, run.n * PAGE,
                      MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, run_addr(target));
    if (refused(w, run, ret, "mremap FIXED|DONTUNMAP")) {
        run_lost(w, target);
        run_lost(w, run);
        return false;
    }
    if (ret != (long)run_addr(target))
        torture_fail(w, run_addr(target), "mremap FIXED|DONTUNMAP went to %lx", ret);
    for (uint32_t i = 0; i < target.n; i++)
        page_unmap(w, run_page(target, i));
    moved(w, run, target.r, target.at, run.n, true);
    return true;
}

bool op_remap_dontunmap(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED, P_FILE | P_SHARED | P_LOCKED, 256, true);
    struct region *target = region_free(w);
    long ret;

    if (!run.r)
        return false;
    if (worker_chance(w, 40))
        return dontunmap_fixed(w, run);
    if (!target || worker_mapped(w) + run.n > w->pages_max)
        return false;
    ret = call_mremap(w, run_addr(run), run.n * PAGE, run.n * PAGE,
                      MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
    if (refused(w, run, ret, "mremap DONTUNMAP"))
        return false;
    model_expect_free(w, (uint64_t)ret, run.n * PAGE, "mremap DONTUNMAP");
    moved(w, run, region_new(w, (uint64_t)ret, run.n), 0, run.n, true);
    return true;
}
