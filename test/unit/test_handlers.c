/* Which handlers poll: the way that costs less is found, and found again when it changes. */
#include "dms/instance.h"
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

static bool work_waits;

bool limbo_work(struct instance *in)
{
    bool had = work_waits;
    work_waits = false;
    return had;
}

static atomic_uint wakes;

void instance_wake(struct instance *in)
{
    wakes++;
}

void dm_handler_parks(struct instance *in, unsigned index)
{
    int due = in->turns.timer_us[index];
    in->turns.timer_us[index] = -1;
    handlers_timer_ask(in, due);
}

static struct instance *in;
static uint64_t now = 1000000;

/* Two handlers; the first is on this thread's CPU, where the thread is kept. */
static int setup(void **state)
{
    cpu_set_t one;
    in = calloc(1, sizeof(*in));
    handlers_init(&in->turns);
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof(one), &one);
    in->pid = getpid();
    in->nhandlers = 2;
    wakes = 0;
    in->turns.placed = true;
    in->turns.cpu[0] = sched_getcpu();
    in->turns.cpu[1] = in->turns.cpu[0] + 1;
    for (int i = 0; i < 2; i++)
        in->turns.park_efd[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return 0;
}

static int teardown(void **state)
{
    handlers_fini(&in->turns);
    free(in);
    return 0;
}

static int leader(void)
{
    return atomic_load(&in->turns.leader);
}

/* Faults of one thread, each so much later than the last; how many while somebody led. */
static unsigned faults(uint32_t tid, unsigned n, uint64_t alone_ns, uint64_t led_ns)
{
    unsigned led = 0;
    for (unsigned i = 0; i < n; i++) {
        now += in->turns.leading ? led_ns : alone_ns;
        handlers_fault(in, tid, now);
        led += leader() >= 0;
    }
    return led;
}

static uint32_t own_tid(void)
{
    return (uint32_t)syscall(SYS_gettid);
}

/* Windows, each as long as its way takes; how many had a leader. */
static unsigned windows(struct turns *t, unsigned n, uint64_t alone_ns, uint64_t led_ns)
{
    unsigned led = 0;
    for (unsigned i = 0; i < n; i++) {
        led += t->leading;
        handlers_measured(t, t->leading ? led_ns : alone_ns);
    }
    return led;
}

static void choice_is_the_cheaper_one(void **state)
{
    struct turns *t = &in->turns;
    windows(t, 100, 1000, 900);
    assert_true(windows(t, 1000, 1000, 900) > 950);
    windows(t, 600, 900, 1000);
    assert_true(windows(t, 1000, 900, 1000) < 100);
    windows(t, 600, 1000, 990); /* not worth the change */
    assert_true(windows(t, 1000, 1000, 990) < 100);
}

static void other_way_is_tried_now_and_then(void **state)
{
    windows(&in->turns, 10000, 1000, 900);
    assert_in_range(windows(&in->turns, 1000, 1000, 900), 950, 999);
}

/* A window in ten takes a hundred times as long, for no reason of ours. */
static void noise_does_not_decide(void **state)
{
    struct turns *t = &in->turns;
    unsigned led = 0;
    windows(t, 100, 1500, 1000);
    for (unsigned i = 0; i < 1000; i++)
        led += windows(t, 1, i % 10 ? 1500 : 150000, i % 10 ? 1000 : 100000);
    assert_true(led > 900);
}

static void leader_when_that_is_cheaper(void **state)
{
    unsigned n = 100 * 256;
    assert_true(faults(own_tid(), n, 5000, 2000) > n * 9 / 10);
    assert_int_equal(leader(), 0);
}

/* Else what is measured as one way is the other. */
static void leads_in_all_of_its_windows(void **state)
{
    for (unsigned i = 0; i < 100 * 256; i++) {
        faults(own_tid(), 1, 5000, 2000);
        assert_int_equal(leader(), in->turns.leading ? 0 : -1);
    }
}

static void all_when_that_is_cheaper(void **state)
{
    unsigned n = 100 * 256;
    assert_true(faults(own_tid(), n, 2000, 5000) < n / 5);
}

