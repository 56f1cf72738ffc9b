/*
 * DM-Handler: reads an instance's userfaultfd and resolves its faults, in the order of the
 * design: look the page up, make room, get the contents, place them, wake the thread. What cannot
 * be resolved at once becomes a waiter; whoever changes what it waits for sets in->kick.
 */
#include "../config/log.h"
#include "die.h"
#include "instance.h"
#include "uffd.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#define MSGS 64
#define DRAIN_SLICE 32
#define ZERO_PAGES 32
#define STARVED_NS 5000000u
#define WAITERS_MAX 16384 /* more than threads of a program, and each signal may add one */
#define WAITERS_LOOK 64
#define WAITERS_US 100000 /* faults that wait for room are looked at again after this */
#define WAIT_LIMIT_NS                                                                              \
    1000000000ull /* without any progress: then a fault no longer waits for room */

static const uint8_t zeros[ZERO_PAGES * EDM_PAGE_SIZE] __attribute__((aligned(4096)));

static bool is_write(const struct waiter *w)
{
    return w->flags & UFFD_PAGEFAULT_FLAG_WRITE;
}

static int fault_done(struct instance *in, const struct waiter *w)
{
    stats_latency_add(in->stats, now_ns() - w->since_ns);
    return 0;
}

static int fault_wait(enum wait_reason why)
{
    return 1 + (int)why;
}

static int fault_wake(struct instance *in, const struct waiter *w)
{
    uffd_wake(in->uffd, w->addr, EDM_PAGE_SIZE);
    return fault_done(in, w);
}

/* What a failed placing means for the fault. */
static int fault_error(struct instance *in, const struct waiter *w, int err)
{
    if (err == -EAGAIN || err == -ENOMEM) {
        in->stats->again++;
        return fault_wait(WAIT_AGAIN);
    }
    if (err == -ESRCH)
        in->dead = true;
    else if (err != -EEXIST && err != -ENOENT)
        edm_warn("pid %d: page %#lx cannot be placed: %s", in->pid, (unsigned long)w->addr,
                 strerror(-err));
    return fault_wake(in, w);
}

static bool room_for(struct instance *in, const struct waiter *w)
{
    if (budget_has_room(in, 1) || !in->claimed)
        return true;
    if (in->chan->fork_hold && in->chan->fork_tid == w->tid)
        return true; /* the LPET waits for this thread's fork */
    if (w->tid == in->chan->lpet_tid)
        return true;
    uint64_t now = now_ns();
    if (now - w->since_ns > WAIT_LIMIT_NS && now - in->progress_ns > WAIT_LIMIT_NS)
        return true; /* a stopped program, and somebody outside reads its memory */
    return evict_stuck(in) && !in->budget.evicting;
}

static void make_resident(struct instance *in, uint32_t id)
{
    page_make_resident(in, spt_chunk_of(&in->spt, id), id, false);
}

/* The page came back from the store or the disk into place: the instance's copy is the current
 * one. The stored copy is kept while there is plenty of room, in case the page stays clean. */
void dm_handler_stored_is_resident(struct instance *in, uint32_t id)
{
    struct page *p = spt_page(&in->spt, id);
    in->stored--;
    p->flags &= (uint8_t)~PF_FETCHING;
    if (lspt_left_early((uint32_t)in->stats->evicted - p->link.next, in->budget.limit))
        p->flags |= PF_HOT;
    make_resident(in, id);
    image_order(); /* a stored page has a copy */
    if (copies_fullness(p->handle) > 500)
        page_drop_handle(p);
}

void dm_handler_page_lost(struct instance *in, uint32_t id, int err)
{
    uint64_t addr = spt_addr(&in->spt, id);
    struct page *p = spt_page(&in->spt, id);
    char where[64];
    copies_describe(p->handle, where, sizeof(where));
    edm_error("pid %d: page %#lx is lost (%s, %s): whoever touches it gets SIGBUS", in->pid,
              (unsigned long)addr, err == -EBADMSG ? "damaged" : strerror(-err), where);
    in->stats->poisoned++;
    page_forget(in, spt_chunk_of(&in->spt, id), id, PAGE_POISONED);
}

static int fault_poisoned(struct instance *in, const struct waiter *w)
{
    int err = -EINVAL;
    if (in->features & (1ull << 14)) /* UFFD_FEATURE_POISON */
        err = uffd_poison(in->uffd, w->addr, EDM_PAGE_SIZE);
    if (err == -EAGAIN)
        return fault_wait(WAIT_AGAIN);
    if (err && err != -EEXIST && in->pid)
        kill(in->pid, SIGBUS);
    return fault_wake(in, w);
}

