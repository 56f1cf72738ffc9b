/*
 * Sends pages to the ranks that shall keep them: one thread, which takes entries in the order in
 * which they were put, up to 16 a message. It may wait for the disk (of pages that XPET has written
 * already) and, to repair, for a rank.
 */
#include "../config/log.h"
#include "copies_int.h"
#include "holder.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WINDOW 8u           /* STOREs on their way to a rank */
#define STAT_NS 1000000000l /* between two questions how full a rank is */
#define STUCK_NS 50000000l  /* the same, while pages wait for room */
#define ROOM_PAGES 2048u    /* on their way: fewer are called room */

static struct {
    pthread_t thread;
    uint64_t asked_ns;
} spread;

/* Pages that go the same way. */
struct batch {
    uint32_t n, entry[RANK_PAGES];
    store_handle local[RANK_PAGES]; /* held; 0: it is read from another rank */
    uint32_t version[RANK_PAGES];
    bool bad[RANK_PAGES]; /* could not be read */
    int target[REMOTE_MAX], ntargets;
    bool home; /* from a rank that ends to this one, for want of another */
};

/* A STORE on its way. */
struct flight {
    int rank;
    uint32_t n, entry[RANK_PAGES];
};

/* ---- choice ---- */

/* "spread" chooses this rank when the page comes (spread_stays); what is to be sent goes elsewhere.
 */
static enum edm_placement sent_as(enum edm_placement placement)
{
    return placement == EDM_PLACEMENT_SPREAD ? EDM_PLACEMENT_LOCAL : placement;
}

void spread_ranks_changed(void)
{
    for (int r = 0; r < copies.nranks; r++) {
        struct peer_info info;
        peer_get_info(r, &info);
        copies.choice[r].usable = info.alive && !copies.ranks[r].leaving;
        copies.choice[r].host = info.host;
    }
    for (int p = EDM_PLACEMENT_LOCAL; p <= EDM_PLACEMENT_SPREAD; p++)
        copies.possible[p] = placement_possible(copies.choice, copies.nranks, copies.self,
                                                sent_as((enum edm_placement)p));
    spread_unstick();
}

void spread_unstick(void)
{
    copies.forsaken = 0;
    for (uint32_t i; (i = entry_pop(&copies.stuck));)
        entry_push(&copies.send, i, QUEUE_SEND);
    pthread_cond_signal(&copies.work);
}

void spread_rank_used(int rank, uint64_t capacity, uint64_t used)
{
    copies.ranks[rank].capacity = capacity;
    copies.ranks[rank].used = used;
    copies.choice[rank].free = capacity > used ? capacity - used : 0;
}

bool spread_stays(void)
{
    if (copies.spread_left == 0) {
        struct rank_stat own;
        holder_stat(copies.self, &own);
        spread_rank_used(copies.self, own.capacity, own.used);
        int r = placement_choose(copies.choice, copies.nranks, copies.self, EDM_PLACEMENT_SPREAD,
                                 NULL, 0);
        copies.spread_stays = r == copies.self || r < 0;
        copies.spread_left = RANK_PAGES;
    }
    copies.spread_left--;
    return copies.spread_stays;
}

/* ---- batches ---- */

static unsigned ranks_that_have(const struct entry *e, int *out)
{
    unsigned n = 0;
    if (e->keep_local)
        out[n++] = copies.self;
    for (unsigned k = 0; k < REMOTE_MAX; k++)
        if (place_is_there(&e->at[k]))
            out[n++] = homes_rank(e->at[k].home);
    return n;
}

static bool same_way(const struct entry *a, const struct entry *b)
{
    int ra[REMOTE_MAX + 1], rb[REMOTE_MAX + 1];
    unsigned n = ranks_that_have(a, ra);
    return a->placement == b->placement && a->wanted == b->wanted && !a->local == !b->local &&
           ranks_that_have(b, rb) == n && memcmp(ra, rb, n * sizeof(*ra)) == 0;
}

static void choose_targets(const struct entry *e, struct batch *b)
{
    int taken[REMOTE_MAX + 1 + REMOTE_MAX];
    int n = (int)ranks_that_have(e, taken), room = e->wanted - (int)entry_places(e);
    b->ntargets = 0;
    while (b->ntargets < room) {
        int r = placement_choose(copies.choice, copies.nranks, copies.self, sent_as(e->placement),
                                 taken, n);
        if (r < 0)
            return;
        b->target[b->ntargets++] = taken[n++] = r;
    }
}

