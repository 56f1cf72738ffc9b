/*
 * Limbo: the ring pages of the channel. The LPET fills them in command order; each waits here for a
 * while, then its contents go to the store, in order. The copying is done by a parked handler, when
 * there is one, while the handler on the program's CPU serves faults: it is given a batch, and
 * needs no lock for it. A page may be wanted back meanwhile; then what was stored is dropped again.
 */
#include "die.h"
#include "instance.h"
#include <stdlib.h>

#define SLICE 32u
#define ASIDE 64u /* pages over the target that are worth waking a handler for */
#define LATE 128u /* pages over the target when nobody else has come */

/* ---- the ring ---- */

void limbo_release(struct limbo *l)
{
    while (!l->aside && l->tail < l->head && l->owner[l->tail % l->pages] == RING_FREE)
        l->tail++;
}

int64_t limbo_take(struct limbo *l, uint32_t n)
{
    uint32_t pos = (uint32_t)(l->head % l->pages);
    uint32_t skip = pos + n > l->pages ? l->pages - pos : 0;
    if (l->head - l->tail + skip + n > l->pages)
        return -1;
    for (uint32_t i = 0; i < skip; i++)
        l->owner[(l->head + i) % l->pages] = RING_FREE;
    l->head += skip;
    pos = (uint32_t)(l->head % l->pages);
    for (uint32_t i = 0; i < n; i++)
        l->owner[pos + i] = RING_PENDING;
    l->head += n;
    return pos;
}

/* Ring pages in use are those of LIMBO pages and of commands; the longest gap between them is what
 * is free. */
void limbo_restore(struct limbo *l)
{
    uint32_t gap = 0, best = 0, end = 0;
    l->used = 0;
    for (uint32_t i = 0; i < 2 * l->pages; i++) {
        uint32_t owner = l->owner[i % l->pages];
        l->used += i < l->pages && owner != RING_FREE && owner != RING_PENDING;
        gap = owner == RING_FREE ? gap + 1 : 0;
        if (gap > best) {
            best = gap;
            end = i + 1;
        }
    }
    best = best < l->pages ? best : l->pages;
    l->tail = end % l->pages;
    l->head = l->tail + l->pages - best;
}

/* ---- to the store ---- */

/* A page on its way: what it had when it was chosen, and what became of it. */
struct leaving {
    uint32_t ring, id;
    store_handle old, stored;
    uint32_t old_version, version;
    int err;
    bool same; /* its old copy is still right */
};

/* Up to max of the oldest pages, as long as more than `keep` stay. */
static unsigned batch_choose(struct instance *in, struct leaving *b, unsigned max, uint32_t keep,
                             bool force)
{
    struct limbo *l = &in->limbo;
    unsigned n = 0;
    for (uint64_t at = l->aside && !force ? l->aside : l->tail;
         n < max && l->used > keep + n && at < l->head; at++) {
        uint32_t ring = (uint32_t)(at % l->pages), id = l->owner[ring];
        if (id == RING_PENDING && !force)
            break;
        if (id == RING_PENDING || id == RING_FREE)
            continue;
        const struct page *p = spt_page(&in->spt, id);
        b[n++] =
            (struct leaving){.ring = ring, .id = id, .old = p->handle, .old_version = p->version};
        if (p->handle)
            copies_ref(p->handle);
    }
    return n;
}

static void batch_store(const struct limbo *l, const struct copies_wish *wish, struct leaving *b,
                        unsigned n, bool force)
{
    for (unsigned i = 0; i < n; i++) {
        const void *data = l->data + (size_t)b[i].ring * EDM_PAGE_SIZE;
        b[i].same = b[i].old && copies_same(b[i].old, b[i].old_version, data);
        if (b[i].same)
            continue;
        b[i].version = page_next_version();
        b[i].err = copies_put(data, b[i].version, wish, force, &b[i].stored);
    }
    if (n)
        die_at(DIE_DRAIN_PUT);
}

/* Puts the new copy into the page's entry; a successor sees the old one, none, or the new one. */
static void page_renew(struct instance *in, struct page *p, struct leaving *b)
{
    page_drop_handle(p);
    die_at(DIE_DRAIN_DROPPED);
    in->store_refused = b->err != 0;
    if (b->err)
        return;
    p->version = b->version;
    image_order();
    p->handle = b->stored;
    b->stored = 0;
    image_order();
    die_at(DIE_DRAIN_HANDLE);
}

