/*
 * Forked children: the child's table starts as a copy of its parent's, stored pages are shared and
 * counted. See KERNEL.md 1, 8, 9, 13.
 */
#include "../config/log.h"
#include "die.h"
#include "instance.h"
#include "uffd.h"
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A child's page while its parent's is on the way out. */
void fork_page_follow(struct instance *parent, struct instance *child, struct chunk *c, uint32_t id,
                      uint32_t tag, bool at)
{
    struct follower *more =
        realloc(parent->followers, (parent->nfollowers + 1) * sizeof(*parent->followers));
    if (!more) {
        edm_error("pid %d: out of memory for a forked child's page", parent->pid);
        spt_set(c, spt_page(&child->spt, id), PAGE_POISONED); /* unless it is present there */
        return;
    }
    parent->followers = more;
    parent->followers[parent->nfollowers++] = (struct follower){instance_get(child), id, tag, at};
    spt_page(&child->spt, id)->link = (struct link){.prev = at, .next = tag + TAG_PARENT};
    spt_set(c, spt_page(&child->spt, id), PAGE_EVICTING);
}

static bool follows(const struct page *p, uint32_t tag, bool at)
{
    return p->state == PAGE_EVICTING && p->link.next == tag && p->link.prev == at;
}

/* The child's page with that tag: what was page id when it was made may have moved; SPT_NONE: gone.
 */
static uint32_t follow_find(const struct instance *child, uint32_t id, uint32_t tag, bool at)
{
    if (follows(spt_page(&child->spt, id), tag, at))
        return id;
    for (id = 0; id < child->spt.nchunks * EDM_CHUNK_PAGES; id++)
        if (follows(spt_page(&child->spt, id), tag, at))
            return id;
    return SPT_NONE;
}

/* Whether it had left before the child was made, only the child's memory says. */
static enum page_state follow_probe(struct instance *child, uint32_t id)
{
    uint64_t addr = spt_addr(&child->spt, id);
    if (uffd_poison(child->uffd, addr, EDM_PAGE_SIZE) == -EEXIST)
        return PAGE_RESIDENT;
    if (!instance_is_gone(child)) {
        edm_error("pid %d: page %#lx of a forked child is lost with its parent: whoever touches it "
                  "gets SIGBUS",
                  child->pid, (unsigned long)addr);
        child->stats->poisoned++;
    }
    return PAGE_POISONED;
}

static enum page_state follow_state(struct instance *child, uint32_t id, enum outcome_kind kind)
{
    switch (kind) {
    case OUTCOME_LEFT:
        return PAGE_NEW;
    case OUTCOME_UNKNOWN:
        return follow_probe(child, id);
    default:
        return PAGE_RESIDENT;
    }
}

/* It waits for its parent's page, also for a successor, until it has a copy of its own. */
static void follow_store(struct instance *child, struct chunk *c, struct page *p,
                         const void *contents)
{
    struct copies_wish wish = page_wish(child);
    uint32_t version = page_next_version();
    store_handle h = 0;
    if (copies_put(contents, version, &wish, true, &h)) {
        spt_set(c, p, PAGE_POISONED);
        return;
    }
    die_at(DIE_FOLLOW_PUT);
    page_drop_handle(p); /* of a server that died just here */
    p->version = version;
    image_order();
    p->handle = h;
    image_order();
    spt_set(c, p, PAGE_STORED);
    child->stored++;
}

static void follow_settle(struct instance *child, uint32_t id, enum outcome_kind kind,
                          const void *contents)
{
    struct page *p = spt_page(&child->spt, id);
    struct chunk *c = spt_chunk_of(&child->spt, id);
    bool discard = p->flags & PF_DISCARD;
    enum page_state then = discard ? p->version : follow_state(child, id, kind);
    if (then == PAGE_RESIDENT) {
        page_make_resident(child, c, id, false);
    } else if (!discard && contents) {
        follow_store(child, c, p, contents);
    } else {
        spt_set(c, p, PAGE_NEW); /* no longer EVICTING: page_forget may finish it */
        image_order();
        page_forget(child, c, id, then);
    }
    child->kick = true;
}

void fork_follow_other(struct instance *parent, uint32_t tag, uint32_t other)
{
    for (size_t i = 0; i < parent->nfollowers; i++) {
        struct follower *f = &parent->followers[i];
        if (f->tag != tag || f->at)
            continue;
        f->tag = other;
        f->at = true;
        pthread_mutex_lock(&f->child->lock);
        fork_follow_other(f->child, tag + TAG_PARENT, other + TAG_PARENT);
        uint32_t id = follow_find(f->child, f->id, tag + TAG_PARENT, false);
        if (id != SPT_NONE)
            spt_page(&f->child->spt, id)->link =
                (struct link){.prev = true, .next = other + TAG_PARENT};
        pthread_mutex_unlock(&f->child->lock);
    }
}

