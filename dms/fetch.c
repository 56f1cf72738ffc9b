/*
 * Reads from the disk store, on threads of their own: a fault never makes its handler wait.
 * Also `edm fetch`: everything back.
 */
#include "../config/log.h"
#include "instance.h"
#include "uffd.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define THREADS 8
#define STARVED_TRIES 100

struct request {
    struct instance *in;
    uint32_t id;
    store_handle handle;
    uint32_t version;
    struct request *next;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct request *first, **last;
    pthread_t threads[THREADS];
    bool stop;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER, .last = &pool.first};

static bool still_wanted(const struct request *r)
{
    const struct page *p = spt_page(&r->in->spt, r->id);
    return p->state == PAGE_STORED && p->handle == r->handle && p->version == r->version;
}

/* Placing meets EAGAIN while the program changes its mappings: the events are read, and threads
 * that do nothing else are held back (KERNEL.md 15). -ESTALE: the page does not want it any more.
 */
static int place(struct request *r, const void *buf)
{
    struct instance *in = r->in;
    struct timespec ts = {0, 50000};
    int err = uffd_copy(in->uffd, spt_addr(&in->spt, r->id), buf, 1, true, NULL);
    for (unsigned tries = 0; err == -EAGAIN && !in->dead && !atomic_load(&in->stop); tries++) {
        if (tries == STARVED_TRIES && in->chan)
            instance_starve(in, true);
        dm_handler_step(in);
        pthread_mutex_unlock(&in->lock);
        nanosleep(&ts, NULL);
        pthread_mutex_lock(&in->lock);
        if (!still_wanted(r))
            return -ESTALE;
        err = uffd_copy(in->uffd, spt_addr(&in->spt, r->id), buf, 1, true, NULL);
    }
    if (in->chan && in->chan->starved && !in->again)
        instance_starve(in, false);
    return err;
}

/* The contents are here: place them, if the page still wants them. */
static void fetch_finish(struct request *r, int err, const void *buf)
{
    struct instance *in = r->in;
    pthread_mutex_lock(&in->lock);
    in->budget.fetching--;
    if (still_wanted(r)) {
        if (err)
            dm_handler_page_lost(in, r->id, err);
        else
            err = place(r, buf);
        if (still_wanted(r)) {
            spt_page(&in->spt, r->id)->flags &= (uint8_t)~PF_FETCHING;
            if (!err || err == -EEXIST)
                dm_handler_stored_is_resident(in, r->id);
            if (!err)
                dm_handler_served(in, spt_addr(&in->spt, r->id));
        }
    }
    in->kick = true;
    dm_handler_step(in);
    pthread_mutex_unlock(&in->lock);
    store_unref(r->handle);
    instance_put(in);
    free(r);
}

static void *fetch_main(void *arg)
{
    uint8_t buf[EDM_PAGE_SIZE] __attribute__((aligned(4096)));
    for (;;) {
        pthread_mutex_lock(&pool.lock);
        while (!pool.first && !pool.stop)
            pthread_cond_wait(&pool.more, &pool.lock);
        struct request *r = pool.first;
        if (r) {
            pool.first = r->next;
            if (!pool.first)
                pool.last = &pool.first;
        }
        pthread_mutex_unlock(&pool.lock);
        if (!r)
            return NULL;
        int err = store_read(r->handle, r->version, buf);
        fetch_finish(r, err, buf);
    }
}

int fetch_module_init(void)
{
    for (int i = 0; i < THREADS; i++) {
        int err = pthread_create(&pool.threads[i], NULL, fetch_main, NULL);
        if (err)
            return -err;
    }
    return 0;
}

void fetch_module_fini(void)
{
    pthread_mutex_lock(&pool.lock);
    pool.stop = true;
    pthread_cond_broadcast(&pool.more);
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < THREADS; i++)
        pthread_join(pool.threads[i], NULL);
}

