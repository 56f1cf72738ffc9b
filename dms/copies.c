#include "copies_int.h"

#include "../config/log.h"
#include "holder.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <xxhash.h>

#define TRANSIT_MAX 4096u /* pages */
#define MANY 256

struct copies copies = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- entries ---- */

struct entry *copies_entry(uint32_t i)
{
    return (struct entry *)copies.table.items + i;
}

struct entry *copies_entry_of(store_handle h)
{
    uint32_t i = h & ~COPIES_BIT;
    assert(i > 0 && i < copies.top && copies_entry(i)->used);
    return copies_entry(i);
}

/* Lock held. 0: too many. */
static uint32_t entry_new(const struct entry *as)
{
    uint32_t i = copies.free;
    if (i)
        copies.free = copies_entry(i)->next;
    else if (copies.top < copies.table.n)
        i = copies.top++;
    else
        return 0;
    *copies_entry(i) = *as;
    lasting_order();
    copies_entry(i)->used = true;
    copies.entries++;
    return i;
}

void entry_free(uint32_t i)
{
    struct entry *e = copies_entry(i);
    e->used = false;
    lasting_order();
    e->next = copies.free;
    copies.free = i;
}

void entry_push(struct entry_list *l, uint32_t i, enum entry_queue which)
{
    struct entry *e = copies_entry(i);
    e->queue = (uint8_t)which;
    e->next = 0;
    if (l->last)
        copies_entry(l->last)->next = i;
    else
        l->first = i;
    l->last = i;
    l->n++;
}

uint32_t entry_pop(struct entry_list *l)
{
    uint32_t i = l->first;
    if (!i)
        return 0;
    struct entry *e = copies_entry(i);
    l->first = e->next;
    if (!l->first)
        l->last = 0;
    l->n--;
    e->queue = QUEUE_NONE;
    return i;
}

bool place_is_leaving(const union place *p)
{
    int rank = homes_rank(p->home);
    return place_is_there(p) && rank >= 0 && copies.ranks[rank].leaving;
}

unsigned entry_places(const struct entry *e)
{
    unsigned n = 0;
    for (unsigned k = 0; k < REMOTE_MAX; k++)
        n += place_is_there(&e->at[k]) && !place_is_leaving(&e->at[k]);
    return n;
}

bool entry_is_somewhere(const struct entry *e)
{
    bool any = e->local != 0;
    for (unsigned k = 0; k < REMOTE_MAX; k++)
        any |= place_is_there(&e->at[k]);
    return any;
}

bool entry_is_leaving(const struct entry *e)
{
    bool any = false;
    for (unsigned k = 0; k < REMOTE_MAX; k++)
        any |= place_is_leaving(&e->at[k]);
    return any;
}

void place_set(union place *p, union place to)
{
    __atomic_store_n(&p->all, to.all, __ATOMIC_RELEASE);
    lasting_order();
}

void place_drop(struct entry *e, union place *p)
{
    struct rank_slot s = {p->slot, e->version};
    int rank = place_is_there(p) && copies.joined ? homes_rank(p->home) : -1;
    place_set(p, (union place){.all = 0});
    if (rank < 0) /* if it comes back, it hears what is still needed */
        return;
    struct rank_view *r = &copies.ranks[rank];
    r->pages--;
    if (!peer_is_alive(rank))
        return;
    if (r->ndrops == r->drops_cap) {
        size_t cap = r->drops_cap ? 2 * r->drops_cap : RANK_DROPS;
        struct rank_slot *more = realloc(r->drops, cap * sizeof(*more));
        if (!more)
            return; /* it stays there until this process ends */
        r->drops = more;
        r->drops_cap = cap;
    }
    r->drops[r->ndrops++] = s;
    if (copies.ndrops++ == 0)
        pthread_cond_signal(&copies.work);
}

void entry_leave_local(struct entry *e)
{
    if (!e->local)
        return;
    copies.transit -= !e->keep_local;
    store_handle h = e->local;
    e->local = 0;
    lasting_order(); /* the slot is another page's as soon as it is free */
    store_unref(h);
}

