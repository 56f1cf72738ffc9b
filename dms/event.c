/*
 * What the kernel tells of the program's own doings: REMOVE, UNMAP, REMAP, FORK. They are the
 * truth about its mappings; the hooks only help.
 */
#include "../config/log.h"
#include "die.h"
#include "instance.h"
#include "keeper.h"
#include "uffd.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define UNMAP_MAKE_MAX (1ul << 30)

static bool page_is_copied_out(struct instance *in, const struct page *p)
{
    return p->state == PAGE_EVICTING && tag_is_own(p->link.next) &&
           in->tracks[p->link.next / EDM_CMD_PAGES].kind == EDM_CMD_COPY;
}

/*
 * Steps of an event that must be done once, also when a server dies in the midst: `step` counts
 * from 1 and rises. False: the dead server had done it. *again: it had begun it.
 */
static bool step_begin(struct instance *in, uint64_t step, const struct page *before, bool *again)
{
    struct image_redo *r = &in->img->redo;
    if (r->msg != in->img->next) {
        r->step = r->done = 0;
        image_order();
        r->msg = in->img->next;
        image_order();
    }
    if (step <= r->done)
        return false;
    *again = r->step == step;
    if (*again)
        return true;
    r->page = *before;
    image_order();
    r->step = step;
    image_order();
    return true;
}

/* Had the dead server ended this step of the event that is being applied? */
static bool step_is_done(const struct instance *in, uint64_t step)
{
    const struct image_redo *r = &in->img->redo;
    return r->msg == in->img->next && step <= r->done;
}

/* … or begun it, at least? */
static bool step_is_begun(const struct instance *in, uint64_t step)
{
    const struct image_redo *r = &in->img->redo;
    return r->msg == in->img->next && step <= r->step;
}

static void step_end(struct instance *in, uint64_t step)
{
    image_order();
    in->img->redo.done = step;
    image_order();
}

/* One more REMOVE event for a page that is being copied out. */
static void page_removed(struct instance *in, struct page *p, uint64_t step)
{
    bool again;
    if (!step_begin(in, step, p, &again))
        return;
    uint8_t before = in->img->redo.page.removes;
    p->removes = before < 3 ? before + 1 : before;
    die_at(DIE_REMOVE_COUNTED);
    step_end(in, step);
}

/* The program discarded pages [first, last] of a chunk. The pages themselves go only later. */
static void chunk_remove(struct instance *in, struct chunk *c, uint32_t first, uint32_t last)
{
    /* a hook says when it is over, a raw system call does not */
    c->last_remove_ns = op_note_covers(in, c->addr, c->addr + EDM_CHUNK_SIZE) ? 1 : now_ns();
    if (c->leased)
        c->removed_ns = c->last_remove_ns;
    if (!c->touched)
        return;
    for (uint32_t i = first; i <= last; i++) {
        struct page *p = &c->pages[i];
        if (page_is_copied_out(in, p) && !(p->flags & PF_DISCARD))
            page_removed(in, p, (c->addr >> EDM_PAGE_SHIFT) + i);
        else if (p->state != PAGE_NEW && p->state != PAGE_FOREIGN)
            page_forget(in, c, spt_id(c, i), PAGE_NEW);
        die_at(DIE_REMOVE_PAGE);
    }
}

static void unmap_ghost(struct instance *in, uint64_t addr, uint64_t step)
{
    const struct page nothing = {.state = PAGE_NEW};
    bool again;
    if (!step_begin(in, step, &nothing, &again))
        return;
    ghost_drop(in, addr);
    step_end(in, step);
}

static void chunk_unmap(struct instance *in, struct chunk *c, uint32_t first, uint32_t last)
{
    for (uint32_t i = first; i <= last; i++) {
        uint64_t addr = c->addr + i * EDM_PAGE_SIZE, step = addr >> EDM_PAGE_SHIFT;
        if (step_is_done(in, step)) /* its ghost was meant, and is gone */
            continue;
        if (ghost_is_meant(in, addr, 0))
            unmap_ghost(in, addr, step);
        else if (c->pages[i].state != PAGE_FOREIGN)
            page_forget(in, c, spt_id(c, i), PAGE_FOREIGN);
        die_at(DIE_UNMAP_PAGE);
    }
}

typedef void chunk_fn(struct instance *, struct chunk *, uint32_t, uint32_t);