int fetch_start(struct instance *in, uint32_t id)
{
    struct page *p = spt_page(&in->spt, id);
    struct request *r = malloc(sizeof(*r));
    if (!r)
        return -ENOMEM;
    store_ref(p->handle);
    *r = (struct request){instance_get(in), id, p->handle, p->version, NULL};
    p->flags |= PF_FETCHING;
    in->budget.fetching++;
    pthread_mutex_lock(&pool.lock);
    *pool.last = r;
    pool.last = &r->next;
    pthread_cond_signal(&pool.more);
    pthread_mutex_unlock(&pool.lock);
    return 0;
}

/* ---- everything back ---- */

/* Reads a page that is on disk with the lock released. */
static int read_unlocked(struct instance *in, uint32_t id, void *buf)
{
    struct page *p = spt_page(&in->spt, id);
    store_handle h = p->handle;
    uint32_t version = p->version;
    store_ref(h);
    pthread_mutex_unlock(&in->lock);
    int err = store_read(h, version, buf);
    pthread_mutex_lock(&in->lock);
    bool same = p->state == PAGE_STORED && p->handle == h && p->version == version;
    store_unref(h);
    return same ? err : -EAGAIN;
}

static int fetch_one(struct instance *in, uint32_t id)
{
    uint8_t buf[EDM_PAGE_SIZE];
    struct page *p = spt_page(&in->spt, id);
    struct chunk *c = spt_chunk_of(&in->spt, id);
    uint64_t addr = spt_addr(&in->spt, id);
    if (p->state == PAGE_EVICTING || p->flags & PF_FETCHING)
        return -EAGAIN;
    if (p->state == PAGE_LIMBO) {
        memcpy(buf, in->limbo.data + (size_t)p->link.next * EDM_PAGE_SIZE, sizeof(buf));
        int err = uffd_copy(in->uffd, addr, buf, 1, true, NULL);
        if (err && err != -EEXIST)
            return err;
        in->limbo.owner[p->link.next] = RING_FREE;
        in->limbo.used--;
        page_make_resident(in, c, id, false);
        return 0;
    }
    if (p->state != PAGE_STORED)
        return 0;
    int err = read_unlocked(in, id, buf);
    if (err == -EBADMSG || err == -EIO) {
        dm_handler_page_lost(in, id, err);
        return 0;
    }
    if (!err)
        err = uffd_copy(in->uffd, addr, buf, 1, true, NULL);
    if (!err || err == -EEXIST)
        dm_handler_stored_is_resident(in, id);
    return err == -EEXIST ? 0 : err;
}

static int fetch_patiently(struct instance *in, uint32_t id)
{
    struct timespec ts = {0, 200000};
    int err = fetch_one(in, id);
    for (int tries = 0; (err == -EAGAIN || err == -ENOMEM) && tries < 25000; tries++) {
        dm_handler_step(in);
        pthread_mutex_unlock(&in->lock);
        nanosleep(&ts, NULL);
        pthread_mutex_lock(&in->lock);
        if (in->dead || atomic_load(&in->stop))
            return -ESRCH;
        err = fetch_one(in, id);
    }
    return err == -ENOENT ? 0 : err;
}

int fetch_all(struct instance *in, fetch_progress *progress, void *arg)
{
    uint64_t total = in->stored + in->limbo.used + in->budget.evicting, done = 0;
    int err = 0;
    in->budget.fetchers++; /* nothing goes out again meanwhile */
    for (uint32_t n = 0; n < in->spt.nchunks && !err; n++) {
        for (uint32_t i = 0; i < EDM_CHUNK_PAGES && !err; i++) {
            uint32_t id = n * EDM_CHUNK_PAGES + i;
            uint8_t state = spt_page(&in->spt, id)->state;
            if (state != PAGE_STORED && state != PAGE_LIMBO && state != PAGE_EVICTING)
                continue;
            err = fetch_patiently(in, id);
            if (++done % 1024 == 0) {
                pthread_mutex_unlock(&in->lock);
                if (progress)
                    progress(arg, done, total);
                pthread_mutex_lock(&in->lock);
            }
        }
    }
    in->budget.fetchers--;
    return err;
}