static int fault_limbo(struct instance *in, const struct waiter *w, uint32_t id)
{
    struct page *p = spt_page(&in->spt, id);
    uint32_t ring = p->link.next;
    int err =
        uffd_copy(in->uffd, w->addr, in->limbo.data + (size_t)ring * EDM_PAGE_SIZE, 1, true, NULL);
    if (err && err != -EEXIST)
        return fault_error(in, w, err);
    die_at(DIE_LIMBO_PLACED);
    in->limbo.owner[ring] = RING_FREE;
    in->limbo.used--;
    lspt_came_back(&in->lspt, p->flags & PF_HOT);
    p->flags |= PF_HOT;
    in->stats->faults_limbo++;
    make_resident(in, id);
    return err ? fault_wake(in, w) : fault_done(in, w);
}

/* Fetches one stored page from memory into place. 0, -EAGAIN: on disk, or what UFFDIO_COPY says. */
static int fetch_now(struct instance *in, uint32_t id, bool *on_disk)
{
    uint8_t buf[EDM_PAGE_SIZE] __attribute__((aligned(64)));
    struct page *p = spt_page(&in->spt, id);
    struct store_view v;
    int err = copies_view(p->handle, p->version, buf, &v);
    *on_disk = err == -EAGAIN;
    if (err)
        return err;
    err = uffd_copy(in->uffd, spt_addr(&in->spt, id), v.data, 1, true, NULL);
    store_unview(&v);
    if (!err)
        die_at(DIE_STORED_PLACED);
    if (!err || err == -EEXIST)
        dm_handler_stored_is_resident(in, id);
    return err;
}

static int fault_stored(struct instance *in, const struct waiter *w, uint32_t id)
{
    bool on_disk;
    struct page *p = spt_page(&in->spt, id);
    if (p->flags & PF_FETCHING)
        return fault_wait(WAIT_OUTCOME);
    if (!room_for(in, w))
        return fault_wait(WAIT_ROOM);
    int err = fetch_now(in, id, &on_disk);
    if (on_disk) {
        ahead_begin(in, id);
        fetch_flush(in); /* this page alone: it comes before those fetched ahead */
        fetch_remote_flush(in);
        return fault_wait(WAIT_OUTCOME);
    }
    if (err == -EBADMSG) {
        dm_handler_page_lost(in, id, err);
        return fault_poisoned(in, w);
    }
    if (err)
        return fault_error(in, w, err);
    in->stats->faults_existing++;
    return fault_done(in, w);
}

/* Places zeros in `n` pages from id on (all NEW). */
static int place_zeros(struct instance *in, const struct waiter *w, uint32_t id, uint32_t n)
{
    uint32_t done = 0;
    int err;
    if (is_write(w)) {
        err = uffd_copy(in->uffd, spt_addr(&in->spt, id), zeros, n, true, &done);
    } else {
        err = uffd_zero(in->uffd, spt_addr(&in->spt, id), 1);
        done = err ? 0 : 1;
    }
    if (done)
        die_at(DIE_ZERO_PLACED);
    for (uint32_t i = 0; i < done; i++)
        make_resident(in, id + i);
    return done ? 0 : err;
}

/* How many pages to give along with a NEW one: more while the program goes through them in order.
 */
static uint32_t new_run(struct instance *in, const struct waiter *w, uint32_t id)
{
    uint32_t max = ZERO_PAGES < in->set.prefetch_max ? ZERO_PAGES : in->set.prefetch_max, n = 1;
    if (!in->set.prefetch || !is_write(w) || !in->claimed)
        return 1;
    struct prefetch_plan plan = prefetch_fault(&in->prefetcher, w->addr >> EDM_PAGE_SHIFT, max);
    if (plan.stride != 1)
        return 1;
    const struct chunk *c = spt_chunk_of(&in->spt, id);
    uint32_t first = id % EDM_CHUNK_PAGES;
    while (n < ZERO_PAGES && n <= plan.count && first + n < EDM_CHUNK_PAGES &&
           c->pages[first + n].state == PAGE_NEW && !c->pages[first + n].pins)
        n++;
    uint64_t charge = budget_charge(in);
    uint64_t room = in->budget.limit > charge ? in->budget.limit - charge : 1;
    return n < room ? n : (uint32_t)room;
}

