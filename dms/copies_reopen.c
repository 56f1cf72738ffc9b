/*
 * What a successor makes of the entries of a process that was killed. Which of them count, and how
 * often, the page tables say; the local copy counts if the store has it; and copies elsewhere count
 * when the rank with that identity is in the new job, and has the slot with that version.
 */
#include "../config/log.h"
#include "copies_int.h"
#include "holder.h"
#include <errno.h>
#include <semaphore.h>
#include <string.h>

#define MAGIC 0x69706f63u
#define LAYOUT 1u
#define ENTRIES (1u << 30)

/* ---- taking over ---- */

static void entry_take_over(uint32_t i)
{
    struct entry *e = copies_entry(i);
    e->count = e->next = 0;
    e->flights = e->queue = 0;
    if (!e->used)
        return;
    copies.top = i + 1;
    e->wanted = e->wanted < REMOTE_MAX ? e->wanted : REMOTE_MAX;
    if (e->placement > EDM_PLACEMENT_SPREAD)
        e->placement = EDM_PLACEMENT_LOCAL;
    for (unsigned k = 0; k < REMOTE_MAX; k++) {
        union place *p = &e->at[k];
        p->lost = 0; /* the rank may be back */
        if (p->home >= HOMES_MAX)
            p->all = 0;
        if (p->slot)
            homes_use(p->home);
    }
}

int copies_open(int fd)
{
    static const struct lasting_kind kind = {"edm-copies", MAGIC, LAYOUT, sizeof(struct entry),
                                             ENTRIES};
    int err = lasting_open(&copies.table, fd, &kind);
    if (err)
        return err;
    copies.top = 1;
    for (uint64_t from, to = 0; lasting_next(&copies.table, &from, &to);)
        for (uint64_t i = from ? from : 1; i < to; i++)
            entry_take_over((uint32_t)i);
    return 0;
}

int copies_fd(void)
{
    return copies.table.fd;
}

bool copies_adopt(store_handle h, uint32_t version)
{
    uint32_t i = h & ~COPIES_BIT;
    if (copies_is_store(h))
        return store_adopt(h, version);
    if (i == 0 || i >= copies.top)
        return false;
    struct entry *e = copies_entry(i);
    if (!e->used || e->version != version)
        return false;
    if (!e->count && e->local && !store_adopt(e->local, version))
        e->local = 0;
    if (!entry_is_somewhere(e))
        return false;
    e->count++;
    return true;
}

void copies_reopen_end(void)
{
    pthread_mutex_lock(&copies.lock);
    for (uint32_t i = copies.top; i-- > 1;) {
        const struct entry *e = copies_entry(i);
        if (!e->used || !e->count) {
            entry_free(i);
            continue;
        }
        copies.entries++;
        copies.transit += e->local && !e->keep_local;
    }
    pthread_mutex_unlock(&copies.lock);
}

/* ---- asking ---- */

struct claim {
    uint32_t n, entry[RANK_DROPS];
    struct rank_slot slot[RANK_DROPS];
    bool there[RANK_DROPS];
    int err;
    sem_t over;
};

static void claim_answered(void *arg, int err, struct rank_head *answer)
{
    struct claim *c = arg;
    const struct rank_result *r = (const void *)(answer + 1);
    c->err = err;
    for (uint32_t i = 0; i < c->n && !err; i++)
        c->there[i] = r[i].code == 0;
    sem_post(&c->over);
}

/* Sends what is in *c, or with n 0 that this was all; waits for the answer. 0 or -errno. */
static int claim_send(struct claim *c, int rank)
{
    struct peer_buf *m = peer_buf_get();
    if (!m)
        return -ENOMEM;
    m->head->kind = c->n ? RANK_CLAIM : RANK_CLAIMED;
    m->head->count = c->n;
    memcpy(m->head + 1, c->slot, c->n * sizeof(*c->slot));
    int err = peer_request(rank, m, c->n * sizeof(*c->slot), claim_answered, c);
    if (err)
        return err;
    while (sem_wait(&c->over))
        ;
    return c->err;
}

