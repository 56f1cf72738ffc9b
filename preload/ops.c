#include "ops.h"
#include "sys.h"
#include <errno.h>
#include <signal.h>

#define STARVED_TICK_NS 20000000l
#define STARVED_TICKS 50 /* one second in all: the flag of a server that died does not stop us */

/* Of the thread inside fork; there is one at a time, ops_owner says so. */
static uint64_t fork_sigmask;

static struct edm_chan *chan_now(void)
{
    return shim_state ? atomic_load(&shim_state->chan) : NULL;
}

/* ------------------------------------------------------------------ the lock */

static bool lock_is_mine(void)
{
    return atomic_load_explicit(&shim_state->ops_owner, memory_order_relaxed) ==
           (unsigned)sys_gettid();
}

static void lock_take(void)
{
    unsigned self = (unsigned)sys_gettid(), owner = 0;
    if (atomic_compare_exchange_strong(&shim_state->ops_owner, &owner, self))
        return;
    atomic_fetch_add(&shim_state->ops_waiters, 1);
    for (owner = 0; !atomic_compare_exchange_strong(&shim_state->ops_owner, &owner, self);
         owner = 0)
        sys_futex_wait(&shim_state->ops_owner, owner, NULL, FUTEX_PRIVATE_FLAG);
    atomic_fetch_sub(&shim_state->ops_waiters, 1);
}

static void lock_drop(void)
{
    atomic_store(&shim_state->ops_owner, 0);
    if (atomic_load(&shim_state->ops_waiters))
        sys_futex_wake(&shim_state->ops_owner, 1, FUTEX_PRIVATE_FLAG);
}

static void signals_block(uint64_t *old)
{
    uint64_t all = ~0ull;
    sys_sigprocmask(SIG_SETMASK, &all, old);
}

static void signals_restore(const uint64_t *old)
{
    sys_sigprocmask(SIG_SETMASK, old, NULL);
}

/* Calls that raise events make the server's ioctls fail; while it gets nowhere, hold them back. */
static void wait_starved(const struct edm_chan *c)
{
    const struct timespec tick = {.tv_nsec = STARVED_TICK_NS};
    for (int i = 0; i < STARVED_TICKS && __atomic_load_n(&c->starved, __ATOMIC_ACQUIRE); i++)
        sys_futex_wait(&c->starved, 1, &tick, 0);
}

void ops_enter(struct ops_guard *g)
{
    g->note = NULL;
    g->entered = false;
    if (!chan_now() || lock_is_mine())
        return;
    signals_block(&g->sigmask);
    lock_take();
    g->entered = true;
    struct edm_chan *c = chan_now(); /* detached while we waited: the lock does no harm */
    if (c)
        wait_starved(c);
}

void ops_leave(struct ops_guard *g)
{
    ops_close(g->note);
    g->note = NULL;
    if (!g->entered)
        return;
    g->entered = false;
    lock_drop();
    signals_restore(&g->sigmask);
}

/* ------------------------------------------------------------------ operations */

/* A free entry, taken: DONE means nothing to the server. */
static struct edm_op *op_take(struct edm_chan *c)
{
    const struct timespec tick = {.tv_nsec = 1000000};
    for (;;) {
        for (unsigned i = 0; i < EDM_CHAN_OPS; i++) {
            struct edm_op *op = &c->ops[i];
            uint32_t is_free = EDM_OP_FREE;
            if (__atomic_compare_exchange_n(&op->state, &is_free, EDM_OP_DONE, false,
                                            __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
                return op;
        }
        uint32_t state = __atomic_load_n(&c->ops[0].state, __ATOMIC_ACQUIRE);
        if (state != EDM_OP_FREE)
            sys_futex_wait(&c->ops[0].state, state, &tick, 0);
    }
}

static struct edm_op *op_make(struct edm_chan *c, enum edm_op_kind kind, uint64_t start,
                              uint64_t len, uint64_t arg, enum edm_op_state state)
{
    struct edm_op *op = op_take(c);
    op->kind = kind;
    op->start = start;
    op->len = len;
    op->arg = arg;
    op->result = 0;
    op->tid = (uint32_t)sys_gettid();
    __atomic_store_n(&op->state, state, __ATOMIC_SEQ_CST);
    return op;
}

void ops_note(struct ops_guard *g, enum edm_op_kind kind, uint64_t start, uint64_t len,
              uint64_t arg)
{
    struct edm_chan *c = chan_now();
    ops_close(g->note); /* the call it was for is over */
    g->note = c ? op_make(c, kind, start, len, arg, EDM_OP_OPEN) : NULL;
}

void ops_close(struct edm_op *op)
{
    if (op)
        __atomic_store_n(&op->state, EDM_OP_FREE, __ATOMIC_SEQ_CST);
}

/* Waits until the server has acted. */
static void op_await(struct edm_chan *c, struct edm_op *op)
{
    __atomic_add_fetch(&c->op_bell, 1, __ATOMIC_SEQ_CST);
    sys_futex_wake(&c->op_bell, INT32_MAX, 0);
    const struct timespec tick = {.tv_sec = 1};
    while (__atomic_load_n(&op->state, __ATOMIC_ACQUIRE) == EDM_OP_REQUEST) {
        sys_futex_wait(&op->state, EDM_OP_REQUEST, &tick, 0);
        if (chan_now() != c) { /* detached by another thread: nobody acts any more */
            op->result = -ESRCH;
            return;
        }
    }
}

struct edm_op *ops_request_open(enum edm_op_kind kind, uint64_t start, uint64_t len, uint64_t arg)
{
    struct edm_chan *c = chan_now();
    uint64_t old;
    if (!c)
        return NULL;
    signals_block(&old);
    struct edm_op *op = op_make(c, kind, start, len, arg, EDM_OP_REQUEST);
    op_await(c, op);
    signals_restore(&old);
    return op;
}

int ops_request(enum edm_op_kind kind, uint64_t start, uint64_t len, uint64_t arg)
{
    struct edm_chan *c = chan_now();
    uint64_t old;
    if (!c)
        return 0;
    signals_block(&old); /* a handler that jumps away would leave the entry taken */
    struct edm_op *op = op_make(c, kind, start, len, arg, EDM_OP_REQUEST);
    op_await(c, op);
    int result = op->result;
    ops_close(op);
    signals_restore(&old);
    return result;
}

/* ------------------------------------------------------------------ attaching and forking */

void ops_publish(struct edm_chan *chan)
{
    atomic_store(&shim_state->chan, chan);
}

/* The mapping stays: another thread may be looking at it. */
void ops_unpublish(void)
{
    atomic_store(&shim_state->chan, NULL);
}

void ops_lock_for_fork(void)
{
    uint64_t old;
    signals_block(&old);
    lock_take();
    fork_sigmask = old;
}

/* In the child the lock is free already. */
void ops_unlock_after_fork(void)
{
    uint64_t old = fork_sigmask;
    if (lock_is_mine())
        lock_drop();
    signals_restore(&old);
}
