/*
 * The way out: victims become commands to the LPET, its results become limbo pages (limbo.c). All
 * under the instance's lock.
 */
#include "../config/log.h"
#include "die.h"
#include "instance.h"
#include "uffd.h"
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define BUSY_RETRY_NS 20000000ull /* when nothing could be taken, look again after this */
#define PUT_OFF_NS 200000000ull   /* so long, at most, an outcome waits for events to be read */
#define TAG(slot, i) ((slot)*EDM_CMD_PAGES + (i))

static uint64_t load64(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}

/* ---- victims ---- */

uint32_t evict_target_tag(const struct instance *in, uint32_t id)
{
    if (!in->nat)
        return SPT_NONE;
    for (uint32_t n = in->cmd_seen; n != in->cmd_head; n++) {
        const struct track *t = &in->tracks[n % EDM_CHAN_CMDS];
        for (uint32_t i = 0; i < t->npages; i++)
            if (t->at[i] == id)
                return TAG(n % EDM_CHAN_CMDS, i);
    }
    return SPT_NONE;
}

bool evict_targets(const struct instance *in, uint32_t id)
{
    return evict_target_tag(in, id) != SPT_NONE;
}

static bool page_is_held(const struct instance *in, uint32_t id)
{
    uint64_t addr = in->nheld ? spt_addr(&in->spt, id) : 0;
    return (in->nheld && op_covers(in, addr, addr + EDM_PAGE_SIZE)) || evict_targets(in, id);
}

static bool run_takes(const struct instance *in, const struct chunk *c, uint32_t i, uint8_t like)
{
    const struct page *p = &c->pages[i];
    const uint8_t same = PF_HOT | PF_COPY | PF_LISTED;
    return p->state == PAGE_RESIDENT && (p->flags & same) == (like & same) && !p->pins &&
           !page_is_held(in, spt_id(c, i));
}

/* The run of pages around victim `id` to evict with it: its cluster, and what follows in order. */
static uint32_t run_find(const struct instance *in, uint32_t id, uint32_t max, uint32_t *first)
{
    const struct chunk *c = spt_chunk_of(&in->spt, id);
    uint32_t i = id % EDM_CHUNK_PAGES, cluster = in->set.cluster, n = 1;
    uint8_t like = c->pages[i].flags;
    uint32_t low = i / cluster * cluster, high = low + cluster;
    while (n < max && i > low && run_takes(in, c, i - 1, like)) {
        i--;
        n++;
    }
    for (uint32_t j = i + n; n < max && j < EDM_CHUNK_PAGES && run_takes(in, c, j, like); j++) {
        if (j >= high && c->pages[j - 1].link.next != spt_id(c, j))
            break;
        n++;
    }
    *first = spt_id(c, i);
    return n;
}

/* Opens leases at the head of the queue until it is a page. SPT_NONE: nothing can be taken. */
static uint32_t victim_next(struct instance *in)
{
    for (uint64_t tries = in->lspt.probation.count + in->lspt.protect.count + 1; tries > 0;
         tries--) {
        uint32_t node = lspt_victim(&in->lspt);
        if (node == SPT_NONE)
            return SPT_NONE;
        if (node & SPT_CHUNK_BIT) {
            struct chunk *c = &in->spt.chunks[node & ~SPT_CHUNK_BIT];
            if (op_covers(in, c->addr, c->addr + EDM_CHUNK_SIZE) || !lease_break(in, c, true)) {
                lspt_remove_lease(&in->lspt, &in->spt, c);
                lspt_push_lease(&in->lspt, &in->spt, c);
            }
            continue;
        }
        struct chunk *c = spt_chunk_of(&in->spt, node);
        if (!c->unevictable && lease_is_quiet(in, c) && !page_is_held(in, node))
            return node;
        lspt_remove(&in->lspt, &in->spt, node);
        lspt_push(&in->lspt, &in->spt, node, false);
    }
    return SPT_NONE;
}

/* ---- commands ---- */

static bool command_protect(struct instance *in, uint64_t addr, uint32_t n)
{
    return uffd_protect(in->uffd, addr, (uint64_t)n << EDM_PAGE_SHIFT, true) == 0;
}

