/*
 * A server takes over from one that was killed. For each instance: its image and the kernel say
 * together where every page is. What the table calls stored is stored if the store has that
 * version; commands to the LPET go on; events that had been read and not applied are applied, and
 * those that wait are read. What is present in the instance's memory then is resident, whatever the
 * table says, for the kernel did it or was told to before the table was written. Then every managed
 * range is registered and woken: a fault that a server had read is announced again.
 */
#include "../config/log.h"
#include "die.h"
#include "holder.h"
#include "homes.h"
#include "instance.h"
#include "keeper.h"
#include "uffd.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SCAN_NS 1000000000ull

struct recovery {
    struct legacy legacy;
    struct instance **all;
    int *old_uffds; /* what the dead server called their userfaultfds */
    size_t n;
};

/* ---- the table ---- */

/*
 * What the kernel says is of now, what the table says of before the events that are not applied: a
 * page may have come since to where another had been evicted. So the table is settled by itself;
 * then come the events; then the kernel is asked.
 */

/* The tag of a command that is not looked at yet and that the page is in: what the page says, or
 * else the first. SPT_NONE: none. */
static uint32_t page_tag(const struct instance *in, const struct page *p, uint32_t id)
{
    uint32_t first = SPT_NONE;
    for (uint32_t n = in->cmd_seen; n != in->cmd_head; n++) {
        const struct track *t = &in->tracks[n % EDM_CHAN_CMDS];
        for (uint32_t i = 0; i < t->npages; i++) {
            uint32_t tag = n % EDM_CHAN_CMDS * EDM_CMD_PAGES + i;
            if (tag == p->link.next && (t->id[i] == id || t->at[i] == id))
                return tag;
            if (first == SPT_NONE && t->id[i] == id)
                first = tag;
        }
    }
    return first;
}

/* A page that a command was to take: it does; or its command was never given; or is the parent's.
 */
static void page_settle_evicting(struct instance *in, struct chunk *c, uint32_t i)
{
    struct page *p = &c->pages[i];
    if (!tag_is_own(p->link.next))
        return;
    uint32_t tag = page_tag(in, p, spt_id(c, i));
    if (tag != SPT_NONE) {
        p->link.next = tag; /* it may say already where in limbo it was to go */
        return;
    }
    spt_set(c, p, PAGE_RESIDENT);
    p->flags &= (uint8_t)~PF_DISCARD;
}

/* Only what a server that runs can use goes: lists, leases, fetches under way. */
static void page_settle(struct instance *in, struct chunk *c, uint32_t i)
{
    const uint8_t kept = PF_HOT | PF_DISCARD | PF_COPY | PF_WIPE | PF_NOFORK;
    struct page *p = &c->pages[i];
    p->flags &= p->state == PAGE_EVICTING ? kept : (uint8_t)(kept & ~PF_DISCARD);
    c->touched += p->state != PAGE_NEW;
    c->foreign += p->state == PAGE_FOREIGN;
    c->pinned += p->pins > 0;
    in->foreign |= p->state == PAGE_FOREIGN;
    if (p->handle && !copies_adopt(p->handle, p->version))
        p->handle = 0; /* of a stored page: lost, unless it is present or discarded */
    if (p->state == PAGE_EVICTING)
        page_settle_evicting(in, c, i);
    bool broken = p->state == PAGE_LIMBO && p->link.next >= in->limbo.pages;
    if (broken || (p->state == PAGE_STORED && !p->handle))
        spt_set(c, p, PAGE_POISONED);
    in->stored += p->state == PAGE_STORED;
    if (p->state == PAGE_RESIDENT)
        page_make_resident(in, c, spt_id(c, i), false);
}

static void chunk_settle(struct instance *in, struct chunk *c)
{
    c->touched = c->foreign = c->pinned = 0;
    c->broken_ns = c->leased ? now_ns() : c->broken_ns;
    c->unknown |= c->leased || (in->pagemap_fd < 0 && !spt_is_ghost(c));
    c->listed = c->leased = 0;
    for (uint32_t i = 0; i < EDM_CHUNK_PAGES; i++)
        page_settle(in, c, i);
}

/* ---- the kernel ---- */

/* Elsewhere a page that nothing is known of is not ours. */
static bool in_arena(const struct instance *in, const struct chunk *c)
{
    return c->addr - in->arena_start < in->arena_len;
}

/* Placed by the dead server before it could write that down, or by the kernel. */
static void page_is_there(struct instance *in, struct chunk *c, uint32_t i)
{
    struct page *p = &c->pages[i];
    switch (p->state) {
    case PAGE_NEW:
        if (!in_arena(in, c))
            return;
        break;
    case PAGE_STORED:
        in->stored--;
        break;
    case PAGE_LIMBO:
        in->limbo.owner[p->link.next] = RING_FREE;
        in->limbo.used--;
        break;
    case PAGE_POISONED:
        break;
    default:
        return;
    }
    page_make_resident(in, c, spt_id(c, i), false);
}