void fork_follow(struct instance *parent, uint32_t tag, bool at, enum outcome_kind kind,
                 const void *contents)
{
    for (size_t i = 0; i < parent->nfollowers;) {
        struct follower f = parent->followers[i];
        if (f.tag != tag || f.at != at) {
            i++;
            continue;
        }
        parent->followers[i] = parent->followers[--parent->nfollowers];
        pthread_mutex_lock(&f.child->lock);
        fork_follow(f.child, tag + TAG_PARENT, at, kind, contents); /* those whose parent it is */
        uint32_t id = follow_find(f.child, f.id, tag + TAG_PARENT, at);
        if (id != SPT_NONE)
            follow_settle(f.child, id, kind, contents);
        pthread_mutex_unlock(&f.child->lock);
        instance_wake(f.child);
        instance_put(f.child);
    }
}

/* Lock held. Lets go of children that have ended and of whose own children none waits, either. */
static void followers_sweep(struct instance *in)
{
    for (size_t i = 0; i < in->nfollowers;) {
        struct instance *child = in->followers[i].child;
        pthread_mutex_lock(&child->lock);
        followers_sweep(child);
        bool over = atomic_load(&child->stop) && !child->nfollowers;
        pthread_mutex_unlock(&child->lock);
        if (!over) {
            i++;
            continue;
        }
        in->followers[i] = in->followers[--in->nfollowers];
        instance_put(child);
    }
}

void fork_forget(void)
{
    size_t n;
    struct instance **all = instance_list(&n);
    for (size_t i = 0; i < n; i++) {
        pthread_mutex_lock(&all[i]->lock);
        followers_sweep(all[i]);
        pthread_mutex_unlock(&all[i]->lock);
        instance_put(all[i]);
    }
    free(all);
}

/* The LPET has not come to this command yet. */
static bool command_waits(const struct instance *in, uint32_t tag)
{
    uint32_t tail = __atomic_load_n(&in->chan->cmd_tail, __ATOMIC_ACQUIRE);
    uint32_t slot = tag / EDM_CMD_PAGES, number = in->cmd_seen;
    while (number != in->cmd_head && number % EDM_CHAN_CMDS != slot)
        number++;
    return (int32_t)(number - tail) >= 0;
}

/*
 * What page i of a parent's chunk is in the child. paused: the LPET stands still, so pages whose
 * command it has not begun have not left; those whose command is done but not looked at have.
 */
static void page_inherit(struct instance *parent, struct instance *child, struct chunk *c,
                         const struct chunk *of, uint32_t i, bool paused)
{
    const struct page *from = &of->pages[i];
    struct page *p = &c->pages[i];
    uint32_t id = spt_id(c, i);
    p->flags = from->flags & (PF_WIPE | PF_NOFORK | PF_HOT);
    if (from->flags & PF_NOFORK || from->state == PAGE_FOREIGN) {
        spt_set(c, p, PAGE_FOREIGN);
        child->foreign = true;
        return;
    }
    if (from->pins == PINS_FOR_GOOD) { /* mlock is not inherited, what a mutex needs is */
        p->pins = PINS_FOR_GOOD;
        c->pinned++;
    }
    if (from->flags & PF_WIPE)
        return;
    uint32_t target = evict_target_tag(parent, spt_id(of, i));
    switch (from->state) {
    case PAGE_RESIDENT: /* a late command may have taken it */
        if (target == SPT_NONE || (paused && command_waits(parent, target)))
            page_make_resident(child, c, id, false);
        else
            fork_page_follow(parent, child, c, id, target, true);
        break;
    case PAGE_EVICTING:
        if (from->flags & PF_DISCARD)
            break;
        if (paused && tag_is_own(from->link.next) && command_waits(parent, from->link.next))
            page_make_resident(child, c, id, false);
        else
            fork_page_follow(parent, child, c, id, from->link.next,
                             !tag_is_own(from->link.next) && from->link.prev);
        break;
    case PAGE_STORED:
        p->handle = from->handle;
        p->version = from->version;
        spt_set(c, p, PAGE_STORED);
        child->stored++;
        break;
    case PAGE_LIMBO: /* the store could not take it: never zeros in its place */
    case PAGE_POISONED:
        spt_set(c, p, PAGE_POISONED);
        break;
    default:
        break;
    }
}