/* The command at cmd_head is complete. */
static void command_publish(struct instance *in)
{
    in->cmd_head++;
    image_order();
    in->img->cmd_head = in->cmd_head;
    __atomic_store_n(&in->chan->cmd_head, in->cmd_head, __ATOMIC_RELEASE);
}

static void command_post(struct instance *in, uint32_t first, uint32_t n, uint32_t ring,
                         uint32_t kind)
{
    uint32_t slot = in->cmd_head % EDM_CHAN_CMDS;
    struct edm_cmd *cmd = &in->chan->cmds[slot];
    struct track *t = &in->tracks[slot];
    *t = (struct track){.npages = n, .slot = ring, .kind = kind, .posted_ns = now_ns()};
    for (uint32_t i = 0; i < n; i++) {
        struct page *p = spt_page(&in->spt, first + i);
        t->id[i] = first + i;
        t->at[i] = SPT_NONE;
        page_unlist(in, first + i);
        p->link.next = TAG(slot, i);
        p->removes = 0;
        image_order(); /* an EVICTING page always has its tag */
        spt_set(spt_chunk_of(&in->spt, first + i), p, PAGE_EVICTING);
    }
    die_at(DIE_COMMAND_TRACKED);
    in->budget.evicting += n;
    memset(cmd, 0, sizeof(*cmd));
    cmd->addr = spt_addr(&in->spt, first);
    cmd->npages = n;
    cmd->slot = ring;
    cmd->kind = kind;
    die_at(DIE_COMMAND_WRITTEN);
    command_publish(in);
    die_at(DIE_COMMAND_POSTED);
}

/* One command for the next victims; false when that is not possible now. */
static bool command_issue(struct instance *in, uint32_t want)
{
    if (in->cmd_head - in->cmd_seen >= EDM_CHAN_CMDS)
        return false;
    uint32_t id = victim_next(in), first;
    if (id == SPT_NONE)
        return false;
    uint32_t n = run_find(in, id, want < EDM_CMD_PAGES ? want : EDM_CMD_PAGES, &first);
    int64_t ring = limbo_take(&in->limbo, n);
    if (ring < 0)
        return false;
    bool copy = spt_page(&in->spt, id)->flags & PF_COPY || in->set.evict_method == EDM_EVICT_COPY;
    if (copy && !command_protect(in, spt_addr(&in->spt, first), n)) {
        for (uint32_t i = 0; i < n; i++)
            in->limbo.owner[ring + i] = RING_FREE;
        limbo_release(&in->limbo);
        lspt_remove(&in->lspt, &in->spt, id);
        lspt_push(&in->lspt, &in->spt, id, false);
        in->busy_streak++;
        return false;
    }
    command_post(in, first, n, (uint32_t)ring, copy ? EDM_CMD_COPY : EDM_CMD_MOVE);
    return true;
}

/* Pages that should still be sent off so that the budget comes under its low watermark. */
static uint64_t evict_goal(struct instance *in)
{
    struct budget *b = &in->budget;
    uint64_t limbo = in->limbo.used + b->evicting;
    uint64_t after = b->resident + b->leases * EDM_CHUNK_PAGES + b->fetching +
                     (limbo < in->limbo.target ? limbo : in->limbo.target);
    uint64_t goal = after > b->low ? after - b->low : 0;
    return goal > b->forced ? goal : b->forced;
}

bool evict_stuck(const struct instance *in)
{
    uint64_t listed = in->lspt.probation.count + in->lspt.protect.count;
    return in->busy_streak > 2 * listed + EDM_CMD_PAGES;
}

void evict_call(const struct instance *in)
{
    (void)!send(in->cmd_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL); /* full: it was called before */
}