/* Snapshots the chunk while no call of the program's is under way whose event could not be read
 * yet. False: there always was one. */
static bool chunk_scan(struct instance *in, const struct chunk *c, uint64_t until_ns,
                       uint64_t *bits)
{
    const struct timespec pause = {.tv_nsec = 50000};
    for (;;) {
        if (uffd_present(in->pagemap_fd, c->addr, EDM_CHUNK_PAGES, bits))
            return false;
        if (!events_wait(in))
            return true;
        events_read(in); /* threads whose faults are read with them are woken later */
        if (now_ns() > until_ns)
            return false;
        nanosleep(&pause, NULL);
    }
}

/* What is not there was discarded, or a late command took it: its outcome will tell. */
static void chunk_look(struct instance *in, struct chunk *c, uint64_t until_ns)
{
    uint64_t bits[EDM_CHUNK_PAGES / 64];
    if (in->pagemap_fd < 0 || spt_is_ghost(c) || !chunk_scan(in, c, until_ns, bits))
        return; /* a forked child that nobody has claimed: its LPET will tell */
    c->unknown = 0;
    for (uint32_t i = 0; i < EDM_CHUNK_PAGES; i++)
        if (bits[i / 64] >> (i % 64) & 1)
            page_is_there(in, c, i);
        else if (c->pages[i].state == PAGE_RESIDENT && !evict_targets(in, spt_id(c, i)))
            page_forget(in, c, spt_id(c, i), PAGE_NEW);
}

/* ---- one instance ---- */

static struct instance *instance_load(const struct legacy *l, const struct state_instance *e)
{
    struct image *img;
    int fds[STATE_FDS];
    int fd = legacy_fd(l, e->fds[STATE_IMAGE]);
    if (fd < 0 || image_open(fd, &img)) {
        close(fd);
        return NULL;
    }
    struct instance *in = img->complete && !img->detached ? instance_from_image(fd, img) : NULL;
    if (!in) {
        image_close(img);
        close(fd);
        return NULL;
    }
    for (int i = 0; i < STATE_FDS; i++)
        fds[i] = e->fds[i] >= 0 && i != STATE_IMAGE ? legacy_fd(l, e->fds[i]) : -1;
    in->uffd = fds[STATE_UFFD];
    in->chan_fd = fds[STATE_CHAN];
    in->cmd_fd = fds[STATE_CMD];
    in->comp_efd = fds[STATE_COMP];
    in->pagemap_fd = fds[STATE_PAGEMAP];
    in->maps_fd = fds[STATE_MAPS];
    if (in->uffd >= 0 && !instance_is_gone(in) && (!in->claimed || !instance_adopt_channel(in)))
        return in;
    instance_put(in);
    return NULL;
}

static void instance_settle(struct instance *in)
{
    in->budget.evicting = in->budget.fetching = in->budget.leases = 0;
    for (uint32_t n = 0; n < in->spt.nchunks; n++) {
        chunk_settle(in, &in->spt.chunks[n]);
        in->nghosts += spt_is_ghost(&in->spt.chunks[n]);
    }
    if (!in->chan)
        return;
    evict_restore(in);
    op_restore(in);
    instance_await_lpet(in);
}

static struct instance *find(const struct recovery *r, uint64_t number)
{
    for (size_t i = 0; i < r->n; i++)
        if (r->all[i]->number == number)
            return r->all[i];
    return NULL;
}

/* A child's page that left its parent, or did not, when the child was made: the parent's outcome
 * will tell; without the parent nobody can. */
static void page_refollow(struct instance *parent, struct instance *child, uint32_t id)
{
    struct page *p = spt_page(&child->spt, id);
    struct chunk *c = spt_chunk_of(&child->spt, id);
    if (p->state != PAGE_EVICTING || tag_is_own(p->link.next))
        return;
    if (parent)
        fork_page_follow(parent, child, c, id, p->link.next - TAG_PARENT, p->link.prev);
    else
        spt_set(c, p, PAGE_POISONED);
}

static void instance_refollow(const struct recovery *r, struct instance *child)
{
    struct instance *parent = child->parent ? find(r, child->parent) : NULL;
    for (uint32_t id = 0; child->parent && id < child->spt.nchunks * EDM_CHUNK_PAGES; id++)
        page_refollow(parent, child, id);
}

/* ---- events that were read and not applied ---- */

