/* Who is asked from its own CPU again and again leaves it; nobody else does. */
#include "dms/keep_off.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define OFTEN 100
#define ASKED_NS 5000000000ull

static struct keep_off k;

static int begin(void **state)
{
    keep_off_init(&k);
    return k.machine == 0; /* no test without the number of the machine */
}

static int end(void **state)
{
    keep_off_tick(&k, UINT64_MAX);
    return 0;
}

static int allowed(void)
{
    cpu_set_t now;
    assert_int_equal(sched_getaffinity(0, sizeof(now), &now), 0);
    return CPU_COUNT(&now);
}

static void asked_here(uint32_t machine)
{
    uint32_t cpu = keep_off_cpu();
    for (int i = 0; i < OFTEN; i++)
        keep_off_asked(&k, machine, cpu, ASKED_NS);
}

static void test_leaves(void **state)
{
    int all = allowed();
    uint32_t cpu = keep_off_cpu();
    if (all == 1)
        skip();
    asked_here(k.machine);
    assert_int_equal(allowed(), all - 1);
    assert_int_not_equal(keep_off_cpu(), cpu);
    asked_here(k.machine); /* the asker has followed */
    assert_int_equal(allowed(), all - 1);
    assert_int_not_equal(keep_off_cpu(), 0);
    keep_off_tick(&k, ASKED_NS + 1000000);
    assert_int_equal(allowed(), all - 1);
    keep_off_tick(&k, ASKED_NS + 2000000000);
    assert_int_equal(allowed(), all);
}

static void test_other_machines_do_not_matter(void **state)
{
    int all = allowed();
    asked_here(k.machine + 1);
    asked_here(0);
    assert_int_equal(allowed(), all);
}

static void test_other_cpus_do_not_matter(void **state)
{
    int all = allowed();
    for (int i = 0; i < OFTEN; i++)
        keep_off_asked(&k, k.machine, keep_off_cpu() + (i % 4 ? 0 : 1), ASKED_NS);
    for (int i = 0; i < OFTEN; i++)
        keep_off_asked(&k, k.machine, 0, ASKED_NS);
    assert_int_equal(allowed(), all);
}

static void test_the_only_cpu_stays(void **state)
{
    cpu_set_t before, one;
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    CPU_ZERO(&one);
    CPU_SET(keep_off_cpu() - 1, &one);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    keep_off_init(&k);
    asked_here(k.machine);
    assert_int_equal(allowed(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_leaves, begin, end),
        cmocka_unit_test_setup_teardown(test_other_machines_do_not_matter, begin, end),
        cmocka_unit_test_setup_teardown(test_other_cpus_do_not_matter, begin, end),
        cmocka_unit_test_setup_teardown(test_the_only_cpu_stays, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