/* No rank takes the page now. One that may be anywhere stays here, others wait. */
static void stick(uint32_t i)
{
    struct entry *e = copies_entry(i);
    if (e->placement == EDM_PLACEMENT_SPREAD && e->local && !e->keep_local && e->wanted) {
        e->wanted--;
        e->keep_local = true;
        copies.transit--;
        entry_settle(i);
    } else {
        entry_push(&copies.stuck, i, QUEUE_STUCK);
    }
}

/* Nobody but a rank that ends has it. */
static bool must_come_home(const struct entry *e)
{
    return entry_is_leaving(e) && !e->local && !entry_places(e);
}

static void batch_add(struct batch *b)
{
    uint32_t i = entry_pop(&copies.send);
    struct entry *e = copies_entry(i);
    e->flights += (uint8_t)(b->ntargets + b->home);
    if (e->local)
        store_ref(e->local);
    b->entry[b->n] = i;
    b->local[b->n] = e->local;
    b->version[b->n] = e->version;
    b->bad[b->n++] = false;
}

/* Lock held. The next pages and where to; false: nothing to do, or all windows are full. */
static bool batch_take(struct batch *b)
{
    b->n = 0;
    while (copies.send.first) {
        struct entry *e = copies_entry(copies.send.first);
        bool over = !e->count || !entry_is_somewhere(e) || entry_has_enough(e);
        if (!over)
            choose_targets(e, b);
        b->home = !over && !b->ntargets && must_come_home(e);
        if (!over && (b->ntargets || b->home))
            break;
        uint32_t i = entry_pop(&copies.send);
        if (over)
            entry_settle(i);
        else
            stick(i);
    }
    if (!copies.send.first)
        return false;
    for (int t = 0; t < b->ntargets; t++)
        if (copies.ranks[b->target[t]].flights >= WINDOW)
            return false;
    struct entry first = *copies_entry(copies.send.first);
    while (copies.send.first && b->n < RANK_PAGES) {
        const struct entry *e = copies_entry(copies.send.first);
        if (!e->count || !same_way(e, &first))
            break;
        batch_add(b);
    }
    for (int t = 0; t < b->ntargets; t++) {
        struct rank_view *r = &copies.ranks[b->target[t]];
        r->flights++;
        copies.flights++;
        spread_rank_used(b->target[t], r->capacity, r->used + b->n);
    }
    return true;
}

/* Pages of which no copy is here, all from one rank that has them. */
static void batch_fetch(struct batch *b, uint8_t *pages)
{
    struct copies_page page[RANK_PAGES];
    bool ok[RANK_PAGES];
    for (uint32_t k = 0; k < b->n; k++) {
        page[k] = (struct copies_page){b->entry[k] | COPIES_BIT, b->version[k]};
        b->bad[k] = true;
    }
    int rank = copies_rank(page[0].handle);
    if (rank < 0)
        return;
    copies_read_from(rank, page, b->n, pages, ok);
    for (uint32_t k = 0; k < b->n; k++)
        b->bad[k] = !ok[k];
}

static void batch_read(struct batch *b, uint8_t *pages)
{
    if (!b->local[0])
        batch_fetch(b, pages);
    for (uint32_t k = 0; k < b->n; k++) {
        uint8_t *to = pages + (size_t)k * RANK_PAGE;
        if (b->local[k]) {
            int err = store_read(b->local[k], b->version[k], to);
            store_unref(b->local[k]);
            b->bad[k] = err != 0;
        }
        if (b->bad[k]) {
            int err;
            while ((err = copies_read(b->entry[k] | COPIES_BIT, b->version[k], to)) == -EBUSY)
                ;
            b->bad[k] = err != 0;
        }
    }
}

/* ---- sending ---- */

/* One page of a STORE has its outcome; r NULL: the rank does not answer. */
static void page_answered(uint32_t i, int rank, const struct rank_result *r)
{
    struct entry *e = copies_entry(i);
    unsigned k = 0;
    uint32_t home = homes_of(rank);
    e->flights--;
    while (k < REMOTE_MAX && place_is_there(&e->at[k]) && !place_is_leaving(&e->at[k]))
        k++;
    bool stored = r && !r->code && r->slot;
    if (stored && k < REMOTE_MAX && home) {
        union place was = e->at[k];
        place_set(&e->at[k], (union place){{r->slot, (uint16_t)home, 0}});
        place_drop(e, &was); /* of a rank that ends; not before: it may be the only one */
        copies.ranks[rank].pages++;
    } else if (r && !stored) {
        spread_rank_used(rank, copies.ranks[rank].capacity, copies.ranks[rank].capacity);
    }
    entry_settle(i);
}

