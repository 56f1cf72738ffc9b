#include "instance.h"
#include <assert.h>

/* Versions are shared by all instances: a handle and a version together never come twice. */
uint32_t page_next_version(void)
{
    static atomic_uint version;
    uint32_t v;
    do
        v = atomic_fetch_add(&version, 1) + 1;
    while (v == 0);
    return v;
}

void page_drop_handle(struct page *p)
{
    if (p->handle)
        store_unref(p->handle);
    p->handle = 0;
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
    uint64_t charge = budget_charge(in);
    if (charge > in->budget.max)
        in->budget.max = charge;
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
        p->flags |= PF_DISCARD;
        p->version = state; /* what it is to be then */
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
    page_drop_handle(p);
    p->flags &= (uint8_t) ~(PF_HOT | PF_PREFETCHED | PF_FETCHING | PF_COPY | PF_DISCARD);
    if (state == PAGE_FOREIGN) {
        p->flags &= (uint8_t) ~(PF_WIPE | PF_NOFORK);
        in->foreign = true;
    }
    spt_set(c, p, state);
}
