/* Prefetch policy: streams are found, grow, and random faults fetch nothing. */
#include "dms/prefetch.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MAX 256

/* Walks `pages` pages from `start` by `stride`; counts faults that the prefetcher leaves. */
static unsigned walk(struct prefetcher *p, uint64_t start, int64_t stride, unsigned pages)
{
    static char have[1 << 20];
    unsigned faults = 0;
    memset(have, 0, sizeof(have));
    for (unsigned i = 0; i < pages; i++) {
        uint64_t at = start + (uint64_t)(stride * (int64_t)i);
        if (have[at])
            continue;
        faults++;
        struct prefetch_plan plan = prefetch_fault(p, at, MAX);
        assert_true(plan.count <= MAX);
        for (uint32_t k = 0; k < plan.count; k++) {
            uint64_t f = plan.first + (uint64_t)(plan.stride * (int64_t)k);
            if (f < sizeof(have))
                have[f] = 1;
        }
    }
    return faults;
}

static void forward(void **state)
{
    struct prefetcher p = {0};
    assert_true(walk(&p, 1000, 1, 100000) < 100000 / 200);
}

static void backward(void **state)
{
    struct prefetcher p = {0};
    assert_true(walk(&p, 200000, -1, 100000) < 100000 / 200);
}

static void strided(void **state)
{
    struct prefetcher p = {0};
    assert_true(walk(&p, 1000, 7, 50000) < 50000 / 100);
}

static void interleaved(void **state)
{
    static char have[1 << 20];
    struct prefetcher p = {0};
    unsigned faults = 0;
    memset(have, 0, sizeof(have));
    for (unsigned i = 0; i < 40000; i++) {
        uint64_t at = 10000 + (uint64_t)(i % 8) * 100000 + i / 8;
        if (have[at])
            continue;
        faults++;
        struct prefetch_plan plan = prefetch_fault(&p, at, MAX);
        for (uint32_t k = 0; k < plan.count; k++)
            have[plan.first + (uint64_t)(plan.stride * (int64_t)k)] = 1;
    }
    assert_true(faults < 40000 / 50);
}

static void random_fetches_little(void **state)
{
    struct prefetcher p = {0};
    uint64_t fetched = 0;
    for (int i = 0; i < 100000; i++)
        fetched += prefetch_fault(&p, (uint64_t)random() % (1u << 26), MAX).count;
    assert_true(fetched < 1000);
}

/* What lies across two pages is no stream; and that there is such does not hide those that are. */
static void pairs_fetch_little(void **state)
{
    struct prefetcher p = {0};
    uint64_t fetched = 0, faults = 0;
    for (int i = 0; i < 100000; i++) {
        uint64_t at = (uint64_t)random() % (1u << 26) * 256;
        fetched += prefetch_fault(&p, at, MAX).count;
        fetched += prefetch_fault(&p, at + 1, MAX).count;
    }
    assert_true(fetched < 1000);
    for (uint64_t at = 7; at < 10000; faults++)
        at += prefetch_fault(&p, at, MAX).count + 1;
    assert_true(faults < 10000 / MAX + 20);
}

static void used_is_counted(void **state)
{
    struct prefetcher p = {0};
    uint64_t fetched = 0, used = 0, at = 5;
    for (int i = 0; i < 100; i++) {
        struct prefetch_plan plan = prefetch_fault(&p, at, MAX);
        used += plan.used;
        assert_int_equal(used, fetched);
        fetched += plan.count;
        at += plan.count + 1;
    }
    assert_true(fetched > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(forward),
                                       cmocka_unit_test(backward),
                                       cmocka_unit_test(strided),
                                       cmocka_unit_test(interleaved),
                                       cmocka_unit_test(random_fetches_little),
                                       cmocka_unit_test(pairs_fetch_little),
                                       cmocka_unit_test(used_is_counted)};
    srandom(3);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
