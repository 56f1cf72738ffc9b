/* Latency buckets: percentiles within the width of a bucket. */
#include "dms/stats.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static void percentiles(void **state)
{
    struct instance_stats s = {0};
    assert_int_equal(stats_latency_at(&s, 500), 0);
    for (uint64_t ns = 1; ns <= 100000; ns++)
        stats_latency_add(&s, ns);
    uint64_t p50 = stats_latency_at(&s, 500), p99 = stats_latency_at(&s, 990);
    assert_in_range(p50, 50000, 62500);
    assert_in_range(p99, 99000, 100000);
    assert_int_equal(s.latency_max_ns, 100000);
}

static void extremes(void **state)
{
    struct instance_stats s = {0};
    stats_latency_add(&s, 0);
    assert_int_equal(stats_latency_at(&s, 1000), 0);
    stats_latency_add(&s, UINT64_MAX);
    assert_true(stats_latency_at(&s, 1000) > 1000000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(percentiles), cmocka_unit_test(extremes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