static int chunk_inherit(struct instance *parent, struct instance *child, const struct chunk *from,
                         bool paused)
{
    store_handle handles[EDM_CHUNK_PAGES];
    size_t n = 0;
    struct chunk *c = spt_chunk(&child->spt, from->addr, true);
    if (!c)
        return -ENOMEM;
    c->unknown = from->leased | from->unknown;
    for (uint32_t i = 0; i < EDM_CHUNK_PAGES; i++) {
        page_inherit(parent, child, c, from, i, paused);
        if (c->pages[i].handle)
            handles[n++] = c->pages[i].handle;
    }
    copies_ref_many(handles, n);
    return 0;
}

/* A mapping in between that is no memory makes the kernel refuse the whole run. */
static void run_register(struct instance *in, uint64_t start, uint64_t end)
{
    if (start == end || !uffd_register(in->uffd, start, end - start, UFFD_MISSING | UFFD_WP))
        return;
    for (uint64_t a = start; a < end; a += EDM_CHUNK_SIZE) {
        struct chunk *c = spt_chunk(&in->spt, a, false);
        if (!c)
            a = spt_beyond(&in->spt, a) - EDM_CHUNK_SIZE;
        else if (lease_register(in, c))
            c->unevictable = 1; /* the kernel would serve zeros */
    }
}

/* KERNEL.md 1: whatever was leased, the child's whole memory is in MISSING mode. */
void fork_register_all(struct instance *in)
{
    const int mode = UFFD_MISSING | UFFD_WP;
    uffd_register(in->uffd, in->identity, EDM_PAGE_SIZE, mode);
    if (!in->foreign && uffd_register(in->uffd, in->arena_start, in->arena_len, mode) == 0)
        return;
    uint64_t start = in->arena_start, end = start + in->arena_len;
    for (uint64_t a = start; a < end; a += EDM_CHUNK_SIZE) {
        struct chunk *c = spt_chunk(&in->spt, a, false);
        if (!c || !c->foreign)
            continue;
        run_register(in, start, a);
        if (lease_register(in, c))
            c->unevictable = 1;
        start = a + EDM_CHUNK_SIZE;
    }
    run_register(in, start, end);
}

/* The thread that forked waits for this before the LPET may run again. */
static void fork_announce(struct instance *parent)
{
    uint32_t *word = &parent->chan->fork_seq;
    __atomic_fetch_add(word, 1, __ATOMIC_ACQ_REL);
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

struct instance *instance_from_fork(struct instance *parent, int uffd)
{
    const struct edm_chan *chan = parent->chan;
    die_at(DIE_FORK_BEGIN);
    bool paused = chan && __atomic_load_n(&chan->fork_hold, __ATOMIC_ACQUIRE) &&
                  !__atomic_load_n(&chan->lpet_busy, __ATOMIC_ACQUIRE);
    limbo_drain_all(parent);
    struct instance *child = instance_new(&parent->set, parent->uid);
    if (!child)
        return NULL;
    memcpy(child->command, parent->command, sizeof(child->command));
    child->run_token = parent->run_token;
    child->memory = parent->memory;
    child->memory_group = parent->memory_group;
    child->arena_start = parent->arena_start;
    child->arena_len = parent->arena_len;
    child->identity = parent->identity;
    child->features = parent->features;
    child->tampered = parent->tampered;
    child->budget = (struct budget){
        .limit = parent->budget.limit, .high = parent->budget.high, .low = parent->budget.low};
    child->uffd = uffd;
    child->parent = parent->number;
    pthread_mutex_lock(&child->lock);
    int err = 0;
    for (uint32_t n = 0; n < parent->spt.nchunks && !err; n++)
        if (!spt_is_ghost(&parent->spt.chunks[n]))
            err = chunk_inherit(parent, child, &parent->spt.chunks[n], paused);
    child->partial = err != 0;
    marks_inherit(&child->img->marks, &parent->img->marks); /* last: what has a chunk has it */
    die_at(DIE_FORK_TABLE);
    fork_register_all(child);
    instance_save(child);
    die_at(DIE_FORK_SAVED);
    instance_publish(child); /* before its first fault is answered: it claims itself then */
    if (!err)
        err = instance_start_handlers(child, parent->pid); /* its own is not known yet */
    pthread_mutex_unlock(&child->lock);
    if (err)
        edm_error("a forked child of pid %d is served in part: %s", parent->pid, strerror(-err));
    die_at(DIE_FORK_PUBLISHED);
    if (chan)
        fork_announce(parent);
    return child;
}