static int fault_new(struct instance *in, const struct waiter *w, struct chunk *c, uint32_t id)
{
    if (in->partial)
        return fault_poisoned(in, w);
    int err = lease_take(in, c, w->addr);
    if (err == -EAGAIN)
        return fault_wait(WAIT_AGAIN);
    in->stats->faults_new += err == 0;
    if (!err)
        return fault_done(in, w);
    if (!c->pages[id % EDM_CHUNK_PAGES].pins && !room_for(in, w))
        return fault_wait(WAIT_ROOM);
    err = place_zeros(in, w, id, new_run(in, w, id));
    if (err == -EEXIST) { /* it is there, served while nobody looked (KERNEL.md 21) */
        make_resident(in, id);
        in->stats->faults_new++;
        return fault_wake(in, w);
    }
    if (err)
        return fault_error(in, w, err);
    in->stats->faults_new++;
    return fault_done(in, w);
}

/* Missing, but the table says resident: the program discarded it at this moment (KERNEL.md 21). */
static int fault_resident(struct instance *in, const struct waiter *w, uint32_t id)
{
    if (in->chan && w->tid != in->chan->lpet_tid && evict_targets(in, id))
        return fault_wait(WAIT_OUTCOME);
    int err = uffd_zero(in->uffd, w->addr, 1);
    if (!err) {
        page_drop_handle(spt_page(&in->spt, id));
        return fault_done(in, w);
    }
    return fault_error(in, w, err);
}

/* A fault in a chunk that the kernel should be serving: its registration moved. Lease anew. */
static int fault_leased(struct instance *in, const struct waiter *w, struct chunk *c)
{
    if (c->touched) { /* not all of it is the kernel's: no lease any more */
        if (lease_break(in, c, false))
            return fault_wait(WAIT_AGAIN);
        return fault_resident(in, w, spt_id(c, spt_index(w->addr)));
    }
    uffd_unregister(in->uffd, c->addr, EDM_CHUNK_SIZE);
    int probe = uffd_zero(in->uffd, w->addr, 1);
    int err = probe == -EAGAIN ? probe : uffd_register(in->uffd, c->addr, EDM_CHUNK_SIZE, UFFD_WP);
    if (err) {
        if (lease_register(in, c) || (err != -EAGAIN && !lease_break(in, c, false)))
            c->unevictable = 1;
        return err == -EAGAIN ? fault_wait(WAIT_AGAIN) : fault_wake(in, w);
    }
    uffd_wake(in->uffd, c->addr, EDM_CHUNK_SIZE);
    return fault_done(in, w);
}

/* Write-protected: by us, while it is copied out; else a fork or a failed eviction left it so. */
static int fault_protected(struct instance *in, const struct waiter *w, const struct page *p)
{
    bool copied = in->chan && p->state == PAGE_EVICTING && w->tid != in->chan->lpet_tid &&
                  tag_is_own(p->link.next) &&
                  in->tracks[p->link.next / EDM_CMD_PAGES].kind == EDM_CMD_COPY;
    if (copied)
        return fault_wait(WAIT_OUTCOME);
    int err = uffd_protect(in->uffd, w->addr, EDM_PAGE_SIZE, false);
    return err ? fault_error(in, w, err) : fault_done(in, w);
}

static int fault_identity(struct instance *in, const struct waiter *w)
{
    uint64_t page[EDM_PAGE_SIZE / 8] = {in->nonce};
    int err = uffd_copy(in->uffd, in->identity, page, 1, true, NULL);
    return err ? fault_error(in, w, err) : fault_done(in, w);
}

/* 0: resolved; else 1 + the reason to wait. */
static int fault_resolve(struct instance *in, const struct waiter *w)
{
    if (w->addr == in->identity)
        return fault_identity(in, w);
    struct chunk *c = page_chunk(in, w->addr);
    if (!c)
        return fault_wait(WAIT_AGAIN);
    uint32_t id = spt_id(c, spt_index(w->addr));
    struct page *p = spt_page(&in->spt, id);
    if (w->flags & UFFD_PAGEFAULT_FLAG_WP)
        return fault_protected(in, w, p);
    if (c->leased && p->state == PAGE_NEW)
        return fault_leased(in, w, c);
    switch (p->state) {
    case PAGE_NEW:
        return fault_new(in, w, c, id);
    case PAGE_RESIDENT:
        return fault_resident(in, w, id);
    case PAGE_EVICTING:
        if (in->chan && w->tid == in->chan->lpet_tid) /* it populates what the program discarded */
            return fault_resident(in, w, id);
        return fault_wait(WAIT_OUTCOME);
    case PAGE_LIMBO:
        return fault_limbo(in, w, id);
    case PAGE_STORED:
        return fault_stored(in, w, id);
    case PAGE_POISONED:
        return fault_poisoned(in, w);
    default: /* FOREIGN: mapped again behind our back, and still registered: zeros */
        spt_set(c, p, PAGE_NEW);
        return fault_new(in, w, c, id);
    }
}

