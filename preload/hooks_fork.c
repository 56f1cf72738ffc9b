/*
 * fork: nothing of the process is half done when the kernel copies it. The LPET stands still (what
 * it has taken out is in the shared ring by then: KERNEL.md 9), nobody is inside an operation or
 * the arena's tables. Handlers, not a hook on fork: daemon and forkpty go around hooks.
 */
#include "arena.h"
#include "attach.h"
#include "hooks.h"
#include "lpet.h"
#include "ops.h"
#include <pthread.h>
#include <sys/single_threaded.h>

int __real_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void));
int __wrap_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void));

/*
 * A process of one thread that has no server has nothing that could be half done: no lock is taken,
 * neither ours nor jemalloc's. What a lock's page costs is copying it twice, in parent and child;
 * jemalloc alone has thirty such pages, and a shell does little else than fork.
 */
static bool fork_alone;  /* of the one thread inside fork, as are: */
static bool fork_single; /* jemalloc's locks were left alone */
static struct edm_chan *fork_chan;
static uint32_t fork_seq;

/* What is as it was is not written: its page is shared with the last child. */
AT_LOAD static void note(bool *where, bool what)
{
    if (*where != what)
        *where = what;
}

static void lpet_hold(struct edm_chan *c)
{
    c->fork_tid = (uint32_t)sys_gettid();
    fork_seq = __atomic_load_n(&c->fork_seq, __ATOMIC_ACQUIRE);
    __atomic_store_n(&c->fork_hold, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&c->lpet_busy, __ATOMIC_SEQ_CST) &&
           __atomic_load_n(&c->lpet_tid, __ATOMIC_RELAXED)) {
        struct timespec tick = {.tv_nsec = 100 * 1000 * 1000};
        sys_futex_wait(&c->lpet_busy, 1, &tick, 0);
    }
}

static void lpet_release(struct edm_chan *c)
{
    __atomic_store_n(&c->fork_hold, 0, __ATOMIC_SEQ_CST);
    c->fork_tid = 0;
    sys_futex_wake(&c->fork_hold, INT32_MAX, 0);
}

AT_LOAD static void fork_prepare(void)
{
    if (!shim_state || !shim_config.enabled)
        return;
    note(&fork_alone, __libc_single_threaded && !attach_was_tried() &&
                          atomic_load(&shim_state->attach_state) == SHIM_NOT_ATTACHED);
    if (fork_alone)
        return;
    ops_lock_for_fork();
    fork_chan = attach_block() ? atomic_load(&shim_state->chan) : NULL;
    arena_lock_for_fork();
    if (fork_chan)
        lpet_hold(fork_chan);
}

/*
 * Until the server has applied the fork, nothing may be evicted: it would count as the child's,
 * too. A fork that failed is not announced, and then nothing depends on it: bounded, unless the
 * server has died with events that it had read. Then its successor applies them first.
 */
static void fork_settle(struct edm_chan *c)
{
    const struct timespec tick = {.tv_nsec = 20 * 1000 * 1000};
    uint64_t until = lpet_now_ms() + shim_config.settings.reconnect_timeout_ms;
    do {
        if (__atomic_load_n(&c->fork_seq, __ATOMIC_ACQUIRE) != fork_seq)
            return;
        sys_futex_wait(&c->fork_seq, fork_seq, &tick, 0);
    } while ((__atomic_load_n(&c->batch, __ATOMIC_ACQUIRE) & 1) && lpet_now_ms() < until);
}

AT_LOAD static void fork_parent(void)
{
    if (!shim_state || !shim_config.enabled || fork_alone)
        return;
    if (fork_chan) {
        fork_settle(fork_chan);
        lpet_release(fork_chan);
    }
    arena_unlock_after_fork();
    attach_unblock();
    ops_unlock_after_fork();
}

/* Nobody else is here. *shim_state is wiped by the kernel only once there is an arena. */
static void state_reset(void)
{
    atomic_store(&shim_state->chan, NULL);
    atomic_store(&shim_state->ops_owner, 0);
    atomic_store(&shim_state->ops_waiters, 0);
    atomic_store(&shim_state->attach_state, SHIM_NOT_ATTACHED);
}

AT_LOAD static void fork_child(void)
{
    if (!shim_state || !shim_config.enabled)
        return;
    hooks_misc_forked();
    if (fork_alone) {
        arena_forget_locks();
        /* by a signal handler of the parent, since prepare? one of ours knows what it did */
        if (attach_was_tried() && atomic_load(&shim_state->attach_state) == SHIM_NOT_ATTACHED) {
            state_reset();
            attach_after_fork(attach_was_registered());
        }
        return;
    }
    state_reset();
    arena_unlock_after_fork();
    arena_forget_locks();
    attach_after_fork(fork_chan != NULL);
    ops_unlock_after_fork();
}

AT_LOAD void hooks_fork_init(void)
{
    static AT_LOAD_DATA atomic_bool done;
    if (!atomic_exchange(&done, true))
        __real_pthread_atfork(fork_prepare, fork_parent, fork_child);
}

static struct {
    void (*prepare)(void), (*parent)(void), (*child)(void);
} allocator;

AT_LOAD static void allocator_prepare(void)
{
    note(&fork_single, __libc_single_threaded);
    if (!fork_single)
        allocator.prepare();
}

AT_LOAD static void allocator_parent(void)
{
    if (!fork_single)
        allocator.parent();
}

AT_LOAD static void allocator_child(void)
{
    if (!fork_single)
        allocator.child();
}

/*
 * jemalloc's call (by --wrap). Its prepare handler takes all its locks; a thread that holds one may
 * be waiting for the arena's or for ops. Ours must therefore run last, that is be registered first.
 */
int __wrap_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void))
{
    hooks_fork_init();
    allocator.prepare = prepare;
    allocator.parent = parent;
    allocator.child = child;
    return __real_pthread_atfork(allocator_prepare, allocator_parent, allocator_child);
}
