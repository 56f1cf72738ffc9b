/* The channel's operations: notes, requests, the lock, the starved flag. The server is a thread. */
#include "../../preload/ops.h"
#include "../../preload/sys.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

struct shim_config shim_config;
struct shim_state *shim_state;
static struct edm_chan *chan;
static atomic_bool server_ends, server_holds;
static atomic_int served;

static bool signals_blocked(void)
{
    uint64_t now;
    sys_sigprocmask(SIG_BLOCK, NULL, &now);
    return now & (1ull << (SIGUSR1 - 1));
}

static unsigned entries_in(uint32_t state)
{
    unsigned n = 0;
    for (unsigned i = 0; i < EDM_CHAN_OPS; i++)
        n += __atomic_load_n(&chan->ops[i].state, __ATOMIC_SEQ_CST) == state;
    return n;
}

/* Result of a request: minus the number in arg. */
static void *server_main(void *arg)
{
    while (!atomic_load(&server_ends)) {
        uint32_t bell = __atomic_load_n(&chan->op_bell, __ATOMIC_SEQ_CST);
        for (unsigned i = 0; i < EDM_CHAN_OPS && !atomic_load(&server_holds); i++) {
            struct edm_op *op = &chan->ops[i];
            if (__atomic_load_n(&op->state, __ATOMIC_SEQ_CST) != EDM_OP_REQUEST)
                continue;
            if (op->len == op->start + 1)
                op->result = -(int)op->arg;
            atomic_fetch_add(&served, 1);
            __atomic_store_n(&op->state, EDM_OP_DONE, __ATOMIC_SEQ_CST);
            sys_futex_wake(&op->state, INT32_MAX, 0);
        }
        struct timespec tick = {.tv_nsec = 20000000};
        sys_futex_wait(&chan->op_bell, bell, &tick, 0);
    }
    return NULL;
}

static void nothing_happens_when_not_attached(void **state)
{
    struct ops_guard g;
    ops_unpublish();
    ops_enter(&g);
    assert_false(g.entered);
    ops_note(&g, EDM_OP_REMOVE, 4096, 4096, 0);
    assert_null(g.note);
    assert_int_equal(ops_request(EDM_OP_PIN, 1, 2, 3), 0);
    assert_null(ops_request_open(EDM_OP_UNLEASE, 1, 2, 3));
    ops_close(NULL);
    ops_leave(&g);
    assert_int_equal(entries_in(EDM_OP_FREE), EDM_CHAN_OPS);
    ops_publish(chan);
}

static void note_is_open_between(void **state)
{
    struct ops_guard g;
    ops_enter(&g);
    assert_true(g.entered);
    assert_true(signals_blocked());
    ops_note(&g, EDM_OP_REMAP, 4096, 8192, 77);
    assert_int_equal(entries_in(EDM_OP_OPEN), 1);
    assert_int_equal(g.note->kind, EDM_OP_REMAP);
    assert_int_equal(g.note->start, 4096);
    assert_int_equal(g.note->len, 8192);
    assert_int_equal(g.note->arg, 77);
    assert_int_equal(g.note->tid, sys_gettid());
    ops_note(&g, EDM_OP_UNMAP, 4096, 4096, 0); /* the first call is over */
    assert_int_equal(entries_in(EDM_OP_OPEN), 1);
    ops_leave(&g);
    assert_int_equal(entries_in(EDM_OP_FREE), EDM_CHAN_OPS);
    assert_int_equal(atomic_load(&shim_state->ops_owner), 0);
    assert_false(signals_blocked());
}

static void guards_nest(void **state)
{
    struct ops_guard outer, inner;
    ops_enter(&outer);
    ops_note(&outer, EDM_OP_REMOVE, 0, 4096, 0);
    ops_enter(&inner);
    assert_false(inner.entered);
    ops_note(&inner, EDM_OP_UNMAP, 0, 4096, 0);
    assert_int_equal(entries_in(EDM_OP_OPEN), 2);
    ops_leave(&inner);
    assert_int_equal(entries_in(EDM_OP_OPEN), 1);
    assert_int_equal(atomic_load(&shim_state->ops_owner), sys_gettid());
    ops_leave(&outer);
    assert_int_equal(atomic_load(&shim_state->ops_owner), 0);
}

static void requests_are_answered(void **state)
{
    struct ops_guard g;
    for (int i = 0; i < 1000; i++)
        assert_int_equal(ops_request(EDM_OP_PIN, (uint64_t)i, (uint64_t)i + 1, (uint64_t)i), -i);
    ops_enter(&g); /* inside the lock, too */
    assert_int_equal(ops_request(EDM_OP_SYNC, 5, 6, 7), -7);
    ops_leave(&g);
    struct edm_op *op = ops_request_open(EDM_OP_UNLEASE, 1, 2, 9);
    assert_int_equal(op->state, EDM_OP_DONE);
    assert_int_equal(op->result, -9);
    ops_close(op);
    assert_int_equal(entries_in(EDM_OP_FREE), EDM_CHAN_OPS);
}