/* ---- waiting faults ---- */

/* A signal ends a thread's wait; then it faults anew. */
static bool waits_already(const struct instance *in, const struct waiter *w)
{
    for (size_t i = in->nwaiters; i > 0 && i + WAITERS_LOOK > in->nwaiters; i--) {
        const struct waiter *old = &in->waiters[i - 1];
        if (old->addr == w->addr && old->tid == w->tid && old->flags == w->flags)
            return true;
    }
    return false;
}

void dm_handler_wait(struct instance *in, const struct waiter *w, enum wait_reason why)
{
    if (waits_already(in, w))
        return;
    if (in->nwaiters == in->waiters_cap) {
        size_t cap = in->waiters_cap ? in->waiters_cap * 2 : 64;
        struct waiter *more = cap > WAITERS_MAX ? NULL : realloc(in->waiters, cap * sizeof(*more));
        if (!more) { /* let the thread fault again */
            uffd_wake(in->uffd, w->addr, EDM_PAGE_SIZE);
            return;
        }
        in->waiters = more;
        in->waiters_cap = cap;
    }
    in->waiters[in->nwaiters] = *w;
    in->waiters[in->nwaiters++].why = why;
    in->again += why == WAIT_AGAIN;
}

void dm_handler_served(struct instance *in, uint64_t addr)
{
    size_t kept = 0;
    for (size_t i = 0; i < in->nwaiters; i++) {
        const struct waiter *w = &in->waiters[i];
        if (w->addr == addr && !(w->flags & UFFD_PAGEFAULT_FLAG_WP)) {
            in->again -= w->why == WAIT_AGAIN;
            in->stats->faults_existing++;
            fault_done(in, w);
        } else {
            in->waiters[kept++] = *w;
        }
    }
    in->nwaiters = kept;
}

static void fault_handle(struct instance *in, const struct waiter *w, bool first)
{
    uint64_t existing = in->stats->faults_existing, fetching = in->budget.fetching;
    int why = fault_resolve(in, w);
    if (why) {
        in->stats->faults_waited += first;
        dm_handler_wait(in, w, (enum wait_reason)(why - 1));
    }
    if (in->stats->faults_existing != existing || in->budget.fetching > fetching)
        ahead_of_fault(in, w->addr);
}

static void set_starved(struct instance *in, bool starved)
{
    if (in->chan && in->chan->starved != starved)
        instance_starve(in, starved);
}

static void waiters_retry(struct instance *in)
{
    size_t n = in->nwaiters;
    struct waiter local[MSGS], *old = local;
    in->kick = false;
    if (n == 0) {
        set_starved(in, in->arrived_tries > ARRIVED_STARVED);
        return;
    }
    if (n > MSGS && !(old = malloc(n * sizeof(*old))))
        return;
    memcpy(old, in->waiters, n * sizeof(*old));
    in->nwaiters = 0;
    in->again = 0;
    for (size_t i = 0; i < n; i++)
        fault_handle(in, &old[i], false);
    if (old != local)
        free(old);
    if (!in->again)
        in->again_since_ns = 0;
    else if (!in->again_since_ns)
        in->again_since_ns = now_ns();
    set_starved(in, (in->again && now_ns() - in->again_since_ns > STARVED_NS) ||
                        (in->put_off_ns && now_ns() - in->put_off_ns > STARVED_NS) ||
                        in->arrived_tries > ARRIVED_STARVED);
}

/* ---- the loop ---- */

static int msgs_handle(struct instance *in)
{
    ghost_expire(in);
    int n = events_read(in);
    uint64_t now = n ? now_ns() : 0;
    for (int i = 0; i < n; i++) {
        const struct uffd_msg *m = &in->img->msgs[i];
        if (m->event != UFFD_EVENT_PAGEFAULT)
            continue;
        struct waiter w = {.addr = m->arg.pagefault.address & ~(EDM_PAGE_SIZE - 1),
                           .flags = m->arg.pagefault.flags,
                           .tid = m->arg.pagefault.feat.ptid,
                           .since_ns = now};
        fault_handle(in, &w, true);
        handlers_fault(in, w.tid, now);
    }
    return n;
}

