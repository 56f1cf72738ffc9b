/*
 * Pages fetched ahead of their use: those that a stream of faults will come to (prefetch.c), and
 * MADV_WILLNEED. Neighbours that are in memory are placed by one call.
 */
#include "die.h"
#include "instance.h"
#include "uffd.h"
#include <errno.h>
#include <string.h>

#define RUN 16u /* pages placed at once */

/* Neighbours whose contents are in `data`, not in place yet. */
struct run {
    uint64_t addr;
    uint32_t n;
};

static _Thread_local uint8_t data[RUN][EDM_PAGE_SIZE] __attribute__((aligned(4096)));

void ahead_begin(struct instance *in, uint32_t id)
{
    int rank = copies_rank(spt_page(&in->spt, id)->handle);
    if (rank < 0 || fetch_remote(in, id, rank))
        fetch_start(in, id);
}

static void fetched(struct instance *in, uint32_t id)
{
    spt_page(&in->spt, id)->flags |= PF_PREFETCHED;
    in->stats->prefetch_fetched++;
}

static uint32_t id_of(struct instance *in, uint64_t addr)
{
    return spt_id(spt_chunk(&in->spt, addr, false), spt_index(addr));
}

static void placed(struct instance *in, uint64_t addr, uint32_t n)
{
    if (n)
        die_at(DIE_STORED_PLACED);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t id = id_of(in, addr + (uint64_t)i * EDM_PAGE_SIZE);
        dm_handler_stored_is_resident(in, id);
        fetched(in, id);
    }
}

/* False when the kernel wants something else first. */
static bool run_place(struct instance *in, struct run *r)
{
    uint32_t i = 0, most = r->n;
    int err = 0;
    while (i < r->n && (!err || err == -EEXIST || most > 1)) {
        uint64_t addr = r->addr + (uint64_t)i * EDM_PAGE_SIZE;
        uint32_t n = r->n - i < most ? r->n - i : most, done = 0;
        err = uffd_copy(in->uffd, addr, data[i], n, false, &done);
        placed(in, addr, done);
        i += done;
        if (err == -EEXIST) { /* somebody was there first */
            dm_handler_stored_is_resident(in, id_of(in, r->addr + (uint64_t)i * EDM_PAGE_SIZE));
            i++;
        } else if (err == -ENOENT && most > 1) { /* a mapping ends in between */
            most = 1;
            err = 0;
        } else if (err) {
            break;
        }
    }
    r->n = 0;
    return !err || err == -EEXIST;
}

/* Adds a stored page to the run. 0; -EAGAIN: it is not in memory here; other: damaged. */
static int run_add(struct instance *in, struct run *r, uint64_t addr, const struct page *p)
{
    struct store_view v;
    int err = copies_view(p->handle, p->version, data[r->n], &v);
    if (err)
        return err;
    if (v.data != data[r->n])
        memcpy(data[r->n], v.data, EDM_PAGE_SIZE);
    store_unview(&v);
    if (!r->n)
        r->addr = addr;
    r->n++;
    return 0;
}

/* One page more. False: no room, or not possible now. */
static bool page_ahead(struct instance *in, struct run *r, uint64_t addr)
{
    struct chunk *c = spt_chunk(&in->spt, addr, false);
    if (!c || !budget_has_room(in, r->n + 1) || in->budget.fetching >= IN_FLIGHT_MAX)
        return false;
    struct page *p = &c->pages[spt_index(addr)];
    if (p->state != PAGE_STORED || p->flags & PF_FETCHING)
        return true;
    if ((r->n == RUN || (r->n && addr != r->addr + (uint64_t)r->n * EDM_PAGE_SIZE)) &&
        !run_place(in, r))
        return false;
    int err = run_add(in, r, addr, p);
    if (err == -EAGAIN) {
        uint32_t id = spt_id(c, spt_index(addr));
        ahead_begin(in, id);
        fetched(in, id);
    }
    return !err || err == -EAGAIN;
}

void ahead_pages(struct instance *in, uint64_t first, int64_t stride, uint32_t n)
{
    struct run r = {0, 0};
    uint64_t charge = budget_charge(in), limit = in->budget.limit;
    uint64_t room = charge < limit ? limit - charge : 0;
    if (budget_is_kept(in) && n > room)
        n = (uint32_t)room;
    if (stride < 0) { /* neighbours in ascending order */
        first += (uint64_t)(stride * ((int64_t)n - 1));
        stride = -stride;
    }
    for (uint32_t i = 0; i < n; i++)
        if (!page_ahead(in, &r, (first + (uint64_t)(stride * i)) << EDM_PAGE_SHIFT))
            break;
    run_place(in, &r);
    fetch_flush(in);
    fetch_remote_flush(in);
}

void ahead_of_fault(struct instance *in, uint64_t addr)
{
    if (!in->set.prefetch || !in->claimed)
        return;
    uint64_t max = in->budget.limit / 16;
    max = max < in->set.prefetch_max ? max : in->set.prefetch_max;
    struct prefetch_plan plan =
        prefetch_fault(&in->prefetcher, addr >> EDM_PAGE_SHIFT, (uint32_t)max);
    in->stats->prefetch_used += plan.used;
    if (plan.count)
        ahead_pages(in, plan.first, plan.stride, plan.count);
}
