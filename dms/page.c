#include "die.h"
#include "instance.h"
#include "keeper.h"

#define VERSIONS_STEP 65536u

/* Versions are shared by all instances: a handle and a version together never come twice. */
static atomic_uint version;

uint32_t page_next_version(void)
{
    uint32_t v;
    do
        v = atomic_fetch_add(&version, 1) + 1;
    while (v == 0);
    struct state *s = keeper_state();
    if (s && (int32_t)(v + VERSIONS_STEP / 2 - s->versions) >= 0) /* a successor begins there */
        s->versions = v + VERSIONS_STEP;
    return v;
}

void page_versions_from(uint32_t used)
{
    atomic_store(&version, used);
    keeper_state()->versions = used;
}

struct copies_wish page_wish(const struct instance *in)
{
    return (struct copies_wish){(enum edm_placement)in->set.placement, in->set.replicas};
}

struct chunk *page_chunk(struct instance *in, uint64_t addr)
{
    struct chunk *c = spt_chunk(&in->spt, addr, false);
    if (c || !(c = spt_chunk(&in->spt, addr, true)) || addr - in->arena_start < in->arena_len)
        return c;
    for (uint32_t i = 0; i < EDM_CHUNK_PAGES; i++)
        spt_set(c, &c->pages[i], PAGE_FOREIGN);
    return c;
}

void page_drop_handle(struct page *p)
{
    store_handle h = p->handle;
    p->handle = 0;
    image_order(); /* the slot is another page's as soon as it is free */
    if (h)
        copies_unref(h);
}

void page_make_resident(struct instance *in, struct chunk *c, uint32_t id, bool first)
{
    struct page *p = spt_page(&in->spt, id);
    spt_set(c, p, PAGE_RESIDENT);
    if (p->pins) {
        in->budget.pinned++;
        return;
    }
    lspt_push(&in->lspt, &in->spt, id, first);
    in->budget.resident++;
    budget_note(in);
}

/* Takes a resident page out of the LSPT; its state is the caller's to set. */
void page_unlist(struct instance *in, uint32_t id)
{
    struct page *p = spt_page(&in->spt, id);
    if (p->flags & PF_LISTED) {
        lspt_remove(&in->lspt, &in->spt, id);
        in->budget.resident--;
    } else {
        in->budget.pinned--;
    }
}

void page_forget(struct instance *in, struct chunk *c, uint32_t id, enum page_state state)
{
    struct page *p = spt_page(&in->spt, id);
    switch (p->state) {
    case PAGE_EVICTING: /* neither served nor leased until the outcome is known (KERNEL.md 4) */
        page_drop_handle(p);
        p->version = state; /* what it is to be then */
        image_order();
        p->flags |= PF_DISCARD;
        return;
    case PAGE_RESIDENT:
        page_unlist(in, id);
        break;
    case PAGE_LIMBO:
        in->limbo.owner[p->link.next] = RING_FREE;
        in->limbo.used--;
        break;
    case PAGE_STORED:
        in->stored--;
        break;
    default:
        break;
    }
    spt_set(c, p, state);
    image_order();
    die_at(DIE_FORGET);
    page_drop_handle(p);
    p->flags &= (uint8_t) ~(PF_HOT | PF_PREFETCHED | PF_FETCHING | PF_COPY | PF_DISCARD);
    if (state == PAGE_FOREIGN) {
        p->flags &= (uint8_t) ~(PF_WIPE | PF_NOFORK);
        in->foreign = true;
    }
}