void evict_kick(struct instance *in)
{
    struct budget *b = &in->budget;
    if (!in->claimed || !budget_is_kept(in) || in->detached)
        return;
    bool waiting = in->nwaiters > in->again && !budget_has_room(in, 1);
    if (budget_charge(in) <= b->high && !b->forced && !waiting)
        return;
    if (in->nheld)
        op_prune(in);
    if (evict_stuck(in) && now_ns() - in->busy_ns > BUSY_RETRY_NS)
        in->busy_streak = 0;
    uint64_t goal = evict_goal(in);
    uint32_t before = in->cmd_head;
    uint64_t flight = b->limit / 4 < IN_FLIGHT_MAX ? b->limit / 4 : IN_FLIGHT_MAX;
    flight = flight < 16 ? 16 : flight;
    while (goal > 0 && b->evicting < flight && !evict_stuck(in)) {
        uint64_t had = b->evicting;
        uint64_t want = goal < flight - had ? goal : flight - had;
        if (!command_issue(in, (uint32_t)want))
            break;
        uint64_t n = b->evicting - had;
        goal -= n < goal ? n : goal;
        b->forced -= n < b->forced ? n : b->forced;
    }
    if (in->cmd_head != before) {
        __atomic_store_n(&in->chan->comp_wanted, in->nwaiters > 0, __ATOMIC_RELAXED);
        evict_call(in);
    }
}

void evict_post_exit(struct instance *in)
{
    struct edm_cmd *cmd = &in->chan->cmds[in->cmd_head % EDM_CHAN_CMDS];
    in->tracks[in->cmd_head % EDM_CHAN_CMDS].npages = 0;
    memset(cmd, 0, sizeof(*cmd));
    cmd->kind = EDM_CMD_EXIT;
    command_publish(in);
    evict_call(in);
}

/* ---- completions ---- */

static void outcome_back(struct instance *in, struct chunk *c, uint32_t id, bool refused)
{
    struct page *p = spt_page(&in->spt, id);
    if (refused && !(p->flags & PF_COPY)) {
        p->flags |= PF_COPY;
        page_make_resident(in, c, id, true);
        return;
    }
    in->stats->evicted_busy++;
    in->busy_streak++;
    in->busy_ns = now_ns();
    p->flags &= (uint8_t)~PF_COPY;
    page_make_resident(in, c, id, false);
}

static void outcome_limbo(struct instance *in, uint32_t id, uint32_t ring)
{
    struct page *p = spt_page(&in->spt, id);
    in->limbo.owner[ring] = id;
    in->limbo.used++;
    p->link.next = ring;
    p->flags &= (uint8_t) ~(PF_PREFETCHED | PF_COPY);
    image_order();
    die_at(DIE_LIMBO_NAMED);
    spt_set(spt_chunk_of(&in->spt, id), p, PAGE_LIMBO);
}

static bool is_present(const struct instance *in, uint64_t addr)
{
    uint64_t bits = 0;
    return uffd_present(in->pagemap_fd, addr, 1, &bits) == 0 && bits & 1;
}

/* The page had been moved away before the LPET came. */
static void outcome_stayed(struct instance *in, uint32_t id)
{
    struct page *p = spt_page(&in->spt, id);
    struct chunk *c = spt_chunk_of(&in->spt, id);
    bool discard = p->flags & PF_DISCARD;
    enum page_state then = p->version;
    spt_set(c, p, PAGE_NEW);
    image_order();
    p->flags &= (uint8_t)~PF_DISCARD;
    if (discard)
        page_forget(in, c, id, then);
    else
        page_make_resident(in, c, id, false);
}

/* The bits of a command's result, each page in one mask only, whatever the instance wrote. */
struct outcome {
    uint64_t moved, zero, gone, refused;
    uint64_t id_there, at_there; /* of a page that has an `at`: which of the two are present */
    bool unknown;                /* the LPET has not come to saying it */
};

/* True when there is a choice between two pages. */
static bool outcome_look(const struct instance *in, const struct track *t, struct outcome *o)
{
    bool any = false;
    for (uint32_t i = 0; i < t->npages && in->nat; i++) {
        uint32_t id = t->id[i], at = t->at[i];
        if (at == SPT_NONE)
            continue;
        any = true;
        o->at_there |= (uint64_t)is_present(in, spt_addr(&in->spt, at)) << i;
        o->id_there |= (uint64_t)(id != SPT_NONE && is_present(in, spt_addr(&in->spt, id))) << i;
    }
    return any;
}

static bool page_awaits(const struct page *p, uint32_t tag)
{
    return p->state == PAGE_EVICTING && p->link.next == tag;
}

static bool command_took(const struct instance *in, uint32_t tag)
{
    const struct edm_cmd *cmd = &in->chan->cmds[tag / EDM_CMD_PAGES];
    return (load64(&cmd->moved) | load64(&cmd->zero)) >> tag % EDM_CMD_PAGES & 1;
}