bool entry_has_enough(const struct entry *e)
{
    unsigned places = entry_places(e), possible = (unsigned)copies.possible[e->placement];
    unsigned enough = e->wanted < possible ? e->wanted : possible;
    return places >= enough && (places || e->local || !entry_is_leaving(e));
}

/* No copy of it is needed. */
static void entry_clear(struct entry *e)
{
    for (unsigned k = 0; k < REMOTE_MAX; k++)
        place_drop(e, &e->at[k]);
    entry_leave_local(e);
}

/* Nobody may have room for long: what is not wanted any more must not keep its own until then. */
static void entry_forsake(struct entry *e)
{
    e->queue = QUEUE_FORSAKEN;
    entry_clear(e);
    if (++copies.forsaken <= copies.stuck.n / 2)
        return;
    struct entry_list all = copies.stuck;
    copies.stuck = (struct entry_list){0};
    copies.forsaken = 0;
    for (uint32_t i; (i = entry_pop(&all));) {
        if (copies_entry(i)->count)
            entry_push(&copies.stuck, i, QUEUE_STUCK);
        else
            entry_settle(i);
    }
}

void entry_settle(uint32_t i)
{
    struct entry *e = copies_entry(i);
    if (e->queue == QUEUE_STUCK && e->count == 0) {
        entry_forsake(e);
        return;
    }
    if (e->queue != QUEUE_NONE)
        return;
    if (e->flights) /* where it will be then is not known yet */
        return;
    if (e->count == 0) {
        entry_clear(e);
        entry_free(i);
        copies.entries--;
        return;
    }
    unsigned places = entry_places(e);
    bool leaving = entry_is_leaving(e);
    if (!places && !e->local && !leaving)
        return; /* lost */
    if (!entry_has_enough(e)) {
        entry_push(&copies.send, i, QUEUE_SEND);
        pthread_cond_signal(&copies.work);
        return;
    }
    if (!e->keep_local && places)
        entry_leave_local(e);
    for (unsigned k = 0; k < REMOTE_MAX && leaving; k++)
        if (place_is_leaving(&e->at[k]))
            place_drop(e, &e->at[k]);
}

/* ---- putting and counting ---- */

void copies_hash(const void *page, uint64_t out[2])
{
    XXH128_hash_t h = XXH3_128bits(page, RANK_PAGE);
    out[0] = h.low64;
    out[1] = h.high64;
}

static void entry_wish(struct entry *e, const struct copies_wish *wish)
{
    unsigned replicas = wish->replicas < COPIES_MAX ? wish->replicas : COPIES_MAX;
    e->placement = (uint8_t)wish->placement;
    e->keep_local = wish->placement == EDM_PLACEMENT_LOCAL ||
                    (wish->placement == EDM_PLACEMENT_SPREAD && spread_stays());
    e->wanted = (uint8_t)(replicas - e->keep_local);
}

int copies_put(const void *page, uint32_t version, const struct copies_wish *wish, bool force,
               store_handle *out)
{
    store_handle local;
    if (wish->placement == EDM_PLACEMENT_LOCAL && wish->replicas < 2)
        return store_put(page, version, force, out);
    pthread_mutex_lock(&copies.lock);
    bool refuse = !force && copies.transit >= TRANSIT_MAX;
    if (refuse && !copies.refused)
        pthread_cond_signal(&copies.work); /* it tells when there is room, or that there is none */
    copies.refused |= refuse;
    pthread_mutex_unlock(&copies.lock);
    int err = refuse ? -ENOSPC : store_put(page, version, force, &local);
    if (err)
        return err;
    struct entry e = {.count = 1, .version = version, .local = local};
    copies_hash(page, e.hash);
    pthread_mutex_lock(&copies.lock);
    entry_wish(&e, wish);
    uint32_t i = entry_new(&e);
    if (i) {
        copies.transit += !e.keep_local;
        entry_settle(i);
        *out = i | COPIES_BIT;
    }
    pthread_mutex_unlock(&copies.lock);
    if (!i)
        store_unref(local);
    return i ? 0 : -ENOSPC;
}

static void entry_unref(store_handle h)
{
    struct entry *e = copies_entry_of(h);
    assert(e->count > 0);
    if (--e->count == 0)
        entry_settle(h & ~COPIES_BIT);
}