/* Descriptor `old` of the dead server is the userfaultfd of an instance. */
static bool is_instance(const struct recovery *r, int old)
{
    for (size_t i = 0; i < r->n; i++)
        if (r->old_uffds[i] == old)
            return true;
    return false;
}

/* Takes the userfaultfds of children that were announced and are no instances yet. Until our own
 * state is ready, what the dead server called them stays written down, too. */
static void forks_take(const struct recovery *r, struct instance *in)
{
    uint64_t before = r->legacy.state->id;
    struct image_forks *f = &in->img->forks[in->img->forks[0].server == before];
    f->server = 0;
    image_order();
    for (uint32_t n = in->img->next; n < events_left(in); n++) {
        int old = image_fork_fd(in->img, before, n);
        bool wanted = in->img->msgs[n].event == UFFD_EVENT_FORK && old >= 0;
        f->fds[n] = wanted && !is_instance(r, old) ? legacy_fd(&r->legacy, old) : -1;
    }
    image_order();
    f->server = keeper_state()->id;
}

static void instance_catch_up(struct instance *in)
{
    pthread_mutex_lock(&in->lock);
    if (in->chan)
        instance_starve(in, true); /* until it goes on */
    events_apply(in, events_left(in));
    fork_register_all(in);                  /* what comes from now on is asked of us */
    uint64_t until_ns = now_ns() + SCAN_NS; /* what is not seen then is not counted */
    for (uint32_t n = 0; n < in->spt.nchunks; n++)
        chunk_look(in, &in->spt.chunks[n], until_ns);
    if (in->chan)
        evict_restore(in);
    pthread_mutex_unlock(&in->lock);
}

/* ---- on again ---- */

static void wake_all(struct instance *in)
{
    uffd_wake(in->uffd, in->identity, EDM_PAGE_SIZE);
    uffd_wake(in->uffd, in->arena_start, in->arena_len);
    for (uint32_t n = 0; n < in->spt.nchunks; n++)
        if (in->spt.chunks[n].addr - in->arena_start >= in->arena_len &&
            !spt_is_ghost(&in->spt.chunks[n]))
            uffd_wake(in->uffd, in->spt.chunks[n].addr, EDM_CHUNK_SIZE);
}

static void channel_resume(struct instance *in)
{
    in->chan->lpet_cpu = -1;
    __atomic_store_n(&in->chan->tampered, in->tampered, __ATOMIC_RELEASE);
    instance_starve(in, false);
    __atomic_store_n(&in->chan->cmd_head, in->cmd_head, __ATOMIC_RELEASE);
    evict_call(in);
}

static int instance_resume(struct instance *in)
{
    pthread_mutex_lock(&in->lock);
    instance_save(in);
    int err = in->chan ? instance_start_op_thread(in) : 0;
    if (!err)
        err = instance_start_handlers(in, in->pid);
    if (in->chan)
        channel_resume(in);
    in->kick = true;
    pthread_mutex_unlock(&in->lock);
    wake_all(in);
    instance_wake(in);
    return err;
}

static void lost_report(struct instance *in)
{
    uint64_t lost = 0;
    for (uint32_t n = 0; n < in->spt.nchunks; n++)
        for (uint32_t i = 0; i < EDM_CHUNK_PAGES; i++)
            lost += in->spt.chunks[n].pages[i].state == PAGE_POISONED;
    if (lost > in->stats->poisoned)
        edm_error("pid %d: %lu pages were lost with the last server: whoever touches one gets "
                  "SIGBUS",
                  in->pid, lost - in->stats->poisoned);
    in->stats->poisoned = lost;
}

/* ---- all ---- */

static int load_all(struct recovery *r)
{
    const struct state *old = r->legacy.state;
    r->all = calloc(old->ninstances + 1, sizeof(*r->all));
    r->old_uffds = calloc(old->ninstances + 1, sizeof(*r->old_uffds));
    if (!r->all || !r->old_uffds)
        return -ENOMEM;
    for (uint32_t n = 0; n < old->ninstances; n++) {
        struct instance *in =
            old->instances[n].used ? instance_load(&r->legacy, &old->instances[n]) : NULL;
        if (in) {
            r->old_uffds[r->n] = old->instances[n].fds[STATE_UFFD];
            r->all[r->n++] = in;
        }
        die_at(DIE_RECOVER_LOADED);
    }
    return 0;
}

static int tables_open(int homes, int copies, int kept, char *err, size_t errlen)
{
    int e = homes_open(homes);
    if (!e)
        e = copies_open(copies);
    if (!e)
        e = holder_open(kept, &keeper_state()->kept_pages);
    if (e)
        snprintf(err, errlen, "the tables of pages on other ranks cannot be %s: %s",
                 homes < 0 ? "made" : "taken over", strerror(-e));
    return e;
}