static atomic_int inside;

static void *lock_thread(void *arg)
{
    for (int i = 0; i < 3000; i++) {
        struct ops_guard g;
        ops_enter(&g);
        if (atomic_fetch_add(&inside, 1) != 0)
            return "two threads inside";
        ops_note(&g, EDM_OP_REMOVE, 1, 2, 3);
        atomic_fetch_sub(&inside, 1);
        ops_leave(&g);
        if (i % 8 == 0 && ops_request(EDM_OP_PIN, 1, 2, 5) != -5)
            return "wrong result";
    }
    return NULL;
}

/* More threads than there are entries. */
static void many_threads(void **state)
{
    pthread_t t[EDM_CHAN_OPS + 16];
    for (size_t i = 0; i < EDM_CHAN_OPS + 16; i++)
        assert_int_equal(pthread_create(&t[i], NULL, lock_thread, NULL), 0);
    for (size_t i = 0; i < EDM_CHAN_OPS + 16; i++) {
        void *bad;
        pthread_join(t[i], &bad);
        assert_null(bad);
    }
    assert_int_equal(entries_in(EDM_OP_FREE), EDM_CHAN_OPS);
    assert_int_equal(atomic_load(&shim_state->ops_waiters), 0);
}

static double seconds(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void *feed_thread(void *arg)
{
    struct timespec ts = {.tv_nsec = 200000000};
    nanosleep(&ts, NULL);
    __atomic_store_n(&chan->starved, 0, __ATOMIC_SEQ_CST);
    sys_futex_wake(&chan->starved, INT32_MAX, 0);
    return NULL;
}

static void starved_holds_back_but_not_for_ever(void **state)
{
    struct ops_guard g;
    pthread_t t;
    chan->starved = 1;
    double before = seconds();
    pthread_create(&t, NULL, feed_thread, NULL);
    ops_enter(&g);
    double took = seconds() - before;
    ops_leave(&g);
    pthread_join(t, NULL);
    assert_true(took > 0.15 && took < 0.9);
    chan->starved = 1; /* of a server that died */
    before = seconds();
    ops_enter(&g);
    ops_leave(&g);
    took = seconds() - before;
    assert_true(took > 0.5 && took < 5);
    chan->starved = 0;
}

static void *request_thread(void *arg)
{
    return (void *)(intptr_t)ops_request(EDM_OP_PIN, 1, 2, 5);
}

static void detaching_releases_waiters(void **state)
{
    pthread_t t;
    void *result;
    atomic_store(&server_holds, true);
    pthread_create(&t, NULL, request_thread, NULL);
    while (!entries_in(EDM_OP_REQUEST))
        sched_yield();
    ops_unpublish();
    pthread_join(t, &result);
    assert_int_equal((intptr_t)result, -ESRCH);
    atomic_store(&server_holds, false);
    ops_publish(chan);
}

static void fork_finds_nobody_inside(void **state)
{
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&t[i], NULL, lock_thread, NULL);
    for (int i = 0; i < 200; i++) {
        ops_lock_for_fork();
        assert_true(signals_blocked());
        assert_int_equal(atomic_load(&inside), 0);
        pid_t pid = fork();
        if (!pid) {
            bool wiped = !atomic_load(&shim_state->ops_owner) && !atomic_load(&shim_state->chan);
            ops_unlock_after_fork();
            struct ops_guard g;
            ops_enter(&g);
            ops_leave(&g);
            _exit(wiped && !signals_blocked() ? 0 : 1);
        }
        ops_unlock_after_fork();
        int status;
        waitpid(pid, &status, 0);
        assert_int_equal(status, 0);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    assert_false(signals_blocked());
}

static pthread_t server;

static int setup(void **state)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(page, 4096, MADV_WIPEONFORK);
    shim_state = page;
    chan = mmap(NULL, sizeof(*chan), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ops_publish(chan);
    return pthread_create(&server, NULL, server_main, NULL);
}

static int teardown(void **state)
{
    atomic_store(&server_ends, true);
    pthread_join(server, NULL);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_happens_when_not_attached),
        cmocka_unit_test(note_is_open_between),
        cmocka_unit_test(guards_nest),
        cmocka_unit_test(requests_are_answered),
        cmocka_unit_test(many_threads),
        cmocka_unit_test(starved_holds_back_but_not_for_ever),
        cmocka_unit_test(detaching_releases_waiters),
        cmocka_unit_test(fork_finds_nobody_inside),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
