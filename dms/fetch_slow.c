/*
 * Pages that are neither in this rank's store nor to be had by one request to another rank: a copy
 * may have to be looked for. On threads of their own, which may wait; a fault never makes its
 * handler wait.
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
#define ASIDE_NS 100000000ull /* between two looks at what was set aside */

struct request {
    struct instance *in;
    uint32_t id;
    store_handle handle;
    uint32_t version;
    uint64_t until_ns; /* set aside: as long as that */
    struct request *next;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct request *first, **last;
    struct request *aside; /* wait for a rank that was lost to come back with the next server */
    uint64_t looked_ns;    /* at those */
    pthread_t threads[THREADS];
    bool stop, hurry;
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
    if (!in->dead && still_wanted(r)) {
        if (!err)
            err = place(r, buf);
        else if (err != -EBUSY) /* then whoever waits asks again */
            dm_handler_page_lost(in, r->id, err);
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
    copies_unref(r->handle);
    instance_put(in);
    free(r);
}

/* Pool locked. */
static void pool_push(struct request *r)
{
    r->next = NULL;
    *pool.last = r;
    pool.last = &r->next;
    pthread_cond_signal(&pool.more);
}

/* Pool locked. What has waited long enough, or for nothing, is asked for once more. */
static void look_aside(uint64_t now)
{
    pool.looked_ns = now;
    for (struct request **p = &pool.aside; *p;) {
        struct request *r = *p;
        if (r->until_ns > now && !pool.hurry && !pool.stop && !r->in->dead) {
            p = &r->next;
            continue;
        }
        *p = r->next;
        pool_push(r);
    }
}

/* A page whose only copy was on a rank that is lost: its store may come back, with the next server,
 * which then fetches it. The program waits as long as it would for its own rank. */
static bool set_aside(struct request *r)
{
    const struct edm_settings *set = &r->in->set;
    uint64_t since = copies_lost_since(r->handle), now = now_ns();
    bool for_ever = set->on_server_lost == EDM_LOST_WAIT;
    r->until_ns = for_ever ? UINT64_MAX : since + set->reconnect_timeout_ms * 1000000ull;
    pthread_mutex_lock(&pool.lock);
    bool wait = since && r->until_ns > now && !pool.hurry && !pool.stop && !r->in->dead;
    if (wait) {
        r->next = pool.aside;
        pool.aside = r;
        pthread_cond_signal(&pool.more);
    }
    pthread_mutex_unlock(&pool.lock);
    return wait;
}

/* Pool locked. */
static void wait_for_more(void)
{
    struct timespec ts;
    uint64_t now = now_ns();
    if (!pool.aside) {
        pthread_cond_wait(&pool.more, &pool.lock);
        return;
    }
    if (now - pool.looked_ns >= ASIDE_NS) {
        look_aside(now);
        return;
    }
    clock_gettime(CLOCK_REALTIME, &ts);
    ts.tv_nsec += (long)ASIDE_NS;
    ts.tv_sec += ts.tv_nsec / 1000000000l;
    ts.tv_nsec %= 1000000000l;
    pthread_cond_timedwait(&pool.more, &pool.lock, &ts);
}

static void *fetch_main(void *arg)
{
    uint8_t buf[EDM_PAGE_SIZE] __attribute__((aligned(4096)));
    for (;;) {
        pthread_mutex_lock(&pool.lock);
        while (!pool.first && !pool.stop)
            wait_for_more();
        struct request *r = pool.first;
        if (r) {
            pool.first = r->next;
            if (!pool.first)
                pool.last = &pool.first;
        }
        pthread_mutex_unlock(&pool.lock);
        if (!r)
            return NULL;
        int err = copies_read(r->handle, r->version, buf);
        if (!err || err == -EBUSY || !set_aside(r))
            fetch_finish(r, err, buf);
    }
}

void fetch_slow_hurry(void)
{
    pthread_mutex_lock(&pool.lock);
    pool.hurry = true;
    look_aside(now_ns());
    pthread_mutex_unlock(&pool.lock);
}

int fetch_slow_init(void)
{
    for (int i = 0; i < THREADS; i++) {
        int err = pthread_create(&pool.threads[i], NULL, fetch_main, NULL);
        if (err)
            return -err;
    }
    return 0;
}

void fetch_slow_fini(void)
{
    pthread_mutex_lock(&pool.lock);
    pool.stop = true;
    look_aside(now_ns());
    pthread_cond_broadcast(&pool.more);
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < THREADS; i++)
        pthread_join(pool.threads[i], NULL);
}

void fetch_slow(struct instance *in, uint32_t id)
{
    struct page *p = spt_page(&in->spt, id);
    struct request *r = malloc(sizeof(*r));
    if (!r) { /* whoever waits looks again */
        in->kick = true;
        return;
    }
    copies_ref(p->handle);
    *r = (struct request){instance_get(in), id, p->handle, p->version, 0, NULL};
    p->flags |= PF_FETCHING;
    in->budget.fetching++;
    pthread_mutex_lock(&pool.lock);
    pool_push(r);
    pthread_mutex_unlock(&pool.lock);
}