void copies_ref(store_handle h)
{
    copies_ref_many(&h, 1);
}

void copies_unref(store_handle h)
{
    copies_unref_many(&h, 1);
}

/* Both kinds of handles, a piece at a time: the store's to one side, entries here. */
static void count_many(const store_handle *h, size_t n, bool more)
{
    store_handle local[MANY];
    for (size_t i = 0; i < n;) {
        size_t end = n - i > MANY ? i + MANY : n, nlocal = 0;
        pthread_mutex_lock(&copies.lock);
        for (; i < end; i++) {
            if (!copies_is_entry(h[i]))
                local[nlocal++] = h[i];
            else if (more)
                copies_entry_of(h[i])->count++;
            else
                entry_unref(h[i]);
        }
        pthread_mutex_unlock(&copies.lock);
        if (more)
            store_ref_many(local, nlocal);
        else
            store_unref_many(local, nlocal);
    }
}

void copies_ref_many(const store_handle *h, size_t n)
{
    count_many(h, n, true);
}

void copies_unref_many(const store_handle *h, size_t n)
{
    count_many(h, n, false);
}

/* ---- ranks that go ---- */

uint64_t copies_clock_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* Lock held. Since when the copy is on a rank that is not there; 0: its rank is, or there is none.
 */
static uint64_t place_lost_since(const union place *p)
{
    int rank = homes_rank(p->home);
    if (!p->slot)
        return 0;
    if (rank < 0)
        return copies.joined_ns;
    if (peer_is_alive(rank))
        return 0;
    return copies.ranks[rank].lost_ns ? copies.ranks[rank].lost_ns : copies_clock_ns();
}

uint64_t copies_lost_since(store_handle h)
{
    uint64_t since = 0;
    if (!copies_is_entry(h))
        return 0;
    pthread_mutex_lock(&copies.lock);
    const struct entry *e = copies_entry_of(h);
    for (unsigned k = 0; k < REMOTE_MAX && !e->local; k++) {
        uint64_t at = place_lost_since(&e->at[k]);
        since = at > since ? at : since;
    }
    pthread_mutex_unlock(&copies.lock);
    return since;
}

/* Lock held. This copy is not to be had in this job; another is the better for it. */
static bool place_lose(struct entry *e, union place *p)
{
    int rank = homes_rank(p->home);
    p->lost = 1;
    copies.ranks[rank].pages--;
    if (!entry_is_somewhere(e))
        return true;
    place_drop(e, p);
    return false;
}

void copies_rank_lost(int rank)
{
    uint64_t lost = 0;
    pthread_mutex_lock(&copies.lock);
    copies.ranks[rank].lost_ns = copies_clock_ns();
    spread_ranks_changed();
    for (uint32_t i = 1; i < copies.top; i++) {
        struct entry *e = copies_entry(i);
        for (unsigned k = 0; e->used && k < REMOTE_MAX; k++)
            if (place_is_there(&e->at[k]) && homes_rank(e->at[k].home) == rank)
                lost += place_lose(e, &e->at[k]);
        if (e->used)
            entry_settle(i);
    }
    pthread_cond_signal(&copies.work);
    pthread_mutex_unlock(&copies.lock);
    spread_tell_room();
    if (lost)
        edm_error("rank %d had the only copy of %lu pages: whoever touches one waits until `edm "
                  "restart` brings it back",
                  rank, lost);
}

void copies_rank_leaves(int rank)
{
    pthread_mutex_lock(&copies.lock);
    copies.ranks[rank].leaving = true;
    spread_ranks_changed();
    for (uint32_t i = 1; i < copies.top; i++)
        if (copies_entry(i)->used)
            entry_settle(i);
    pthread_mutex_unlock(&copies.lock);
    holder_forget(rank); /* it has given its programs' pages back to them */
}

/* ---- numbers ---- */

