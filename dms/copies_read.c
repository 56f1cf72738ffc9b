/*
 * Reading a page from where a copy is: from the store of this rank, or by a FETCH from another, by
 * callback or waiting. What does not have the page's hash is refused, and another copy is asked
 * for.
 */
#include "../config/log.h"
#include "copies_int.h"
#include <errno.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SPIN_POLLS 200  /* a waiting reader looks so often before it sleeps */
#define BUSY_TRIES 1000 /* ms that copies_read waits for a rank to be asked */

/* The store's handle of the local copy, with one owner more; 0: none is here. */
static store_handle local_hold(store_handle h)
{
    pthread_mutex_lock(&copies.lock);
    store_handle local = copies_entry_of(h)->local;
    if (local)
        store_ref(local);
    pthread_mutex_unlock(&copies.lock);
    return local;
}

/* The copy here is not the page: another takes its place. False: there is none. */
static bool local_is_bad(store_handle h, store_handle local)
{
    bool other = false;
    pthread_mutex_lock(&copies.lock);
    struct entry *e = copies_entry_of(h);
    for (unsigned k = 0; k < REMOTE_MAX; k++)
        other |= place_is_there(&e->at[k]);
    bool drop = other && e->local == local;
    if (drop) {
        entry_leave_local(e);
        e->wanted = (uint8_t)(e->wanted + e->keep_local);
        e->keep_local = false;
        copies.refused_pages++;
        entry_settle(h & ~COPIES_BIT);
    }
    pthread_mutex_unlock(&copies.lock);
    if (drop)
        edm_warn("slot %u of this rank: a damaged page is refused", local);
    return other;
}

int copies_view(store_handle h, uint32_t version, void *buf, struct store_view *v)
{
    if (!copies_is_entry(h))
        return store_view(h, version, buf, v);
    store_handle local = local_hold(h);
    if (!local)
        return -EAGAIN;
    int err = store_view(local, version, buf, v);
    if (err == -EBADMSG && local_is_bad(h, local))
        err = -EAGAIN;
    store_unref(local);
    return err;
}

bool copies_same(store_handle h, uint32_t version, const void *page)
{
    uint64_t hash[2];
    if (!copies_is_entry(h))
        return store_same(h, version, page);
    copies_hash(page, hash);
    pthread_mutex_lock(&copies.lock);
    const struct entry *e = copies_entry_of(h);
    /* the copy here was refused: let it be stored anew */
    bool refused = e->placement == EDM_PLACEMENT_LOCAL && !e->keep_local;
    bool same = e->version == version && memcmp(e->hash, hash, sizeof(hash)) == 0 &&
                (e->local || entry_places(e)) && !refused;
    pthread_mutex_unlock(&copies.lock);
    return same;
}

int copies_rank(store_handle h)
{
    int rank = -1;
    if (!copies_is_entry(h))
        return -1;
    pthread_mutex_lock(&copies.lock);
    const struct entry *e = copies_entry_of(h);
    for (unsigned k = 0; k < REMOTE_MAX && rank < 0 && !e->local; k++)
        if (place_is_there(&e->at[k]))
            rank = homes_rank(e->at[k].home);
    pthread_mutex_unlock(&copies.lock);
    return rank;
}

/* What that rank sent is not the page: another copy takes its place, if there is one. */
static void place_is_bad(store_handle h, int rank, uint32_t slot)
{
    edm_warn("rank %d slot %u: a damaged or older page is refused", rank, slot);
    pthread_mutex_lock(&copies.lock);
    copies.refused_pages++;
    struct entry *e = copies_entry_of(h);
    for (unsigned k = 0; k < REMOTE_MAX; k++)
        if (e->at[k].slot == slot && homes_rank(e->at[k].home) == rank &&
            (e->local || entry_places(e) > 1))
            place_drop(e, &e->at[k]);
    entry_settle(h & ~COPIES_BIT);
    pthread_mutex_unlock(&copies.lock);
}

struct fetch {
    int rank;
    unsigned n, nasked;
    copies_done *done;
    void *arg;
    store_handle handle[COPIES_BATCH];
    uint64_t hash[COPIES_BATCH][2];
    uint32_t slot[COPIES_BATCH]; /* 0: not asked for */
};

static const void *fetch_check(const struct fetch *f, unsigned i, const uint8_t *page)
{
    uint64_t hash[2];
    copies_hash(page, hash);
    if (memcmp(hash, f->hash[i], sizeof(hash)) == 0)
        return page;
    place_is_bad(f->handle[i], f->rank, f->slot[i]);
    return NULL;
}

static void fetch_answered(void *arg, int err, struct rank_head *answer)
{
    struct fetch *f = arg;
    const void *page[COPIES_BATCH] = {NULL};
    if (err == -ENOMEM) /* its word for it: the rank itself can do without */
        err = -EBUSY;
    const struct rank_result *r = err ? NULL : (const void *)(answer + 1);
    const uint8_t *at = err ? NULL : rank_pages(answer);
    for (unsigned i = 0; i < f->n && !err; i++) {
        if (!f->slot[i])
            continue;
        if (!r->code) {
            page[i] = fetch_check(f, i, at);
            at += RANK_PAGE;
        } else if (r->code == -EBADMSG || r->code == -EIO || r->code == -ENOENT) {
            place_is_bad(f->handle[i], f->rank, f->slot[i]);
        }
        r++;
    }
    f->done(f->arg, err, f->n, page);
    free(f);
}

