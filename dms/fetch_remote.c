/*
 * Pages that come back from other ranks: asked for by the thread that met the fault, up to 16 in a
 * message, placed by whichever thread sees the answer. What cannot be had that way goes to the
 * threads of fetch.c, which may wait.
 */
#include "instance.h"
#include "peer.h"
#include "uffd.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>

struct remote_fetch {
    struct instance *in;
    unsigned n;
    uint32_t id[COPIES_BATCH];
    struct copies_page page[COPIES_BATCH];
};

static bool still_wanted(const struct instance *in, uint32_t id, const struct copies_page *c)
{
    const struct page *p = spt_page(&in->spt, id);
    return p->state == PAGE_STORED && p->handle == c->handle && p->version == c->version;
}

/* Pages that are neighbours in memory and in the message, from i on; 0: page i is not wanted. */
static unsigned run_find(const struct remote_fetch *f, const void *const *data, unsigned i)
{
    unsigned n = 0;
    const uint8_t *at = data[i];
    while (i + n < f->n && f->id[i + n] == f->id[i] + n &&
           f->id[i + n] / EDM_CHUNK_PAGES == f->id[i] / EDM_CHUNK_PAGES &&
           still_wanted(f->in, f->id[i + n], &f->page[i + n]) && data[i + n] &&
           data[i + n] == at + n * EDM_PAGE_SIZE)
        n++;
    return n;
}

/* Lock held. One page that is in place, or (err) is not. */
static void page_arrived(struct instance *in, uint32_t id, int err)
{
    spt_page(&in->spt, id)->flags &= (uint8_t)~PF_FETCHING;
    if (!err || err == -EEXIST)
        dm_handler_stored_is_resident(in, id);
    if (!err)
        dm_handler_served(in, spt_addr(&in->spt, id));
    else if (err == -EAGAIN || err == -EIO || err == -ENOMEM)
        fetch_start(in, id); /* a thread that may wait tries again */
}

/* Lock held. Places what has come (data[i] NULL: has not) from page i on; how many it dealt with.
 */
static unsigned place_run(struct remote_fetch *f, const void *const *data, unsigned i)
{
    struct instance *in = f->in;
    uint32_t done = 0;
    unsigned n = run_find(f, data, i);
    if (!n) {
        if (still_wanted(in, f->id[i], &f->page[i]))
            page_arrived(in, f->id[i], -EIO);
        return 1;
    }
    int err = uffd_copy(in->uffd, spt_addr(&in->spt, f->id[i]), data[i], n, true, &done);
    for (uint32_t k = 0; k < done; k++)
        page_arrived(in, f->id[i + k], 0);
    if (done == n)
        return n;
    page_arrived(in, f->id[i + done], err ? err : -EAGAIN);
    return done + 1;
}

static void remote_arrived(void *arg, int err, unsigned n, const void *const *data)
{
    struct remote_fetch *f = arg;
    struct instance *in = f->in;
    store_handle handles[COPIES_BATCH];
    pthread_mutex_lock(&in->lock);
    for (unsigned i = 0; i < n; i++)
        handles[i] = f->page[i].handle;
    in->budget.fetching -= n;
    for (unsigned i = 0; i < n;)
        i += place_run(f, data, i);
    atomic_fetch_sub(&in->nremote, n);
    in->kick = true;
    dm_handler_step(in);
    pthread_mutex_unlock(&in->lock);
    copies_unref_many(handles, n);
    instance_put(in);
    free(f);
}

/* They go to the threads that may wait. */
static void remote_give_up(struct instance *in, struct remote_fetch *f)
{
    for (unsigned i = 0; i < f->n; i++) {
        in->budget.fetching--;
        copies_unref(f->page[i].handle);
        spt_page(&in->spt, f->id[i])->flags &= (uint8_t)~PF_FETCHING;
        fetch_start(in, f->id[i]);
    }
    atomic_fetch_sub(&in->nremote, f->n);
    instance_put(in);
    free(f);
}

void fetch_remote_flush(struct instance *in)
{
    struct remote_fetch *f = in->remote;
    in->remote = NULL;
    if (f && copies_fetch(in->remote_rank, f->page, f->n, remote_arrived, f))
        remote_give_up(in, f);
}

int fetch_remote(struct instance *in, uint32_t id, int rank)
{
    struct page *p = spt_page(&in->spt, id);
    if (in->remote && in->remote_rank != rank)
        fetch_remote_flush(in);
    if (!in->remote) {
        in->remote = malloc(sizeof(*in->remote));
        if (!in->remote)
            return -ENOMEM;
        in->remote->in = instance_get(in);
        in->remote->n = 0;
        in->remote_rank = rank;
    }
    struct remote_fetch *f = in->remote;
    copies_ref(p->handle);
    f->page[f->n] = (struct copies_page){p->handle, p->version};
    f->id[f->n++] = id;
    p->flags |= PF_FETCHING;
    in->budget.fetching++;
    atomic_fetch_add(&in->nremote, 1);
    if (f->n == COPIES_BATCH)
        fetch_remote_flush(in);
    return 0;
}

void fetch_remote_spin(struct instance *in)
{
    struct pollfd fd = {.fd = in->uffd, .events = POLLIN};
    if (!atomic_load(&in->nremote) || atomic_exchange(&in->spinning, true))
        return;
    uint64_t end = now_ns() + peer_spin_ns(&in->spin);
    bool event = false;
    peer_spin_begin();
    while (atomic_load(&in->nremote) && !event && now_ns() < end)
        if (!peer_poll())
            event = poll(&fd, 1, 0) != 0;
    peer_spin_end(!atomic_load(&in->nremote));
    if (!event)
        peer_spin_learn(&in->spin, !atomic_load(&in->nremote));
    atomic_store(&in->spinning, false);
}