static void step(struct instance *in)
{
    if (atomic_load(&in->stop)) /* its pages are given back: none may be stored any more */
        return;
    evict_complete(in, false);
    limbo_collect(in);
    for (int i = 0; i < 8 && msgs_handle(in) == IMAGE_MSGS; i++)
        ;
    if (in->put_off_ns)
        evict_complete(in, false);
    fetch_settle(in);
    if (in->kick || in->again)
        waiters_retry(in);
    evict_kick(in);
    bool spare = handlers_spare(in);
    if (limbo_drain(in, DRAIN_SLICE, spare) && in->nwaiters)
        waiters_retry(in);
    if (spare && limbo_post(in))
        handlers_spare_wake(in);
}

/* When there is work that no descriptor will announce; -1: there is none. */
static int due_us(const struct instance *in)
{
    if (in->again)
        return now_ns() - in->again_since_ns < 1000000 ? 50 : 1000;
    if (in->put_off_ns)
        return now_ns() - in->put_off_ns < 1000000 ? 50 : 1000;
    if (in->arrived)
        return in->arrived_tries < 10 * ARRIVED_STARVED ? 50 : 1000;
    return in->nwaiters ? WAITERS_US : -1;
}

static int next_timeout_us(const struct instance *in)
{
    int due = in->dead ? WAITERS_US : due_us(in);
    bool later = due < 0 || due >= WAITERS_US;
    return later && !in->dead && !handlers_spare(in) && limbo_is_due(in) ? 0 : due;
}

void dm_handler_step(struct instance *in)
{
    step(in);
    handlers_timer_ask(in, due_us(in));
}

void dm_handler_parks(struct instance *in, unsigned index)
{
    pthread_mutex_lock(&in->lock);
    in->turns.timer_us[index] = -1;
    handlers_timer_ask(in, due_us(in));
    pthread_mutex_unlock(&in->lock);
}

/* After a batch for limbo. Whoever serves faults collects it on the way; the lock is not waited for
 * at first, for that would make its holder wake us. */
static void limbo_hand_in(struct instance *in)
{
    const struct timespec pause = {0, 50000};
    for (int tries = 0; limbo_is_done(in); tries++) {
        if (tries < 20 && pthread_mutex_trylock(&in->lock)) {
            nanosleep(&pause, NULL);
            continue;
        }
        if (tries >= 20)
            pthread_mutex_lock(&in->lock);
        if (limbo_collect(in) && in->nwaiters)
            dm_handler_step(in);
        pthread_mutex_unlock(&in->lock);
    }
}

static void drain_eventfd(int fd)
{
    uint64_t value;
    struct iovec iov = {&value, sizeof(value)};
    if (fd >= 0) /* an instance could make comp_efd one that waits */
        (void)!preadv2(fd, &iov, 1, -1, RWF_NOWAIT);
}

void *dm_handler_main(void *arg)
{
    struct instance *in = arg;
    int timeout = -1;
    pthread_mutex_lock(&in->lock); /* until all are started */
    unsigned index = 0;
    while (index < in->nhandlers && !pthread_equal(in->handlers[index], pthread_self()))
        index++;
    pthread_mutex_unlock(&in->lock);
    handlers_weigh();
    while (!atomic_load(&in->stop)) {
        store_read_await(in->uffd);
        if (handlers_wait(in, index)) {
            limbo_hand_in(in);
            continue;
        }
        struct pollfd fds[3] = {{.fd = in->uffd, .events = POLLIN},
                                {.fd = in->wake_efd, .events = POLLIN},
                                {.fd = in->comp_efd, .events = POLLIN}};
        fetch_remote_spin(in);
        struct timespec ts = {timeout / 1000000, timeout % 1000000 * 1000};
        int n = timeout == 0 ? 0 : ppoll(fds, 3, timeout < 0 ? NULL : &ts, NULL);
        pthread_mutex_lock(&in->lock);
        if (atomic_load(&in->stop)) { /* set with the lock: the other handlers must hear it, too */
            pthread_mutex_unlock(&in->lock);
            break;
        }
        if (n > 0 && fds[0].revents & POLLERR) /* the instance did; it cannot be polled then */
            uffd_set_nonblock(in->uffd);
        if (n > 0 && fds[1].revents) {
            drain_eventfd(in->wake_efd);
            in->kick = true;
        }
        if (n > 0 && fds[2].revents)
            drain_eventfd(in->comp_efd);
        if (timeout > 0 && n == 0)
            in->kick = true;
        store_read_keep();
        step(in);
        timeout = in->turns.timer_us[index] = next_timeout_us(in);
        pthread_mutex_unlock(&in->lock);
    }
    store_read_await(in->uffd); /* what it keeps, others must get */
    return NULL;
}