/* False when the page stays in limbo. */
static bool page_leave(struct instance *in, struct leaving *b)
{
    struct page *p = spt_page(&in->spt, b->id);
    if (in->limbo.owner[b->ring] != b->id || p->handle != b->old)
        return false; /* wanted back, or discarded, while it was copied */
    if (b->same)
        in->stats->evicted_clean++;
    else
        page_renew(in, p, b);
    if (b->err)
        return false;
    in->limbo.owner[b->ring] = RING_FREE;
    in->limbo.used--;
    in->stored++;
    p->flags &= (uint8_t)~PF_HOT;
    spt_set(spt_chunk_of(&in->spt, b->id), p, PAGE_STORED);
    image_order(); /* until then it says where in limbo it is */
    p->link.next = (uint32_t)in->stats->evicted;
    return true;
}

static unsigned batch_leave(struct instance *in, struct leaving *b, unsigned n)
{
    unsigned left = 0;
    for (unsigned i = 0; i < n; i++) {
        left += page_leave(in, &b[i]);
        if (b[i].old)
            copies_unref(b[i].old);
        if (b[i].stored)
            copies_unref(b[i].stored);
    }
    limbo_release(&in->limbo);
    if (left) {
        in->progress_ns = now_ns();
        in->kick = true;
    }
    return left;
}

bool limbo_is_due(const struct instance *in)
{
    const struct limbo *l = &in->limbo;
    return l->used > l->target && !l->aside && l->owner[l->tail % l->pages] != RING_PENDING &&
           budget_is_kept(in) && !in->store_refused;
}

/* ---- by somebody with time ---- */

enum { ASIDE_NONE, ASIDE_POSTED, ASIDE_RUNNING, ASIDE_DONE };

struct aside {
    atomic_int state; /* NONE, POSTED by the lock's holder, RUNNING, DONE, NONE by the holder */
    unsigned n;
    struct copies_wish wish;
    struct leaving page[ASIDE];
};

struct aside *limbo_aside_new(void)
{
    return calloc(1, sizeof(struct aside));
}

bool limbo_post(struct instance *in)
{
    struct limbo *l = &in->limbo;
    struct aside *a = l->work;
    if (!limbo_is_due(in) || l->used < l->target + ASIDE)
        return false;
    a->n = batch_choose(in, a->page, ASIDE, l->target, false);
    if (!a->n)
        return false;
    a->wish = page_wish(in);
    l->aside = l->tail + (a->page[a->n - 1].ring + l->pages - l->tail % l->pages) % l->pages + 1;
    atomic_store(&a->state, ASIDE_POSTED);
    return true;
}

bool limbo_collect(struct instance *in)
{
    struct aside *a = in->limbo.work;
    if (!in->limbo.aside || atomic_load(&a->state) != ASIDE_DONE)
        return false;
    atomic_store(&a->state, ASIDE_NONE);
    in->limbo.aside = 0;
    return batch_leave(in, a->page, a->n) > 0;
}

bool limbo_work(struct instance *in)
{
    struct aside *a = in->limbo.work;
    int posted = ASIDE_POSTED;
    if (!atomic_compare_exchange_strong(&a->state, &posted, ASIDE_RUNNING))
        return false;
    batch_store(&in->limbo, &a->wish, a->page, a->n, false);
    atomic_store(&a->state, ASIDE_DONE);
    return true;
}

bool limbo_is_done(const struct instance *in)
{
    return atomic_load(&in->limbo.work->state) == ASIDE_DONE;
}

/* ---- by the lock's holder ---- */

/* Pages that shall not wait for anybody with time: some, or all but `keep`. */
static unsigned drain(struct instance *in, unsigned max, uint32_t keep, bool force)
{
    struct copies_wish wish = page_wish(in);
    struct leaving b[SLICE];
    unsigned done = 0, n, left;
    do {
        n = batch_choose(in, b, max - done < SLICE ? max - done : SLICE, keep, force);
        batch_store(&in->limbo, &wish, b, n, force);
        left = batch_leave(in, b, n);
        done += left;
    } while (done < max && n == SLICE && left == n);
    return done;
}

unsigned limbo_drain(struct instance *in, unsigned max, bool late)
{
    const struct budget *b = &in->budget;
    const struct limbo *l = &in->limbo;
    bool tight = budget_charge(in) + 1 > b->limit && !b->evicting;
    bool ring_low = l->pages - (l->head - l->tail) < EDM_CMD_PAGES;
    if (l->aside && (!late || tight || ring_low) && limbo_work(in))
        limbo_collect(in); /* whom it was posted for has not come */
    if (!l->used || (!tight && !ring_low && l->used <= l->target + (late ? LATE : 0)))
        return 0;
    return drain(in, max, tight || ring_low ? 0 : l->target, false);
}

void limbo_drain_all(struct instance *in)
{
    drain(in, UINT32_MAX, 0, true);
}