/* Lock held. Where that rank has the page; 0: nowhere. */
static uint32_t slot_at(const struct entry *e, uint32_t version, int rank)
{
    for (unsigned k = 0; k < REMOTE_MAX; k++)
        if (place_is_there(&e->at[k]) && homes_rank(e->at[k].home) == rank && e->version == version)
            return e->at[k].slot;
    return 0;
}

int copies_fetch(int rank, const struct copies_page *pages, unsigned n, copies_done *done,
                 void *arg)
{
    struct fetch *f = malloc(sizeof(*f));
    struct peer_buf *b = peer_buf_get();
    int err = -EBUSY;
    if (!f || !b)
        goto fail;
    struct rank_slot *slots = (void *)(b->head + 1);
    *f = (struct fetch){.rank = rank, .n = n, .done = done, .arg = arg};
    pthread_mutex_lock(&copies.lock);
    for (unsigned i = 0; i < n; i++) {
        const struct entry *e = copies_entry_of(pages[i].handle);
        f->handle[i] = pages[i].handle;
        memcpy(f->hash[i], e->hash, sizeof(e->hash));
        f->slot[i] = slot_at(e, pages[i].version, rank);
        if (f->slot[i])
            slots[f->nasked++] = (struct rank_slot){f->slot[i], pages[i].version};
    }
    pthread_mutex_unlock(&copies.lock);
    err = -ENOENT;
    if (!f->nasked)
        goto fail;
    b->head->kind = RANK_FETCH;
    b->head->count = f->nasked;
    err = peer_request(rank, b, f->nasked * sizeof(*slots), fetch_answered, f);
    if (err)
        free(f);
    return err;
fail:
    if (b)
        peer_buf_put(b);
    free(f);
    return err;
}

struct reader {
    uint8_t *buf;
    bool *ok;
    int err;
    atomic_bool over;
    sem_t sem;
};

static void read_done(void *arg, int err, unsigned n, const void *const *page)
{
    struct reader *r = arg;
    r->err = err;
    for (unsigned i = 0; i < n; i++) {
        r->ok[i] = page[i] != NULL;
        if (r->ok[i])
            memcpy(r->buf + (size_t)i * RANK_PAGE, page[i], RANK_PAGE);
    }
    atomic_store(&r->over, true);
    sem_post(&r->sem);
}

int copies_read_from(int rank, const struct copies_page *pages, unsigned n, void *buf, bool *ok)
{
    struct reader r = {.buf = buf, .ok = ok};
    memset(ok, 0, n * sizeof(*ok));
    sem_init(&r.sem, 0, 0);
    int err = copies_fetch(rank, pages, n, read_done, &r);
    if (!err) {
        for (int i = 0; i < SPIN_POLLS && !atomic_load(&r.over); i++)
            peer_poll();
        peer_poll_end();
        while (sem_wait(&r.sem))
            ;
        err = r.err;
    }
    sem_destroy(&r.sem);
    return err;
}

/* The first copy at or after place k that is worth asking for; -1: none. */
static int place_rank(store_handle h, unsigned k)
{
    pthread_mutex_lock(&copies.lock);
    const union place *p = &copies_entry_of(h)->at[k];
    int rank = place_is_there(p) ? homes_rank(p->home) : -1;
    pthread_mutex_unlock(&copies.lock);
    return rank;
}

/* Looks at each copy once. -EBUSY: one of them could not be asked for now. */
static int read_any(store_handle h, uint32_t version, void *buf)
{
    struct copies_page page = {h, version};
    store_handle local = local_hold(h);
    bool ok, busy = false;
    int err = -EIO;
    if (local) {
        err = store_read(local, version, buf);
        if (err)
            local_is_bad(h, local);
        store_unref(local);
        if (!err)
            return 0;
    }
    for (unsigned k = 0; k < REMOTE_MAX; k++) {
        int rank = place_rank(h, k);
        int e = rank < 0 ? -EHOSTDOWN : copies_read_from(rank, &page, 1, buf, &ok);
        if (!e && ok)
            return 0;
        busy |= e == -EBUSY;
        if (!e || e == -ENOENT)
            err = -EBADMSG;
    }
    return busy ? -EBUSY : err;
}

int copies_read(store_handle h, uint32_t version, void *buf)
{
    const struct timespec pause = {0, 1000000};
    if (!copies_is_entry(h))
        return store_read(h, version, buf);
    int err = -EIO;
    for (int tries = 0, busy = 0; tries < 2;
         tries++) { /* it may move from here to there meanwhile */
        while ((err = read_any(h, version, buf)) == -EBUSY && busy++ < BUSY_TRIES)
            nanosleep(&pause,
                      NULL); /* what other requests take up is free when they are answered */
        if (!err || err == -EBUSY)
            break;
    }
    return err;
}