/*
 * Was it late, and took the page that REMAP had brought to its address, not the one that it was for
 * (KERNEL.md 4)? The page that is missing where the table has it is the one that was taken.
 */
static bool outcome_is_late(const struct instance *in, const struct track *t, uint32_t i,
                            uint32_t tag, const struct outcome *o)
{
    uint32_t id = t->id[i], at = t->at[i];
    uint64_t bit = 1ull << i;
    uint64_t took = o->moved | (t->kind == EDM_CMD_COPY ? o->zero : 0);
    if (at == SPT_NONE || !(took & bit) || o->at_there & bit)
        return false;
    const struct page *p = id == SPT_NONE ? NULL : spt_page(&in->spt, id);
    if (p && page_awaits(p, tag) && !(p->flags & PF_DISCARD) && !(o->id_there & bit))
        return false;
    p = spt_page(&in->spt, at);
    if (p->state == PAGE_EVICTING && !(p->flags & PF_DISCARD)) /* it was to leave elsewhere, too */
        return tag_is_own(p->link.next) && (p->link.next == tag || !command_took(in, p->link.next));
    return p->state == PAGE_RESIDENT;
}

/* The page that is at the command's address now. */
static void outcome_at(struct instance *in, const struct track *t, uint32_t i, uint32_t tag,
                       bool late, bool there)
{
    uint32_t id = t->at[i];
    struct page *p = spt_page(&in->spt, id);
    struct chunk *c = spt_chunk_of(&in->spt, id);
    if (late && t->kind == EDM_CMD_COPY && p->state == PAGE_RESIDENT) {
        /* not protected, so not copied: it came while the LPET waited in MADV_DONTNEED */
        edm_error(
            "pid %d: page %#lx is lost (moved by a raw mremap to where a page was being copied "
            "out): whoever touches it gets SIGBUS",
            in->pid, (unsigned long)spt_addr(&in->spt, id));
        in->stats->poisoned++;
        page_forget(in, c, id, PAGE_POISONED);
        return;
    }
    if (late) {
        if (p->state == PAGE_RESIDENT)
            page_unlist(in, id);
        outcome_limbo(in, id, t->slot + i);
        return;
    }
    bool discard = p->flags & PF_DISCARD; /* nothing was served here meanwhile */
    if (!page_awaits(p, tag) || (!discard && id == t->id[i]))
        return;
    enum page_state then = discard ? p->version : PAGE_NEW;
    spt_set(c, p, PAGE_NEW);
    image_order();
    p->flags &= (uint8_t)~PF_DISCARD;
    if (there && !discard)
        page_make_resident(in, c, id, false);
    else
        page_forget(in, c, id, then);
}

/*
 * Nothing was left where the command came, nor is the page where it went: it was there that a late
 * command took it. That one's outcome tells.
 */
static bool outcome_pass_on(struct instance *in, uint32_t id, uint32_t tag)
{
    uint32_t other = evict_target_tag(in, id);
    if (other == SPT_NONE || other / EDM_CMD_PAGES == tag / EDM_CMD_PAGES)
        return false;
    spt_page(&in->spt, id)->link.next = other;
    fork_follow_other(in, tag, other);
    return true;
}

static void outcome_followers(struct instance *in, const struct track *t, uint32_t i, uint32_t tag,
                              const struct outcome *o, bool late)
{
    uint64_t bit = 1ull << i;
    bool left = (o->moved | o->zero | o->gone) & bit;
    const void *contents =
        o->moved & bit ? in->limbo.data + (size_t)(t->slot + i) * EDM_PAGE_SIZE : NULL;
    enum outcome_kind stayed = o->unknown ? OUTCOME_UNKNOWN : OUTCOME_STAYED;
    const struct page *p = late ? spt_page(&in->spt, t->at[i]) : NULL;
    if (p && p->state == PAGE_EVICTING && p->link.next != tag)
        fork_follow(in, p->link.next, false, OUTCOME_LEFT, contents);
    fork_follow(in, tag, true, late ? OUTCOME_LEFT : stayed, late ? contents : NULL);
    left = left && !late && !(o->id_there & bit);
    fork_follow(in, tag, false, left ? OUTCOME_LEFT : stayed, contents);
}