/* Calls fn for each part of [start, end) in its chunk; makes missing chunks when asked to. */
static void for_chunks(struct instance *in, uint64_t start, uint64_t end, bool make, chunk_fn *fn)
{
    while (start < end) {
        uint64_t stop = (start | (EDM_CHUNK_SIZE - 1)) + 1;
        struct chunk *c = spt_chunk(&in->spt, start, make);
        stop = stop < end ? stop : end;
        if (c)
            fn(in, c, spt_index(start), spt_index(stop - 1));
        start = stop;
    }
}

static bool in_arena(const struct instance *in, uint64_t addr)
{
    return addr - in->arena_start < in->arena_len;
}

static void event_remove(struct instance *in, uint64_t start, uint64_t end)
{
    in->stats->removes++;
    if (in->chan) /* MADV_FREE leaves the pages: what is written now must not go with them */
        evict_cancel(in, start, end);
    for_chunks(in, start, end, false, chunk_remove);
}

/*
 * A raw system call has unmapped or moved a part of the arena, and the next one may move a part of
 * a leased chunk to where a late command takes it: until the event is read and applied the kernel
 * would serve zeros in its place.
 */
static void raw_call_seen(struct instance *in)
{
    in->tampered = true;
    in->img->tampered = 1;
    if (in->chan)
        __atomic_store_n(&in->chan->tampered, 1, __ATOMIC_RELEASE);
    for (uint32_t n = 0; n < in->spt.nchunks; n++)
        if (in->spt.chunks[n].leased && !lease_break(in, &in->spt.chunks[n], false))
            in->spt.chunks[n].unevictable = 1;
}

static void advice_is_lost(const struct instance *in)
{
    edm_error("pid %d: too many ranges of MADV_DONTFORK, MADV_WIPEONFORK or mlock: one of them is "
              "not what it was",
              in->pid);
}

static void event_unmap(struct instance *in, uint64_t start, uint64_t end)
{
    in->stats->unmaps++;
    if (in->chan)
        evict_cancel(in, start, end);
    if (in_arena(in, start) && !in->tampered && !op_note_covers(in, start, end))
        raw_call_seen(in);
    /* outside of the arena an unmapped page is like one never seen; tables for ranges that huge
     * would cost more than registering a hole does harm */
    bool make = in_arena(in, start) && end - start <= UNMAP_MAKE_MAX && in->made < MADE_MAX;
    if (advice_unmapped(in, start, end))
        advice_is_lost(in);
    uint32_t before = in->spt.nchunks;
    for_chunks(in, start, end, make, chunk_unmap);
    in->made += in->spt.nchunks - before;
}

/*
 * The page's outstanding command is for its old address. The outcome goes with the page; at the old
 * address nothing is served until it is known (KERNEL.md 4).
 */
static void command_follow(struct instance *in, struct chunk *from, uint32_t i, uint32_t id)
{
    struct page *p = &from->pages[i];
    uint32_t tag = p->link.next;
    if (!tag_is_own(tag)) { /* fork.c finds it; and nothing is taken from the old address */
        spt_set(from, p, PAGE_NEW);
        return;
    }
    struct track *t = &in->tracks[tag / EDM_CMD_PAGES];
    uint32_t *at = &t->at[tag % EDM_CMD_PAGES];
    if (*at != SPT_NONE && *at != spt_id(from, i)) { /* not its first move: it was free to go */
        t->id[tag % EDM_CMD_PAGES] = id;
        spt_set(from, p, PAGE_NEW);
        return;
    }
    in->nat += *at == SPT_NONE;
    *at = spt_id(from, i);
    image_order();
    t->id[tag % EDM_CMD_PAGES] = id;
    p->version = PAGE_NEW;
    image_order();
    p->flags |= PF_DISCARD; /* last: then it is done */
}

/* Another page comes to an address for which a command is outstanding. */
static void command_orphan(struct instance *in, struct chunk *c, uint32_t i)
{
    struct page *p = &c->pages[i];
    uint32_t tag = p->link.next;
    if (p->state != PAGE_EVICTING)
        return;
    struct track *t = tag_is_own(tag) ? &in->tracks[tag / EDM_CMD_PAGES] : NULL;
    if (t && t->id[tag % EDM_CMD_PAGES] == spt_id(c, i)) {
        t->id[tag % EDM_CMD_PAGES] = SPT_NONE;
        if (t->at[tag % EDM_CMD_PAGES] == SPT_NONE) {
            in->nat++;
            t->at[tag % EDM_CMD_PAGES] = spt_id(c, i);
        }
    }
    page_drop_handle(p);
    p->flags &= (uint8_t)~PF_DISCARD;
    spt_set(c, p, PAGE_NEW);
}