uint32_t copies_fullness(store_handle h)
{
    if (!copies_is_entry(h))
        return store_fullness();
    uint64_t full = 0;
    pthread_mutex_lock(&copies.lock);
    const struct entry *e = copies_entry_of(h);
    for (unsigned k = 0; k < REMOTE_MAX; k++) {
        if (!place_is_there(&e->at[k]))
            continue;
        const struct rank_view *r = &copies.ranks[homes_rank(e->at[k].home)];
        uint64_t f = r->capacity ? r->used * 1000 / r->capacity : 1000;
        full = f > full ? f : full;
    }
    bool here = e->local != 0;
    pthread_mutex_unlock(&copies.lock);
    uint64_t f = here ? store_fullness() : 0;
    full = f > full ? f : full;
    return full > 1000 ? 1000 : (uint32_t)full;
}

uint64_t copies_missing(const store_handle *h, size_t n)
{
    uint64_t missing = 0;
    pthread_mutex_lock(&copies.lock);
    for (size_t i = 0; i < n; i++) {
        if (!copies_is_entry(h[i]))
            continue;
        const struct entry *e = copies_entry_of(h[i]);
        missing += entry_places(e) + (e->local != 0) < (unsigned)e->wanted + e->keep_local;
    }
    pthread_mutex_unlock(&copies.lock);
    return missing;
}

uint64_t copies_refused(void)
{
    pthread_mutex_lock(&copies.lock);
    uint64_t n = copies.refused_pages;
    pthread_mutex_unlock(&copies.lock);
    return n;
}

void copies_describe(store_handle h, char *buf, size_t len)
{
    uint32_t slot = h;
    int rank = copies.self;
    if (copies_is_entry(h)) {
        pthread_mutex_lock(&copies.lock);
        const struct entry *e = copies_entry_of(h);
        slot = e->local;
        for (unsigned k = 0; k < REMOTE_MAX; k++) {
            if (!e->at[k].slot)
                continue;
            slot = e->at[k].slot;
            rank = homes_rank(e->at[k].home);
        }
        pthread_mutex_unlock(&copies.lock);
    }
    if (rank < 0)
        snprintf(buf, len, "a rank of an earlier job, slot %u", slot);
    else
        snprintf(buf, len, "rank %d slot %u", rank, slot);
}

static void peer_json(FILE *f, int rank)
{
    struct peer_info info;
    struct rank_stat here;
    peer_get_info(rank, &info);
    holder_stat(rank, &here);
    pthread_mutex_lock(&copies.lock);
    struct rank_view r = copies.ranks[rank];
    pthread_mutex_unlock(&copies.lock);
    fprintf(f,
            "{\"rank\":%d,\"host\":\"%s\",\"alive\":%s,\"pages\":%lu,\"kept_pages\":%lu,"
            "\"capacity_bytes\":%lu,\"used_bytes\":%lu,\"rtt_us\":%.1f}",
            rank, info.host_name, info.alive && !r.leaving ? "true" : "false", r.pages, here.pages,
            r.capacity * RANK_PAGE, r.used * RANK_PAGE, (double)info.rtt_ns / 1e3);
}

void copies_peers_json(FILE *f)
{
    const char *comma = "";
    fputc('[', f);
    for (int r = 0; r < copies.nranks; r++) {
        if (r == copies.self)
            continue;
        fputs(comma, f);
        comma = ",";
        peer_json(f, r);
    }
    fputc(']', f);
}

/* ---- start ---- */

int copies_init(void (*on_room)(void *arg, bool full), void *arg)
{
    copies.nranks = peer_ranks();
    copies.self = peer_rank();
    copies.on_room = on_room;
    copies.arg = arg;
    copies.ranks = calloc((size_t)copies.nranks, sizeof(*copies.ranks));
    copies.choice = calloc((size_t)copies.nranks, sizeof(*copies.choice));
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&copies.work, &attr);
    pthread_condattr_destroy(&attr);
    return copies.ranks && copies.choice ? 0 : -ENOMEM;
}

int copies_start(void)
{
    homes_join();
    pthread_mutex_lock(&copies.lock);
    copies.joined = true;
    copies.joined_ns = copies_clock_ns();
    spread_ranks_changed();
    for (int r = 0; r < copies.nranks; r++) {
        struct peer_info info;
        peer_get_info(r, &info);
        spread_rank_used(r, info.capacity, info.used);
    }
    pthread_mutex_unlock(&copies.lock);
    copies_claim();
    return spread_start(); /* alone, too: it tells when nobody can take a page */
}