static void store_answered(void *arg, int err, struct rank_head *answer)
{
    struct flight *f = arg;
    const struct rank_stat *stat = err ? NULL : (const void *)(answer + 1);
    const struct rank_result *r = err ? NULL : (const void *)(stat + 1);
    pthread_mutex_lock(&copies.lock);
    struct rank_view *v = &copies.ranks[f->rank];
    v->flights--;
    copies.flights--;
    if (err == -EHOSTDOWN) /* until copies_rank_lost, which is to come, it is not tried again */
        copies.choice[f->rank].usable = false;
    if (stat)
        spread_rank_used(f->rank, stat->capacity, stat->used + (uint64_t)v->flights * RANK_PAGES);
    for (uint32_t k = 0; k < f->n; k++)
        page_answered(f->entry[k], f->rank, r ? &r[k] : NULL);
    pthread_cond_signal(&copies.work);
    pthread_mutex_unlock(&copies.lock);
    free(f);
    spread_tell_room();
}

/* Sends what could be read of the batch to one of its targets. */
static void batch_send(const struct batch *b, int rank, const uint8_t *pages)
{
    struct peer_buf *m = peer_buf_get();
    struct flight *f = malloc(sizeof(*f));
    uint32_t n = 0;
    for (uint32_t k = 0; k < b->n; k++)
        n += !b->bad[k];
    if (!m || !f || !n)
        goto fail;
    *f = (struct flight){.rank = rank};
    m->head->kind = RANK_STORE;
    m->head->count = n;
    struct rank_slot *slots = (void *)(m->head + 1);
    uint8_t *to = rank_pages(m->head);
    for (uint32_t k = 0; k < b->n; k++) {
        if (b->bad[k])
            continue;
        slots[f->n] = (struct rank_slot){0, b->version[k]};
        memcpy(to + (size_t)f->n * RANK_PAGE, pages + (size_t)k * RANK_PAGE, RANK_PAGE);
        f->entry[f->n++] = b->entry[k];
    }
    if (peer_request(rank, m, n * (sizeof(*slots) + RANK_PAGE), store_answered, f))
        store_answered(f, -EHOSTDOWN, NULL);
    return;
fail:
    if (m)
        peer_buf_put(m);
    if (f)
        *f = (struct flight){.rank = rank};
    pthread_mutex_lock(&copies.lock);
    copies.ranks[rank].flights--;
    copies.flights--;
    for (uint32_t k = 0; k < b->n; k++)
        if (!b->bad[k])
            page_answered(b->entry[k], rank, NULL);
    pthread_mutex_unlock(&copies.lock);
    free(f);
}

/* Lock held. It could not be read: it is not tried again and again; whoever wants it hears of it.
 */
static void give_up(struct entry *e)
{
    e->wanted = (uint8_t)entry_places(e);
    for (unsigned k = 0; k < REMOTE_MAX; k++) {
        if (!place_is_leaving(&e->at[k]))
            continue;
        copies.ranks[homes_rank(e->at[k].home)].pages--;
        e->at[k].lost = 1;
    }
}

/* Pages that no other rank can take from one that ends. */
static void batch_keep(const struct batch *b, const uint8_t *pages)
{
    for (uint32_t k = 0; k < b->n; k++) {
        store_handle h = 0;
        if (!b->bad[k])
            store_put(pages + (size_t)k * RANK_PAGE, b->version[k], true, &h);
        pthread_mutex_lock(&copies.lock);
        struct entry *e = copies_entry(b->entry[k]);
        e->flights--;
        e->local = h;
        if (b->bad[k])
            give_up(e);
        copies.transit += h && !e->keep_local;
        entry_settle(b->entry[k]);
        pthread_mutex_unlock(&copies.lock);
    }
}

static void batch_settle_bad(const struct batch *b)
{
    pthread_mutex_lock(&copies.lock);
    for (uint32_t k = 0; k < b->n; k++) {
        struct entry *e = copies_entry(b->entry[k]);
        if (!b->bad[k])
            continue;
        e->flights = (uint8_t)(e->flights - b->ntargets);
        give_up(e);
        entry_settle(b->entry[k]);
    }
    pthread_mutex_unlock(&copies.lock);
}

