/*
 * Reads from the disk store, many at a time: a fault never makes its handler wait. What is to be
 * read is collected, and asked for in one go by fetch_flush; the store's threads bring it.
 * Also `edm fetch`: everything back.
 */
#include "../config/log.h"
#include "die.h"
#include "instance.h"
#include "uffd.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PAUSES_PAGE 25000 /* 5 s */
#define PAUSES 100000
#define PAUSES_STOPPED 500 /* of a stopped program: nobody will answer */

static bool still_wanted(const struct instance *in, const struct store_read *r)
{
    const struct page *p = spt_page(&in->spt, r->tag);
    return p->state == PAGE_STORED && p->handle == r->handle && p->version == r->version;
}

/* ---- contents that came ---- */

static void placed(struct instance *in, uint32_t id, bool by_us)
{
    spt_page(&in->spt, id)->flags &= (uint8_t)~PF_FETCHING;
    dm_handler_stored_is_resident(in, id);
    if (by_us)
        dm_handler_served(in, spt_addr(&in->spt, id));
}

/* How many of the n pages are neighbours that still want what came. */
static uint32_t run_length(const struct instance *in, const struct store_read *r, uint32_t n)
{
    uint64_t addr = spt_addr(&in->spt, r->tag);
    uint32_t k = 1;
    while (k < n && !r[k].err && still_wanted(in, &r[k]) &&
           r[k].data == (const char *)r->data + (size_t)k * EDM_PAGE_SIZE &&
           spt_addr(&in->spt, r[k].tag) == addr + (uint64_t)k * EDM_PAGE_SIZE)
        k++;
    return k;
}

/* Places a run. How many pages are done with, one way or another; 0: the kernel said EAGAIN. */
static uint32_t place(struct instance *in, const struct store_read *r, uint32_t n)
{
    uint32_t done = 0;
    int err = uffd_copy(in->uffd, spt_addr(&in->spt, r->tag), r->data, n, true, &done);
    if (done)
        die_at(DIE_DISK_PLACED);
    for (uint32_t i = 0; i < done; i++)
        placed(in, r[i].tag, true);
    if (!err || err == -EAGAIN)
        return done;
    if (err == -EEXIST)
        placed(in, r[done].tag, false);
    else
        spt_page(&in->spt, r[done].tag)->flags &= (uint8_t)~PF_FETCHING;
    return done + 1;
}

/* What came while the program changes its mappings, and the kernel says EAGAIN. To be read again it
 * would come too late again: it is kept, and no thread that others need waits for it. */
struct arrival {
    struct arrival *next;
    struct store_read r;
    uint8_t data[EDM_PAGE_SIZE];
};

static void arrival_keep(struct instance *in, const struct store_read *r)
{
    struct arrival *a = malloc(sizeof(*a));
    if (!a) {
        spt_page(&in->spt, r->tag)->flags &= (uint8_t)~PF_FETCHING;
        return;
    }
    a->r = *r;
    a->r.data = a->data;
    memcpy(a->data, r->data, EDM_PAGE_SIZE);
    a->next = in->arrived;
    in->arrived = a;
    in->budget.fetching++;
}

static void arrival_drop(struct instance *in)
{
    struct arrival *a = in->arrived;
    in->arrived = a->next;
    in->budget.fetching--;
    free(a);
}

/* When that goes on, threads that do nothing else are held back (KERNEL.md 15). */
void fetch_settle(struct instance *in)
{
    while (in->arrived) {
        const struct store_read *r = &in->arrived->r;
        if (still_wanted(in, r) && place(in, r, 1) == 0) {
            if (++in->arrived_tries > ARRIVED_STARVED && in->chan && !in->chan->starved)
                instance_starve(in, true);
            return;
        }
        arrival_drop(in);
        in->kick = true;
    }
    if (in->arrived_tries && in->chan && in->chan->starved && !in->again)
        instance_starve(in, false);
    in->arrived_tries = 0;
}

void fetch_forget(struct instance *in)
{
    while (in->arrived)
        arrival_drop(in);
}

/* Places the pages that still want what came for them; the others have forgotten about it. */
static void place_all(struct instance *in, const struct store_read *r, uint32_t n)
{
    bool again = false;
    for (uint32_t i = 0, k; i < n; i += k) {
        k = 1;
        if (!still_wanted(in, &r[i]))
            continue;
        if (r[i].err)
            dm_handler_page_lost(in, r[i].tag, r[i].err);
        else if (again)
            arrival_keep(in, &r[i]);
        else
            k = place(in, &r[i], run_length(in, &r[i], n - i));
        again = again || k == 0;
    }
}

static void fetch_done(void *arg, const struct store_read *r, uint32_t n)
{
    struct instance *in = arg;
    store_handle h[STORE_READ_RUN];
    for (uint32_t i = 0; i < n; i++)
        h[i] = r[i].handle;
    pthread_mutex_lock(&in->lock);
    in->budget.fetching -= n;
    place_all(in, r, n);
    in->kick = true;
    dm_handler_step(in);
    if (in->arrived)
        instance_wake(in); /* a handler looks again soon */
    pthread_mutex_unlock(&in->lock);
    copies_unref_many(h, n);
    for (uint32_t i = 0; i < n; i++)
        instance_put(in);
}