/* A late command may have taken the page that leaves its address: it is asked for where it goes. */
static void target_follow(struct instance *in, uint32_t from, uint32_t to)
{
    const struct page *q = spt_page(&in->spt, to);
    uint32_t own = q->state == PAGE_EVICTING ? q->link.next : SPT_NONE;
    for (uint32_t n = in->cmd_seen; in->nat && n != in->cmd_head; n++) {
        struct track *t = &in->tracks[n % EDM_CHAN_CMDS];
        for (uint32_t i = 0; i < t->npages; i++)
            if (t->at[i] == from && n % EDM_CHAN_CMDS * EDM_CMD_PAGES + i != own)
                t->at[i] = to;
    }
}

/* Moves what is known of one page to its new address. */
static void page_move(struct instance *in, struct chunk *from, uint32_t i, struct chunk *to,
                      uint32_t j)
{
    const uint8_t mapping = PF_WIPE | PF_NOFORK; /* MREMAP_DONTUNMAP leaves the mapping its own */
    struct page *p = &from->pages[i], *q = &to->pages[j];
    struct page moving = *p;
    uint32_t id = spt_id(to, j);
    if (moving.state == PAGE_FOREIGN ||
        (moving.state == PAGE_EVICTING && moving.flags & PF_DISCARD))
        moving.state = PAGE_NEW; /* its contents are nobody's; a hole does not move */
    if (moving.state == PAGE_RESIDENT)
        page_unlist(in, spt_id(from, i));
    if (q->state != PAGE_NEW)
        page_forget(in, to, id, PAGE_NEW);
    page_drop_handle(q); /* of a server that died half-way */
    die_at(DIE_REMAP_BEFORE);
    q->link = moving.link;
    q->handle = moving.handle;
    q->version = moving.version;
    q->removes = moving.removes;
    q->flags = (uint8_t)(moving.flags & ~(PF_FETCHING | PF_LISTED | PF_DISCARD));
    image_order();
    die_at(DIE_REMAP_COPIED);
    if (moving.state == PAGE_RESIDENT)
        page_make_resident(in, to, id, false);
    else
        spt_set(to, q, moving.state);
    /* nobody can see whether a ghost is there */
    if ((moving.state == PAGE_RESIDENT || moving.state == PAGE_EVICTING) && !spt_is_ghost(to))
        target_follow(in, spt_id(from, i), id);
    if (moving.state == PAGE_LIMBO)
        in->limbo.owner[q->link.next] = id;
    image_order();
    die_at(DIE_REMAP_BOTH);
    p->flags &= mapping | PF_DISCARD;
    if (moving.state == PAGE_EVICTING)
        command_follow(in, from, i, id);
    image_order();
    p->handle = 0;
    if (moving.state != PAGE_EVICTING && p->state != PAGE_EVICTING)
        spt_set(from, p, PAGE_NEW);
}

/* page_move, as a step that a successor can finish. */
static void page_move_once(struct instance *in, struct chunk *from, uint32_t i, struct chunk *to,
                           uint32_t j, uint64_t step)
{
    struct page *p = &from->pages[i];
    const struct page *before = &in->img->redo.page;
    bool again;
    if (!step_begin(in, step, p, &again))
        return;
    if (!again || before->state == PAGE_NEW ||
        (p->state == before->state && p->handle == before->handle &&
         !((p->flags ^ before->flags) & PF_DISCARD))) {
        page_move(in, from, i, to, j);
    } else if (p->state != PAGE_EVICTING && p->state != PAGE_NEW) { /* only this remained */
        if (p->state == PAGE_RESIDENT)
            page_unlist(in, spt_id(from, i));
        spt_set(from, p, PAGE_NEW);
    }
    die_at(DIE_REMAP_MOVED);
    step_end(in, step);
}

static bool page_may_be_taken(const struct instance *in, uint32_t id)
{
    uint32_t tag = evict_target_tag(in, id);
    return tag != SPT_NONE && in->tracks[tag / EDM_CMD_PAGES].kind == EDM_CMD_MOVE;
}

/* What arrived from leased chunks was counted by the chunk: see what is there, or may have been
 * until a late command took it. */