/* ---- giving back, asking ---- */

static void drop_answered(void *arg, int err, struct rank_head *answer)
{
}

/* Lock held. */
static void send_drops(int rank)
{
    struct rank_view *v = &copies.ranks[rank];
    while (v->ndrops) {
        uint32_t n = v->ndrops < RANK_DROPS ? (uint32_t)v->ndrops : RANK_DROPS;
        struct peer_buf *m = peer_buf_get();
        if (!m)
            return;
        v->ndrops -= n;
        copies.ndrops -= n;
        m->head->kind = RANK_DROP;
        m->head->count = n;
        memcpy(m->head + 1, v->drops + v->ndrops, n * sizeof(*v->drops));
        peer_request(rank, m, n * sizeof(*v->drops), drop_answered, NULL);
        spread_rank_used(rank, v->capacity, v->used > n ? v->used - n : 0);
    }
}

static void stat_answered(void *arg, int err, struct rank_head *answer)
{
    struct rank_view *v = arg;
    const struct rank_stat *s = err ? NULL : (const void *)(answer + 1);
    pthread_mutex_lock(&copies.lock);
    v->asked = false;
    if (s)
        spread_rank_used((int)(v - copies.ranks), s->capacity,
                         s->used + (uint64_t)v->flights * RANK_PAGES);
    if (s && s->capacity > s->used)
        spread_unstick();
    pthread_cond_signal(&copies.work);
    pthread_mutex_unlock(&copies.lock);
}

/* Lock held. How full they are; and a rank that pages depend on is found out when it is lost. */
static void ask_all(void)
{
    for (int r = 0; r < copies.nranks; r++) {
        struct rank_view *v = &copies.ranks[r];
        struct peer_buf *m;
        if (r == copies.self || !copies.choice[r].usable || v->asked || !(m = peer_buf_get()))
            continue;
        v->asked = true;
        m->head->kind = RANK_STAT;
        if (peer_request(r, m, 0, stat_answered, v))
            v->asked = false;
    }
    spread.asked_ns = copies_clock_ns();
}

/* ---- the thread ---- */

/* Lock held. Waits for work, no longer than until the ranks are to be asked again. */
static void wait_for_work(void)
{
    long ns = copies.stuck.n || copies.ndrops ? STUCK_NS : STAT_NS;
    struct timespec ts;
    if (!copies.entries && !copies.ndrops) {
        pthread_cond_wait(&copies.work, &copies.lock);
        return;
    }
    if (copies_clock_ns() - spread.asked_ns >= (uint64_t)ns)
        ask_all();
    clock_gettime(CLOCK_MONOTONIC, &ts);
    ts.tv_nsec += ns;
    ts.tv_sec += ts.tv_nsec / 1000000000l;
    ts.tv_nsec %= 1000000000l;
    pthread_cond_timedwait(&copies.work, &copies.lock, &ts);
}

static void *sender_main(void *arg)
{
    static uint8_t pages[RANK_PAGES * RANK_PAGE];
    struct batch b;
    pthread_setname_np(pthread_self(), "edm-sender");
    for (;;) {
        pthread_mutex_lock(&copies.lock);
        for (int r = 0; r < copies.nranks && copies.ndrops; r++)
            send_drops(r);
        bool any = batch_take(&b);
        if (!any)
            wait_for_work();
        pthread_mutex_unlock(&copies.lock);
        spread_tell_room();
        if (!any)
            continue;
        batch_read(&b, pages);
        if (b.home) {
            batch_keep(&b, pages);
            continue;
        }
        for (int t = 0; t < b.ntargets; t++)
            batch_send(&b, b.target[t], pages);
        batch_settle_bad(&b);
    }
    return NULL;
}

void spread_tell_room(void)
{
    pthread_mutex_lock(&copies.lock);
    bool room = copies.refused && copies.transit < ROOM_PAGES;
    bool full = copies.refused && !copies.full_told && !room && !copies.send.n && !copies.flights;
    if (room)
        copies.refused = copies.full_told = false;
    copies.full_told |= full;
    pthread_mutex_unlock(&copies.lock);
    if (room || full)
        copies.on_room(copies.arg, full);
}

int spread_start(void)
{
    int err = pthread_create(&spread.thread, NULL, sender_main, NULL);
    return -err;
}