/* ---- asking ---- */

void fetch_start(struct instance *in, uint32_t id)
{
    struct page *p = spt_page(&in->spt, id);
    if (!copies_is_store(p->handle)) {
        fetch_slow(in, id);
        return;
    }
    if (in->nreads == FETCH_BATCH)
        fetch_flush(in);
    copies_ref(p->handle);
    instance_get(in);
    in->reads[in->nreads++] = (struct store_read){p->handle, p->version, id, 0, NULL};
    p->flags |= PF_FETCHING;
    in->budget.fetching++;
}

void fetch_flush(struct instance *in)
{
    uint32_t n = in->nreads;
    in->nreads = 0;
    if (n)
        store_read_many(in->reads, n, fetch_done, in);
    for (uint32_t i = 0; i < n; i++) {
        const struct store_read *r = &in->reads[i];
        if (!r->err)
            continue;
        if (still_wanted(in, r))
            spt_page(&in->spt, r->tag)->flags &= (uint8_t)~PF_FETCHING;
        in->budget.fetching--;
        in->kick = true;
        copies_unref(r->handle);
        instance_put(in);
    }
}

/* ---- everything back ---- */

/* Reads a page that is on disk with the lock released. */
static int read_unlocked(struct instance *in, uint32_t id, void *buf)
{
    struct page *p = spt_page(&in->spt, id);
    store_handle h = p->handle;
    uint32_t version = p->version;
    copies_ref(h);
    pthread_mutex_unlock(&in->lock);
    int err = copies_read(h, version, buf);
    pthread_mutex_lock(&in->lock);
    bool same = p->state == PAGE_STORED && p->handle == h && p->version == version;
    copies_unref(h);
    return same && err != -EBUSY ? err : -EAGAIN;
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

/* *left: pauses that all pages together may cost, but for those to read from disk: an instance can
 * make each page take long. */
static int fetch_patiently(struct instance *in, uint32_t id, int *left)
{
    struct timespec ts = {0, 200000};
    int err = fetch_one(in, id), most = PAUSES_PAGE;
    const struct page *p = spt_page(&in->spt, id);
    while ((err == -EAGAIN || err == -ENOMEM) && most-- > 0 &&
           (*left > 0 || p->flags & PF_FETCHING)) {
        *left -= !(p->flags & PF_FETCHING);
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

/* Asks for what a chunk has on disk. */
static void fetch_ahead(struct instance *in, const struct chunk *c)
{
    for (uint32_t i = 0; i < EDM_CHUNK_PAGES; i++) {
        const struct page *p = &c->pages[i];
        if (p->state == PAGE_STORED && !(p->flags & PF_FETCHING) && copies_is_store(p->handle) &&
            !store_is_memory(p->handle))
            fetch_start(in, spt_id(c, i));
    }
    fetch_flush(in);
}

/* Is the page still where it was? The program is stopped, with a command that its LPET has not
 * taken. */
static bool is_mapped(const struct instance *in, uint32_t id)
{
    uint64_t bit = 0;
    return spt_page(&in->spt, id)->state == PAGE_EVICTING &&
           !uffd_present(in->pagemap_fd, spt_addr(&in->spt, id), 1, &bit) && bit & 1;
}

/* By a signal or a debugger: its LPET answers nothing. */
static bool is_stopped(pid_t pid)
{
    char path[32], text[128];
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = 0;
    const char *state = strrchr(text, ')'); /* the name before it may have anything in it */
    return state && (state[2] == 'T' || state[2] == 't');
}

int fetch_all(struct instance *in, fetch_progress *progress, void *arg)
{
    uint64_t total = in->stored + in->limbo.used + in->budget.evicting, done = 0;
    int err = 0, late = 0, left = PAUSES;
    if (is_stopped(in->pid))
        left = PAUSES_STOPPED;
    in->budget.fetchers++; /* nothing goes out again meanwhile */
    for (uint32_t n = 0; n < in->spt.nchunks && !err; n++) {
        if (spt_is_ghost(&in->spt.chunks[n]))
            continue;
        fetch_ahead(in, &in->spt.chunks[n]);
        for (uint32_t i = 0; i < EDM_CHUNK_PAGES && !err; i++) {
            uint32_t id = n * EDM_CHUNK_PAGES + i;
            uint8_t state = spt_page(&in->spt, id)->state;
            if (state != PAGE_STORED && state != PAGE_LIMBO && state != PAGE_EVICTING)
                continue;
            int e = fetch_patiently(in, id, &left);
            if (e == -EAGAIN && !(spt_page(&in->spt, id)->flags & PF_FETCHING)) /* others do come */
                late = is_mapped(in, id) ? late : e;
            else
                err = e;
            if (++done % 1024 == 0) {
                pthread_mutex_unlock(&in->lock);
                if (progress)
                    progress(arg, done, total);
                pthread_mutex_lock(&in->lock);
            }
        }
    }
    in->budget.fetchers--;
    return err ? err : late;
}