static bool is_at(const struct entry *e, const union place *p, int rank)
{
    return e->used && place_is_there(p) && homes_rank(p->home) == rank;
}

/* Lock held. The next pages from entry *i on that should be on that rank. */
static void claim_fill(struct claim *c, int rank, uint32_t *i)
{
    c->n = 0;
    for (; *i < copies.top && c->n < RANK_DROPS - REMOTE_MAX; ++*i) {
        const struct entry *e = copies_entry(*i);
        for (unsigned k = 0; k < REMOTE_MAX; k++) {
            if (!is_at(e, &e->at[k], rank))
                continue;
            c->entry[c->n] = *i;
            c->slot[c->n++] = (struct rank_slot){e->at[k].slot, e->version};
        }
    }
}

/* Lock held. Those that are not there are marked. */
static void claim_settle(const struct claim *c, int rank)
{
    for (uint32_t n = 0; n < c->n; n++) {
        struct entry *e = copies_entry(c->entry[n]);
        for (unsigned k = 0; k < REMOTE_MAX; k++) {
            if (!is_at(e, &e->at[k], rank) || e->at[k].slot != c->slot[n].slot)
                continue;
            e->at[k].lost = !c->there[n];
            copies.ranks[rank].pages -= !c->there[n];
        }
    }
}

/* All that this rank had for us. */
static void claim_rank(struct claim *c, int rank)
{
    int err = 0;
    for (uint32_t i = 1; i < copies.top && !err;) {
        pthread_mutex_lock(&copies.lock);
        claim_fill(c, rank, &i);
        pthread_mutex_unlock(&copies.lock);
        err = c->n ? claim_send(c, rank) : 0;
        pthread_mutex_lock(&copies.lock);
        if (!err)
            claim_settle(c, rank);
        pthread_mutex_unlock(&copies.lock);
    }
    c->n = 0;
    if (!err)
        claim_send(c, rank);
}

static bool is_here(int rank)
{
    return rank >= 0 && peer_is_alive(rank);
}

/* Lock held. What is on ranks that are in this job, and what is not. */
static void places_join(void)
{
    for (uint32_t i = 1; i < copies.top; i++) {
        struct entry *e = copies_entry(i);
        for (unsigned k = 0; e->used && k < REMOTE_MAX; k++) {
            union place *p = &e->at[k];
            int rank = homes_rank(p->home);
            p->lost = p->slot && !is_here(rank);
            if (place_is_there(p))
                copies.ranks[rank].pages++;
        }
    }
}

/* Lock held. True: no copy is left. The last one that was is remembered: its rank may come back. */
static bool entry_join(struct entry *e)
{
    if (!entry_is_somewhere(e))
        return true;
    for (unsigned k = 0; k < REMOTE_MAX; k++)
        if (e->at[k].lost)
            place_drop(e, &e->at[k]);
    return false;
}

static void entries_join(void)
{
    uint64_t lost = 0;
    pthread_mutex_lock(&copies.lock);
    for (uint32_t i = 1; i < copies.top; i++) {
        struct entry *e = copies_entry(i);
        if (!e->used)
            continue;
        lost += entry_join(e);
        entry_settle(i);
    }
    pthread_mutex_unlock(&copies.lock);
    if (lost)
        edm_error("%lu pages were on ranks that did not come back: whoever touches one waits until "
                  "`edm restart` brings them",
                  lost);
}

void copies_claim(void)
{
    static struct claim claim;
    bool all = true;
    sem_init(&claim.over, 0, 0);
    pthread_mutex_lock(&copies.lock);
    places_join();
    pthread_mutex_unlock(&copies.lock);
    for (int r = 0; r < copies.nranks; r++) {
        if (r != copies.self && peer_is_alive(r))
            claim_rank(&claim, r);
        all &= peer_is_alive(r);
    }
    entries_join();
    if (all) /* else who is missing may come back with the next job */
        holder_forget_absent();
}