static void change_is_noticed(void **state)
{
    unsigned n = 200 * 256;
    faults(own_tid(), n, 5000, 2000);
    faults(own_tid(), n, 5000, 20000);
    assert_true(faults(own_tid(), n, 5000, 20000) < n / 5);
    faults(own_tid(), n, 5000, 2000);
    assert_true(faults(own_tid(), n, 5000, 2000) > n * 8 / 10);
}

static void several_threads_have_no_leader(void **state)
{
    faults(own_tid(), 100 * 256, 5000, 2000);
    assert_int_equal(leader(), 0);
    for (uint32_t i = 0; i < 1000; i++)
        assert_int_equal(faults(1000000 + i % 2, 1, 5000, 2000), 0);
}

/* Nobody knows where a thread is that does not exist any more. */
static void unknown_thread_has_no_leader(void **state)
{
    assert_int_equal(faults(4000000, 100 * 256, 5000, 2000), 0);
}

static void who_leads_polls(void **state)
{
    atomic_store(&in->turns.leader, 0);
    assert_true(handlers_spare(in));
    assert_false(handlers_wait(in, 0));
    work_waits = true;
    assert_true(handlers_wait(in, 1)); /* parked, and with something to do */
    atomic_store(&in->turns.leader, -1);
    assert_false(handlers_spare(in));
    assert_false(handlers_wait(in, 1));
}

static void *parked(void *arg)
{
    return (void *)(uintptr_t)handlers_wait(in, 1);
}

/* A parked handler sleeps until it is woken for what it is needed for. */
static void parked_handler_is_woken(void **state)
{
    void *had_work;
    pthread_t t;
    atomic_store(&in->turns.leader, 0);
    work_waits = false;
    pthread_create(&t, NULL, parked, NULL);
    usleep(20000);
    atomic_store(&in->turns.leader, 1);
    handlers_wake(in);
    pthread_join(t, &had_work);
    assert_null(had_work);
    atomic_store(&in->turns.leader, 0);
    pthread_create(&t, NULL, parked, NULL);
    usleep(20000);
    atomic_store(&in->stop, true);
    handlers_wake(in);
    pthread_join(t, &had_work);
    assert_null(had_work);
}

static unsigned wakes_for(int due_us)
{
    wakes = 0;
    handlers_timer_ask(in, due_us);
    return wakes;
}

static void somebody_comes_in_time(void **state)
{
    assert_int_equal(wakes_for(-1), 0);
    assert_int_equal(wakes_for(100000), 1);
    in->turns.timer_us[1] = 1000;
    assert_int_equal(wakes_for(100000), 0);
    assert_int_equal(wakes_for(1000), 0);
    assert_int_equal(wakes_for(50), 1);
    in->turns.timer_us[0] = 0;
    assert_int_equal(wakes_for(50), 0);
}

/* What a handler would have come back for is not forgotten while it sleeps for good. */
static void timer_of_who_parks_is_handed_over(void **state)
{
    void *had_work;
    pthread_t t;
    atomic_store(&in->turns.leader, 0);
    in->turns.timer_us[1] = 100000;
    pthread_create(&t, NULL, parked, NULL);
    while (!atomic_load(&wakes)) /* the suite's time limit ends it otherwise */
        usleep(1000);
    atomic_store(&in->stop, true);
    handlers_wake(in);
    pthread_join(t, &had_work);
    assert_int_equal(in->turns.timer_us[1], -1);
    assert_int_equal(wakes, 1);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(choice_is_the_cheaper_one),
        TEST(other_way_is_tried_now_and_then),
        TEST(noise_does_not_decide),
        TEST(leader_when_that_is_cheaper),
        TEST(leads_in_all_of_its_windows),
        TEST(all_when_that_is_cheaper),
        TEST(change_is_noticed),
        TEST(several_threads_have_no_leader),
        TEST(unknown_thread_has_no_leader),
        TEST(who_leads_polls),
        TEST(parked_handler_is_woken),
        TEST(somebody_comes_in_time),
        TEST(timer_of_who_parks_is_handed_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
