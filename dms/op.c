/*
 * What the hooks ask of the server through the channel. One thread per instance waits on the
 * channel's bell; it may wait for the LPET, so it never holds the lock while it does.
 */
#include "../config/log.h"
#include "die.h"
#include "instance.h"
#include "uffd.h"
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WILLNEED_BATCH 64
#define OWED_NS 5000000000ull /* an LPET that lives does a command much sooner */

static void futex_wait(uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0);
}

static void futex_wake(uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static bool overlaps(uint64_t a, uint64_t alen, uint64_t b, uint64_t bend)
{
    return a < bend && b < a + alen;
}

bool op_note_covers(const struct instance *in, uint64_t start, uint64_t end)
{
    if (!in->chan)
        return false;
    for (uint32_t i = 0; i < EDM_CHAN_OPS; i++) {
        const struct edm_op *op = &in->chan->ops[i];
        if (__atomic_load_n(&op->state, __ATOMIC_ACQUIRE) != EDM_OP_OPEN)
            continue;
        if (overlaps(op->start, op->len, start, end) ||
            (op->kind == EDM_OP_REMAP && overlaps(op->arg, op->len, start, end)))
            return true;
    }
    return false;
}

static bool contains(uint64_t start, uint64_t len, uint64_t part, uint64_t n)
{
    return part >= start && part - start < len && n <= len - (part - start);
}

bool op_note_says(const struct instance *in, uint64_t start, uint64_t len, uint64_t to)
{
    bool said = false;
    for (uint32_t i = 0; in->chan && i < EDM_CHAN_OPS && !said; i++) {
        const struct edm_op *op = &in->chan->ops[i];
        if (__atomic_load_n(&op->state, __ATOMIC_ACQUIRE) != EDM_OP_OPEN)
            continue;
        if (op->kind == EDM_OP_REMAP && to)
            said = contains(op->start, op->len, start, len) && op->arg + (start - op->start) == to;
        else if (op->kind == EDM_OP_REMAP)
            said = contains(op->arg, op->len, start, len);
        else if (op->kind == EDM_OP_UNMAP && !to)
            said = contains(op->start, op->len, start, len);
    }
    return said;
}

bool op_covers(const struct instance *in, uint64_t start, uint64_t end)
{
    for (unsigned i = 0; i < in->nheld; i++)
        if (overlaps(in->held[i].start, in->held[i].len, start, end))
            return true;
    return false;
}

/* Forgets the operations that the instance has closed. */
void op_prune(struct instance *in)
{
    for (unsigned i = 0; i < in->nheld;) {
        const struct edm_op *op = &in->chan->ops[in->held[i].slot];
        bool open = __atomic_load_n(&op->state, __ATOMIC_ACQUIRE) != EDM_OP_FREE &&
                    op->kind == EDM_OP_UNLEASE && op->start == in->held[i].start;
        if (open)
            i++;
        else
            in->held[i] = in->held[--in->nheld];
    }
}

void op_restore(struct instance *in)
{
    for (uint32_t i = 0; i < EDM_CHAN_OPS; i++) {
        const struct edm_op *op = &in->chan->ops[i];
        if (__atomic_load_n(&op->state, __ATOMIC_ACQUIRE) == EDM_OP_DONE &&
            op->kind == EDM_OP_UNLEASE)
            in->held[in->nheld++] = (struct held){op->start, op->len, i};
    }
}

/* Lets the LPET and the handlers work for a moment. */
static void let_go(struct instance *in)
{
    struct timespec ts = {0, 100000};
    pthread_mutex_unlock(&in->lock);
    nanosleep(&ts, NULL);
    pthread_mutex_lock(&in->lock);
    dm_handler_step(in);
}

static bool over(struct instance *in)
{
    return in->dead || atomic_load(&in->stop);
}

/* No command of [start, end) is outstanding, and no new one is made while it is held. */
static void quiesce(struct instance *in, uint64_t start, uint64_t end)
{
    while (in->claimed && !evict_cancel(in, start, end) && !over(in)) {
        evict_call(in);
        let_go(in);
    }
}

static void break_leases(struct instance *in, uint64_t start, uint64_t end)
{
    for (uint64_t a = start & ~(EDM_CHUNK_SIZE - 1); a < end; a += EDM_CHUNK_SIZE) {
        struct chunk *c = spt_chunk(&in->spt, a, false);
        if (!c)
            a = spt_beyond(&in->spt, a) - EDM_CHUNK_SIZE;
        while (c && c->leased && !c->unevictable && !over(in) && !lease_break(in, c, false))
            let_go(in);
    }
}

static int op_unlease(struct instance *in, const struct edm_op *op, uint32_t slot)
{
    uint64_t end = op->start + op->len;
    if (in->nheld == EDM_CHAN_OPS)
        return -EBUSY;
    in->held[in->nheld++] = (struct held){op->start, op->len, slot};
    quiesce(in, op->start, end);
    break_leases(in, op->start, end);
    int err = uffd_register(in->uffd, op->start, op->len, UFFD_MISSING | UFFD_WP);
    return err == -ENOENT ? 0 : err;
}

static int op_refreshed(struct instance *in, const struct edm_op *op)
{
    uint64_t end = op->start + op->len;
    quiesce(in, op->start, end);
    for (uint64_t a = op->start; a < end; a += EDM_PAGE_SIZE) {
        struct chunk *c = spt_chunk(&in->spt, a, false);
        if (!c) {
            a = spt_beyond(&in->spt, a) - EDM_PAGE_SIZE;
            continue;
        }
        struct page *p = &c->pages[spt_index(a)];
        if (p->state != PAGE_NEW)
            page_forget(in, c, spt_id(c, spt_index(a)), PAGE_NEW);
        if (c->leased && !lease_break(in, c, false))
            c->unevictable = 1;
    }
    int forgotten = advice_forget(in, op->start, op->len), err;
    do {
        err = uffd_register(in->uffd, op->start, op->len, UFFD_MISSING | UFFD_WP);
        if (err == -EAGAIN)
            let_go(in);
    } while (err == -EAGAIN && !over(in));
    return err ? err : forgotten;
}

static int op_pin(struct instance *in, const struct edm_op *op)
{
    uint64_t end = op->start + op->len;
    if (op->start <= in->arena_start && op->len >= in->arena_len) {
        in->pin_all += op->kind == EDM_OP_PIN ? 1 : -1;
        in->img->pin_all = in->pin_all;
        return 0;
    }
    if (op->kind == EDM_OP_UNPIN)
        return advice_unpin(in, op->start, op->len);
    quiesce(in, op->start, end); /* what is being taken out comes to an end first */
    int err = advice_pin(in, op->start, op->len, op->arg == 1);
    if (!err)
        break_leases(in, op->start, end);
    return err;
}

static int op_pageout(struct instance *in, const struct edm_op *op)
{
    uint64_t end = op->start + op->len;
    for (uint64_t a = op->start & ~(EDM_PAGE_SIZE - 1); a < end; a += EDM_PAGE_SIZE) {
        struct chunk *c = spt_chunk(&in->spt, a, false);
        if (!c) {
            a = spt_beyond(&in->spt, a) - EDM_PAGE_SIZE;
            continue;
        }
        if (c->leased)
            lease_break(in, c, true);
        struct page *p = &c->pages[spt_index(a)];
        if (!(p->flags & PF_LISTED) || c->leased)
            continue;
        lspt_remove(&in->lspt, &in->spt, spt_id(c, spt_index(a)));
        p->flags &= (uint8_t)~PF_HOT;
        lspt_push(&in->lspt, &in->spt, spt_id(c, spt_index(a)), true);
        in->budget.forced++;
    }
    return 0;
}

/* Makes room for what the program says that it will need: older pages go. */
static bool make_room(struct instance *in, uint64_t pages)
{
    for (int i = 0; i < 100 && !budget_has_room(in, pages) && !over(in); i++) {
        in->budget.forced = WILLNEED_BATCH;
        let_go(in);
    }
    return budget_has_room(in, 1);
}

/* At most half of the budget: else it would push out its own pages. */
static int op_willneed(struct instance *in, const struct edm_op *op)
{
    uint64_t end = op->start + op->len, most = in->budget.limit / 2;
    uint64_t before = in->stats->prefetch_fetched;
    uint64_t batch = in->budget.limit / 8 < WILLNEED_BATCH ? in->budget.limit / 8 : WILLNEED_BATCH;
    for (uint64_t a = op->start & ~(EDM_PAGE_SIZE - 1); a < end && !over(in);) {
        if (!spt_chunk(&in->spt, a, false)) {
            a = spt_beyond(&in->spt, a);
            continue;
        }
        uint64_t n = (end - a + EDM_PAGE_SIZE - 1) >> EDM_PAGE_SHIFT;
        uint64_t chunk = EDM_CHUNK_PAGES - spt_index(a);
        n = n < batch ? n : batch;
        n = n < chunk ? n : chunk;
        if (in->stats->prefetch_fetched - before >= most || !make_room(in, n))
            break;
        ahead_pages(in, a >> EDM_PAGE_SHIFT, 1, (uint32_t)n);
        a += n << EDM_PAGE_SHIFT;
        do
            let_go(in);
        while (in->budget.fetching > IN_FLIGHT_MAX / 2 && !over(in));
    }
    return 0;
}

/* What was lost must not become zeros when the kernel serves these pages again. */
static bool release_poison(struct instance *in)
{
    for (uint32_t n = 0; n < in->spt.nchunks; n++) {
        const struct chunk *c = &in->spt.chunks[n];
        for (uint32_t i = 0; i < EDM_CHUNK_PAGES; i++) {
            if (c->pages[i].state != PAGE_POISONED || spt_is_ghost(c))
                continue;
            int err = uffd_poison(in->uffd, c->addr + i * EDM_PAGE_SIZE, EDM_PAGE_SIZE);
            if (err && err != -EEXIST && err != -ENOENT)
                return false;
        }
    }
    return true;
}

/* Everything is back, and nothing goes out any more. */
static int release_rest(struct instance *in)
{
    uint64_t since = now_ns();
    while (in->budget.evicting && !over(in) && now_ns() - since < OWED_NS)
        let_go(in);
    if (in->budget.evicting && !over(in))
        return -ETIMEDOUT;
    if (in->limbo.used || in->stored)
        return -EAGAIN;
    if (!release_poison(in))
        return -EBADMSG;
    for (uint32_t i = 0; i < in->spt.nchunks; i++)
        uffd_unregister(in->uffd, in->spt.chunks[i].addr, EDM_CHUNK_SIZE);
    uffd_unregister(in->uffd, in->arena_start, in->arena_len);
    if (in->chan)
        evict_post_exit(in);
    die_at(DIE_RELEASED);
    in->img->detached = 1; /* last: until then a successor can take it back */
    return 0;
}

/* Called with the lock. */
static int release(struct instance *in)
{
    bool unlimited = in->budget.unlimited;
    uint32_t lease = in->set.lease;
    int err = fetch_all(in, NULL, NULL);
    if (err)
        return err;
    die_at(DIE_RELEASE);
    in->budget.unlimited = true;
    in->set.lease = 0;
    in->detached = true;
    err = release_rest(in);
    if (err) {
        in->budget.unlimited = unlimited;
        in->set.lease = lease;
        in->detached = false;
    }
    return err;
}

int instance_release(struct instance *in)
{
    pthread_mutex_lock(&in->lock);
    int err = release(in);
    pthread_mutex_unlock(&in->lock);
    return err;
}

static int op_act(struct instance *in, const struct edm_op *op, uint32_t slot)
{
    if (op->start > SPT_GHOST || op->len > SPT_GHOST - op->start)
        return -EINVAL; /* no address of a program */
    switch (op->kind) {
    case EDM_OP_UNLEASE:
        return op_unlease(in, op, slot);
    case EDM_OP_REFRESHED:
        return op_refreshed(in, op);
    case EDM_OP_PIN:
    case EDM_OP_UNPIN:
        return op_pin(in, op);
    case EDM_OP_WIPEONFORK:
        return advice_flag(in, op->start, op->len, PF_WIPE, op->arg);
    case EDM_OP_DONTFORK:
        return advice_flag(in, op->start, op->len, PF_NOFORK, op->arg);
    case EDM_OP_WILLNEED:
        return op_willneed(in, op);
    case EDM_OP_PAGEOUT:
        return op_pageout(in, op);
    case EDM_OP_DETACH:
        return release(in);
    case EDM_OP_RIGHTS:
        return uffd_rights(in->maps_fd, op->start);
    case EDM_OP_SYNC:
        return 0;
    default:
        return -ENOSYS;
    }
}

static void ops_scan(struct instance *in)
{
    for (uint32_t i = 0; i < EDM_CHAN_OPS; i++) {
        struct edm_op *shared = &in->chan->ops[i];
        if (__atomic_load_n(&shared->state, __ATOMIC_ACQUIRE) != EDM_OP_REQUEST)
            continue;
        struct edm_op op = *shared; /* the instance may write it: one look only */
        pthread_mutex_lock(&in->lock);
        op_prune(in);
        dm_handler_step(in);
        shared->result = op_act(in, &op, i);
        die_at(DIE_OP);
        uint32_t request = EDM_OP_REQUEST; /* at once: a successor would act again */
        __atomic_compare_exchange_n(&shared->state, &request, EDM_OP_DONE, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE);
        in->kick = true;
        dm_handler_step(in);
        pthread_mutex_unlock(&in->lock);
        futex_wake(&shared->state);
    }
}

void *op_main(void *arg)
{
    struct instance *in = arg;
    for (;;) {
        uint32_t bell = __atomic_load_n(&in->chan->op_bell, __ATOMIC_ACQUIRE);
        if (atomic_load(&in->stop))
            break; /* looked at after the bell: the one that stops us rings last */
        ops_scan(in);
        futex_wait(&in->chan->op_bell, bell);
    }
    return NULL;
}