static void remap_rescan(struct instance *in, uint64_t start, uint64_t end)
{
    while (start < end) {
        uint64_t bits[EDM_CHUNK_PAGES / 64];
        uint64_t stop = (start | (EDM_CHUNK_SIZE - 1)) + 1;
        struct chunk *c = spt_chunk(&in->spt, start, false);
        stop = stop < end ? stop : end;
        uint32_t n = (uint32_t)((stop - start) >> EDM_PAGE_SHIFT), first = spt_index(start);
        if (c && !c->leased && uffd_present(in->pagemap_fd, start, n, bits) == 0)
            for (uint32_t i = 0; i < n; i++)
                if (c->pages[first + i].state == PAGE_NEW &&
                    (bits[i / 64] >> (i % 64) & 1 || page_may_be_taken(in, spt_id(c, first + i))))
                    page_make_resident(in, c, spt_id(c, first + i), false);
        start = stop;
    }
}

/* Pages from `off` on that need no look: nothing is known of them at either address. */
static uint64_t remap_skip(struct instance *in, uint64_t from, uint64_t to)
{
    if (spt_chunk(&in->spt, from, false) || spt_chunk(&in->spt, to, false))
        return 0;
    uint64_t a = EDM_CHUNK_SIZE - from % EDM_CHUNK_SIZE, b = EDM_CHUNK_SIZE - to % EDM_CHUNK_SIZE;
    return a < b ? a : b;
}

/* Its UNMAP has been applied. */
static bool page_is_unmapped(const struct page *p)
{
    return p->state == PAGE_FOREIGN ||
           (p->state == PAGE_EVICTING && p->flags & PF_DISCARD && p->version == PAGE_FOREIGN);
}

/*
 * A page comes to where the table has one. What was there has been unmapped or moved, or the kernel
 * would have told so before: that event is late, and the page waits for it.
 */
static bool remap_displace(struct instance *in, struct chunk *c, uint32_t i, uint64_t step)
{
    if (step_is_done(in, step))
        return true;
    struct chunk *g = ghost_make(in, c->addr + i * EDM_PAGE_SIZE);
    if (!g)
        return false;
    command_orphan(in, g, i);
    page_move_once(in, c, i, g, i, step);
    return true;
}

/* The chunk that has what goes away from addr; may be NULL. */
static struct chunk *remap_source(struct instance *in, uint64_t addr, uint64_t to, bool *leased)
{
    bool ghost = ghost_is_meant(in, addr, to);
    struct chunk *c = spt_chunk(&in->spt, ghost ? addr | SPT_GHOST : addr, false);
    *leased |= ghost || (c && (c->leased || c->broken_ns)); /* also if broken since it left */
    return c;
}

/* A page of which nothing is known but what was said of its mapping. */
static void page_unknown_comes(struct instance *in, uint64_t from, struct chunk *c, uint32_t i)
{
    if (c->pages[i].state != PAGE_NEW)
        page_forget(in, c, spt_id(c, i), PAGE_NEW);
    if (!spt_chunk(&in->spt, from, false))
        c->pages[i].flags |= advice_flags(in, from);
}

/* Moves the table entries. False: out of memory. */
static bool remap_pages(struct instance *in, uint64_t from, uint64_t to, uint64_t len, bool *leased)
{
    for (uint64_t off = 0; off < len;) {
        uint64_t skip = remap_skip(in, from + off, to + off);
        uint64_t step = (off >> EDM_PAGE_SHIFT) * 2 + 1; /* what is there goes; what comes */
        if (step_is_done(in, step + 1)) {
            off += EDM_PAGE_SIZE;
            continue;
        }
        if (skip) {
            off += skip;
            continue;
        }
        struct chunk *f = remap_source(in, from + off, to + off, leased);
        struct chunk *t = page_chunk(in, to + off);
        uint32_t j = spt_index(to + off);
        if (!t)
            return false;
        if (t->leased && !lease_break(in, t, false))
            t->unevictable = 1;
        if (!step_is_begun(in, step + 1)) { /* else it is the page that comes already */
            if (!page_is_unmapped(&t->pages[j]) && !remap_displace(in, t, j, step))
                return false;
            command_orphan(in, t, j);
        }
        if (f)
            page_move_once(in, f, spt_index(from + off), t, j, step + 1);
        else
            page_unknown_comes(in, from + off, t, j);
        off += EDM_PAGE_SIZE;
    }
    return true;
}

/* mremap may have made the mapping longer, which the event does not say: the new pages are
 * inherited as the moved ones are. */
static void remap_grown(struct instance *in, uint64_t to, uint64_t len)
{
    const struct chunk *first = spt_chunk(&in->spt, to, false);
    uint64_t start, end;
    bool anonymous;
    uint8_t flags =
        first ? first->pages[spt_index(to)].flags & (PF_WIPE | PF_NOFORK) : advice_flags(in, to);
    if (!flags || in->maps_fd < 0 || uffd_next_mapping(in->maps_fd, to, &start, &end, &anonymous) ||
        start > to)
        return;
    if (end > to + len && advice_grown(in, to + len, end, flags))
        advice_is_lost(in);
}