/* The page that the command was for, and that it has taken, or could not take. */
static void outcome_id(struct instance *in, const struct track *t, uint32_t i,
                       const struct outcome *o)
{
    uint32_t id = t->id[i];
    struct page *p = spt_page(&in->spt, id);
    struct chunk *c = spt_chunk_of(&in->spt, id);
    uint64_t bit = 1ull << i;
    bool left = (o->moved | o->zero | o->gone) & bit, discard = p->flags & PF_DISCARD;
    enum page_state then = discard ? p->version : PAGE_NEW;
    /* KERNEL.md 7: one REMOVE is the LPET's own, one more is the program's */
    if (t->kind == EDM_CMD_COPY && p->removes >= (left ? 2 : 1))
        discard = true;
    if (discard || o->gone & bit || o->zero & bit) {
        in->stats->evicted_zero += !discard && o->zero & bit;
        in->stats->evicted += !discard && o->zero & bit;
        spt_set(c, p, PAGE_NEW); /* no longer EVICTING: page_forget may finish it */
        image_order();
        page_forget(in, c, id, discard ? then : PAGE_NEW);
        return;
    }
    if (!(o->moved & bit)) {
        if (t->kind == EDM_CMD_COPY)
            uffd_protect(in->uffd, spt_addr(&in->spt, id), EDM_PAGE_SIZE, false);
        outcome_back(in, c, id, o->refused & bit);
        return;
    }
    in->busy_streak = 0;
    in->stats->evicted++;
    outcome_limbo(in, id, t->slot + i);
}

static void outcome_page(struct instance *in, struct track *t, uint32_t i, const struct outcome *o)
{
    uint32_t id = t->id[i], at = t->at[i], ring = t->slot + i;
    uint32_t tag = TAG((uint32_t)(t - in->tracks), i);
    uint64_t bit = 1ull << i;
    bool awaits = id != SPT_NONE && page_awaits(spt_page(&in->spt, id), tag);
    in->budget.evicting--;
    in->nat -= at != SPT_NONE;
    if (in->limbo.owner[ring] != RING_PENDING) { /* a server that died had come as far as this */
        if (awaits && in->limbo.owner[ring] != id)
            outcome_stayed(in, id);
        return;
    }
    in->limbo.owner[ring] = RING_FREE;
    bool late = outcome_is_late(in, t, i, tag, o);
    if (in->nfollowers)
        outcome_followers(in, t, i, tag, o, late);
    if (at != SPT_NONE)
        outcome_at(in, t, i, tag, late, o->at_there & bit);
    if (id == SPT_NONE || !page_awaits(spt_page(&in->spt, id), tag))
        return; /* as above */
    if (late || o->id_there & bit)
        outcome_stayed(in, id);
    else if (at == SPT_NONE || (o->moved | o->zero) & bit || !outcome_pass_on(in, id, tag))
        outcome_id(in, t, i, o);
}

static void command_over(struct instance *in, struct track *t)
{
    image_order();
    in->img->cmd_seen = ++in->cmd_seen;
    image_order();
    die_at(DIE_COMPLETE_OVER);
    t->npages = 0;
}

/*
 * An event is queued after its call has changed the mappings: only when none is under way does the
 * table say what was where (KERNEL.md 38). A program whose threads make such calls all the time is
 * not waited for longer than PUT_OFF_NS.
 */
static bool may_judge(struct instance *in)
{
    if (!events_wait(in))
        return true;
    uint64_t now = now_ns();
    if (!in->put_off_ns)
        in->put_off_ns = now;
    return now - in->put_off_ns > PUT_OFF_NS;
}

/* False: put off. */
static bool complete_one(struct instance *in, bool force)
{
    uint32_t slot = in->cmd_seen % EDM_CHAN_CMDS;
    const struct edm_cmd *cmd = &in->chan->cmds[slot];
    struct track *t = &in->tracks[slot];
    struct outcome o = {.moved = load64(&cmd->moved), .zero = load64(&cmd->zero)};
    o.zero &= ~o.moved;
    o.gone = load64(&cmd->gone) & ~(o.moved | o.zero);
    o.refused = load64(&cmd->refused) & ~(o.moved | o.zero | o.gone);
    if (outcome_look(in, t, &o) && !force && !may_judge(in))
        return false; /* what was seen may be due to a call that has begun since */
    die_at(DIE_COMPLETE_BEGIN);
    for (uint32_t i = 0; i < t->npages; i++) {
        outcome_page(in, t, i, &o);
        die_at(DIE_COMPLETE_PAGE);
    }
    die_at(DIE_COMPLETE_SEEN);
    command_over(in, t);
    return true;
}

