/*
 * Calls of two threads whose events come in another order than the kernel did them: one thread's
 * munmap or mremap leaves a hole, mremap of another puts memory there, and its REMAP is read
 * first, for both are queued after the lock on the mappings is dropped (KERNEL.md 36).
 */
#include "instance.h"
#include "uffd.h"
#include <errno.h>

bool ghost_at(struct instance *in, uint64_t addr)
{
    if (!in->nghosts)
        return false;
    struct chunk *c = spt_chunk(&in->spt, addr | SPT_GHOST, false);
    const struct page *p = c ? &c->pages[spt_index(addr)] : NULL;
    return p && p->state != PAGE_FOREIGN && !(p->flags & PF_DISCARD);
}

/* Then what is announced there was before it came, unless a hook says that it is its own doing. */
static bool is_mapped(const struct instance *in, uint64_t addr)
{
    uint64_t start, end;
    bool anonymous;
    int err =
        in->maps_fd < 0 ? -ENOTTY : uffd_next_mapping(in->maps_fd, addr, &start, &end, &anonymous);
    return err == -ENOTTY || (!err && start <= addr);
}

bool ghost_is_meant(struct instance *in, uint64_t addr, uint64_t to)
{
    return ghost_at(in, addr) && !op_note_says(in, addr, EDM_PAGE_SIZE, to) && is_mapped(in, addr);
}

struct chunk *ghost_make(struct instance *in, uint64_t addr)
{
    struct chunk *c = page_chunk(in, addr | SPT_GHOST);
    struct page *p = c ? &c->pages[spt_index(addr)] : NULL;
    if (!c)
        return NULL;
    in->nghosts++;
    if (!p->pins) /* in no list of the LSPT: nothing can be evicted from there */
        c->pinned++;
    p->pins = PINS_FOR_GOOD;
    return c;
}

void ghost_drop(struct instance *in, uint64_t addr)
{
    struct chunk *c = spt_chunk(&in->spt, addr | SPT_GHOST, false);
    if (c)
        page_forget(in, c, spt_id(c, spt_index(addr)), PAGE_FOREIGN);
}

/* EAGAIN comes before the complaint about the empty range: nothing is looked up or locked. */
bool events_wait(const struct instance *in)
{
    return uffd_protect(in->uffd, in->identity, 0, false) == -EAGAIN;
}

void ghost_expire(struct instance *in)
{
    if (!in->nghosts || events_wait(in))
        return;
    for (uint32_t n = 0; n < in->spt.nchunks; n++) {
        struct chunk *c = &in->spt.chunks[n];
        for (uint32_t i = 0; i < EDM_CHUNK_PAGES && spt_is_ghost(c); i++)
            if (c->pages[i].state != PAGE_FOREIGN && !(c->pages[i].flags & PF_DISCARD))
                page_forget(in, c, spt_id(c, i), PAGE_FOREIGN);
    }
    in->nghosts = 0;
}