static void event_remap(struct instance *in, uint64_t from, uint64_t to, uint64_t len)
{
    bool leased = false;
    in->stats->remaps++;
    if (in->chan) {
        evict_cancel(in, from, from + len);
        evict_cancel(in, to, to + len);
    }
    if (advice_moved(in, from, to, len))
        advice_is_lost(in);
    if (!remap_pages(in, from, to, len, &leased))
        edm_error("pid %d: out of memory for page tables", in->pid);
    if (leased && in->pagemap_fd >= 0)
        remap_rescan(in, to, to + len);
    remap_grown(in, to, len);
}

static void event_fork(struct instance *in, int uffd)
{
    if (uffd < 0) /* a dead server had made an instance of it */
        return;
    in->stats->forks++;
    struct instance *child = instance_from_fork(in, uffd);
    if (!child) {
        /* the descriptor stays open: a child that waits is better than one that reads zeros */
        edm_error("pid %d: its forked child cannot be served: out of memory", in->pid);
    }
}

/* Applies message n of the batch. */
static void event_apply(struct instance *in, uint32_t n)
{
    const struct uffd_msg *m = &in->img->msgs[n];
    switch (m->event) {
    case UFFD_EVENT_REMOVE:
        event_remove(in, m->arg.remove.start, m->arg.remove.end);
        break;
    case UFFD_EVENT_UNMAP:
        event_unmap(in, m->arg.remove.start, m->arg.remove.end);
        break;
    case UFFD_EVENT_REMAP:
        event_remap(in, m->arg.remap.from, m->arg.remap.to, m->arg.remap.len);
        break;
    case UFFD_EVENT_FORK:
        event_fork(in, image_fork_fd(in->img, keeper_state()->id, n));
        break;
    default:
        break;
    }
}

/* Applies message `next` of the batch, unless it is a fault. */
static void event_next(struct instance *in, uint32_t next)
{
    struct image *img = in->img;
    if (img->msgs[next].event != UFFD_EVENT_PAGEFAULT) {
        in->kick = true;
        die_at(DIE_EVENT_BEGIN);
        event_apply(in, next);
        die_at(DIE_EVENT_END);
    }
    image_order();
    img->next = next + 1;
}

int events_read(struct instance *in)
{
    struct image *img = in->img;
    uint32_t before = img->next;
    for (uint32_t i = 0; i < before; i++)
        img->msgs[i].event = 0;
    image_order();
    img->redo.msg = UINT32_MAX;
    img->forks[0].server = img->forks[1].server = 0;
    image_order();
    img->next = 0;
    if (in->chan)
        __atomic_store_n(&in->chan->batch, in->chan->batch | 1, __ATOMIC_SEQ_CST);
    int n = uffd_read(in->uffd, img->msgs, IMAGE_MSGS);
    if (n)
        die_at(DIE_EVENTS_READ);
    events_apply(in, (uint32_t)n);
    return n;
}

/*
 * Before anything else: what came from a leased chunk may be taken by a late command, and until it
 * is in MISSING mode the kernel serves zeros in its place. The thread runs on since the event was
 * read.
 */
static void remaps_register(struct instance *in, uint32_t n)
{
    for (uint32_t i = in->img->next; i < n; i++) {
        const struct uffd_msg *m = &in->img->msgs[i];
        if (m->event != UFFD_EVENT_REMAP)
            continue;
        int err =
            uffd_register(in->uffd, m->arg.remap.to, m->arg.remap.len, UFFD_MISSING | UFFD_WP);
        if (err && err != -ENOENT && err != -EINVAL && err != -ESRCH)
            edm_debug("pid %d: registering moved memory: %s", in->pid, strerror(-err));
        die_at(DIE_REMAP_REGISTER);
    }
}

void events_apply(struct instance *in, uint32_t n)
{
    remaps_register(in, n);
    in->in_batch = true;
    while (in->img->next < n)
        event_next(in, in->img->next);
    in->in_batch = false;
    if (in->chan && in->chan->batch & 1)
        __atomic_store_n(&in->chan->batch, in->chan->batch + 1, __ATOMIC_SEQ_CST);
}

uint32_t events_left(const struct instance *in)
{
    uint32_t n = in->img->next;
    while (n < IMAGE_MSGS && in->img->msgs[n].event)
        n++;
    return n;
}