bool evict_complete(struct instance *in, bool force)
{
    if (!in->chan || in->in_batch)
        return false;
    uint32_t tail = __atomic_load_n(&in->chan->cmd_tail, __ATOMIC_ACQUIRE), before = in->cmd_seen;
    if (tail - in->cmd_seen > in->cmd_head - in->cmd_seen)
        tail = in->cmd_seen; /* nonsense from the instance: it harms itself only */
    if (in->cmd_seen == tail || (!force && !may_judge(in)))
        return false;
    ghost_expire(in);
    while (in->cmd_seen != tail && complete_one(in, force))
        ;
    assert(in->cmd_seen != in->cmd_head || (!in->nat && !in->budget.evicting));
    if (in->cmd_seen == tail)
        in->put_off_ns = 0;
    if (in->cmd_seen == before)
        return false;
    limbo_release(&in->limbo);
    in->progress_ns = now_ns();
    in->kick = true;
    return true;
}

bool evict_cancel(struct instance *in, uint64_t start, uint64_t end)
{
    bool none = true;
    for (uint32_t n = in->cmd_seen; n != in->cmd_head; n++) {
        struct edm_cmd *cmd = &in->chan->cmds[n % EDM_CHAN_CMDS];
        struct track *t = &in->tracks[n % EDM_CHAN_CMDS];
        bool hit = false;
        for (uint32_t i = 0; i < t->npages && !hit; i++) {
            uint64_t a = t->id[i] == SPT_NONE ? 0 : spt_addr(&in->spt, t->id[i]);
            hit = a >= start && a < end;
        }
        if (!hit)
            continue;
        uint32_t posted = EDM_CMD_POSTED;
        none = false; /* also a cancelled one is over only when the LPET has passed it */
        __atomic_compare_exchange_n(&cmd->state, &posted, EDM_CMD_CANCELLED, false,
                                    __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    return none;
}

/* As busy, when it is still there; a page that was half way out is lost with its LPET. */
static void abandon_page(struct instance *in, struct track *t, uint32_t i)
{
    struct outcome none = {.unknown = true};
    uint32_t id = t->id[i];
    bool lost = id != SPT_NONE && !is_present(in, spt_addr(&in->spt, id));
    outcome_look(in, t, &none);
    outcome_page(in, t, i, &none);
    if (lost && spt_page(&in->spt, id)->state == PAGE_RESIDENT)
        page_forget(in, spt_chunk_of(&in->spt, id), id, PAGE_POISONED);
}

void evict_abandon(struct instance *in)
{
    evict_complete(in, true);
    while (in->cmd_seen != in->cmd_head) {
        struct track *t = &in->tracks[in->cmd_seen % EDM_CHAN_CMDS];
        for (uint32_t i = 0; i < t->npages; i++)
            abandon_page(in, t, i);
        command_over(in, t);
    }
    limbo_release(&in->limbo);
    in->claimed = false;
    in->kick = true;
}

void evict_restore(struct instance *in)
{
    struct limbo *l = &in->limbo;
    for (uint32_t i = 0; i < l->pages; i++)
        l->owner[i] = RING_FREE;
    for (uint32_t id = 0; id < in->spt.nchunks * EDM_CHUNK_PAGES; id++) {
        const struct page *p = spt_page(&in->spt, id);
        if (p->state == PAGE_LIMBO)
            l->owner[p->link.next] = id;
    }
    in->budget.evicting = in->nat = 0;
    for (uint32_t n = in->cmd_seen; n != in->cmd_head; n++) {
        const struct track *t = &in->tracks[n % EDM_CHAN_CMDS];
        in->budget.evicting += t->npages;
        for (uint32_t i = 0; i < t->npages; i++) {
            uint32_t *owner = &l->owner[t->slot + i];
            *owner = *owner == RING_FREE ? RING_PENDING : *owner;
            in->nat += t->at[i] != SPT_NONE;
        }
    }
    limbo_restore(l);
}