static int tables_take(const struct recovery *r, char *err, size_t errlen)
{
    const struct state *old = r->legacy.state;
    int homes = legacy_fd(&r->legacy, old->homes), copies = legacy_fd(&r->legacy, old->copies),
        kept = legacy_fd(&r->legacy, old->kept);
    if (homes >= 0 && copies >= 0 && kept >= 0)
        return tables_open(homes, copies, kept, err, errlen);
    snprintf(err, errlen, "the tables of pages on other ranks are gone");
    return -EBADF;
}

static int store_take(const struct recovery *r, const struct store_options *store, char *err,
                      size_t errlen)
{
    const struct state *old = r->legacy.state;
    struct store_fds fds = {legacy_fd(&r->legacy, old->store.memory),
                            legacy_fd(&r->legacy, old->store.slots),
                            legacy_fd(&r->legacy, old->store.disk)};
    fds.memory = fds.memory < 0 ? -1 : fds.memory;
    fds.slots = fds.slots < 0 ? -1 : fds.slots;
    fds.disk = fds.disk < 0 ? -1 : fds.disk;
    int e = store_reopen(store, &fds, err, errlen);
    if (e)
        return e;
    uint32_t newest = store_version_max();
    page_versions_from((int32_t)(newest - old->versions) > 0 ? newest : old->versions);
    return 0;
}

/* All that is done before it is ours: it can be done again. */
static int take_over(struct recovery *r, const struct store_options *store, char *err,
                     size_t errlen)
{
    int e = store_take(r, store, err, errlen);
    if (e)
        return e;
    die_at(DIE_RECOVER_STORE);
    e = tables_take(r, err, errlen);
    if (e)
        return e;
    instance_numbers_from(r->legacy.state->numbers);
    memcpy(keeper_state()->watched, r->legacy.state->watched, sizeof(keeper_state()->watched));
    if (load_all(r)) {
        snprintf(err, errlen, "out of memory for what the last server left");
        return -ENOMEM;
    }
    for (size_t i = 0; i < r->n; i++) {
        instance_settle(r->all[i]);
        die_at(DIE_RECOVER_SETTLED);
    }
    for (size_t i = 0; i < r->n; i++) {
        instance_refollow(r, r->all[i]);
        forks_take(r, r->all[i]);
        instance_save(r->all[i]);
    }
    return 0;
}

/* From here on it is our keeper's. */
static void make_ours(struct recovery *r)
{
    struct state *s = keeper_state();
    store_get_fds(&s->store);
    s->homes = homes_fd();
    s->copies = copies_fd();
    s->kept = holder_fd();
    die_at(DIE_RECOVER_UNSAID);
    image_order();
    s->ready = 1;
    die_at(DIE_RECOVER_SAID);
    legacy_close(&r->legacy, r->legacy.state != NULL);
    die_at(DIE_RECOVER_TOLD);
}

static void go_on(struct recovery *r)
{
    store_reopen_end();
    for (size_t i = 0; i < r->n; i++) {
        instance_catch_up(r->all[i]);
        die_at(DIE_RECOVER_CAUGHT);
    }
    for (size_t i = 0; i < r->n; i++) {
        lost_report(r->all[i]);
        instance_publish(r->all[i]);
        if (instance_resume(r->all[i]))
            edm_error("pid %d: no threads to serve it", r->all[i]->pid);
        die_at(DIE_RECOVER_RESUMED);
    }
    edm_warn("took over %zu instance%s from a server that ended", r->n, r->n == 1 ? "" : "s");
}

static int start_anew(const struct store_options *store, char *err, size_t errlen)
{
    int e = store_init(store, err, errlen);
    return e ? e : tables_open(-1, -1, -1, err, errlen);
}

static struct recovery recovery; /* from recover_all to recover_go_on */
static bool recovering;

int recover_all(const char *socket, const struct store_options *store, char *err, size_t errlen)
{
    struct recovery *r = &recovery;
    int e = legacy_open(socket, &r->legacy);
    recovering = e == 0;
    if (e && e != -ENOENT)
        edm_error("what the last server left cannot be taken over: %s", strerror(-e));
    die_at(DIE_RECOVER_OPENED);
    e = recovering ? take_over(r, store, err, errlen) : start_anew(store, err, errlen);
    if (!e)
        make_ours(r);
    if (!e && recovering)
        copies_reopen_end(); /* not before: what nobody names is gone then */
    legacy_close(&r->legacy, false);
    return e;
}

void recover_go_on(void)
{
    if (recovering)
        go_on(&recovery);
    free(recovery.all);
    free(recovery.old_uffds);
}
