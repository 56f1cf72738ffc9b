/* XPET: what it chooses to do (a pure function), and what its thread achieves. */
#include "../../dms/store_int.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE STORE_PAGE
#define WAIT_SECONDS 20

static char dir[64];

/* ---- the choice ---- */

static const struct xpet_load quiet = {
    .limit = 10000, .used = 5000, .spare = 5000, .raw = 5000, .disk_room = 1000, .compress = true};

static void rests_while_there_is_room(void **state)
{
    struct xpet_policy p = {0};
    struct xpet_load l = quiet;
    assert_int_equal(xpet_decide(&p, &l), XPET_IDLE);
    l.used = 7000;
    assert_int_equal(xpet_decide(&p, &l), XPET_IDLE);
}

static void grows_ahead_of_need(void **state)
{
    struct xpet_policy p = {0};
    struct xpet_load l = quiet;
    uint32_t ahead = xpet_ahead(&l);
    l.growable = 100000;
    l.spare = ahead / 2;
    assert_int_equal(xpet_decide(&p, &l), XPET_IDLE);
    l.spare = ahead / 2 - 1;
    assert_int_equal(xpet_decide(&p, &l), XPET_GROW);
    l.spare = ahead - 1; /* goes on to the full measure */
    assert_int_equal(xpet_decide(&p, &l), XPET_GROW);
    l.spare = ahead;
    assert_int_equal(xpet_decide(&p, &l), XPET_IDLE);
    l.spare = 0;
    l.growable = 0;
    assert_int_equal(xpet_decide(&p, &l), XPET_IDLE);
}

static void compresses_between_its_marks(void **state)
{
    struct xpet_policy p = {0};
    struct xpet_load l = quiet;
    l.used = 7001;
    assert_int_equal(xpet_decide(&p, &l), XPET_COMPRESS);
    l.used = 6501;
    assert_int_equal(xpet_decide(&p, &l), XPET_COMPRESS);
    l.used = 6500;
    assert_int_equal(xpet_decide(&p, &l), XPET_IDLE);
    l.used = 8000;
    l.compress = false;
    assert_int_equal(xpet_decide(&p, &l), XPET_IDLE);
}

static void is_not_woken_for_a_few_pages(void **state)
{
    struct xpet_policy p = {0};
    struct xpet_load l = quiet;
    l.used = 8000;
    l.raw = 100;
    l.cold = 9000;
    assert_int_equal(xpet_decide(&p, &l), XPET_IDLE);
    l.used = l.limit; /* unless nothing else is left */
    l.disk_room = 0;
    l.raw = 1;
    assert_int_equal(xpet_decide(&p, &l), XPET_COMPRESS);
    l.raw = 0;
    assert_int_equal(xpet_decide(&p, &l), XPET_IDLE);
}

static void writes_and_compresses_in_turn(void **state)
{
    struct xpet_policy p = {0};
    struct xpet_load l = quiet;
    l.used = 9500;
    assert_int_equal(xpet_decide(&p, &l), XPET_WRITE);
    assert_int_equal(xpet_decide(&p, &l), XPET_COMPRESS);
    assert_int_equal(xpet_decide(&p, &l), XPET_WRITE);
    l.raw = 0;
    l.cold = 9000;
    for (int i = 0; i < 3; i++)
        assert_int_equal(xpet_decide(&p, &l), XPET_WRITE);
    l.used = 8501;
    assert_int_equal(xpet_decide(&p, &l), XPET_WRITE);
    l.used = 8500;
    assert_int_equal(xpet_decide(&p, &l), XPET_IDLE);
    l.used = 9500;
    l.disk_room = 0;
    assert_int_equal(xpet_decide(&p, &l), XPET_IDLE);
}

static void transit_is_drained_at_once(void **state)
{
    struct xpet_policy p = {0};
    struct xpet_load l = quiet;
    l.transit = true;
    l.used = l.raw = 1;
    assert_int_equal(xpet_decide(&p, &l), XPET_WRITE);
    l.used = l.raw = 0;
    assert_int_equal(xpet_decide(&p, &l), XPET_IDLE);
}

/* Whatever the load, the choice is one that can be carried out and brings its end nearer. */
static void never_chooses_what_cannot_be_done(void **state)
{
    struct xpet_policy p = {0};
    uint32_t x = 1;
    for (int i = 0; i < 1000000; i++) {
        uint32_t r[8];
        for (int k = 0; k < 8; k++)
            r[k] = (x = x * 1664525u + 1013904223u) >> 8;
        struct xpet_load l = {.limit = r[0] % 5000,
                              .used = r[1] % 6000,
                              .spare = r[2] % 9000,
                              .growable = r[3] % 4 ? 0 : r[3],
                              .raw = r[4] % 3 ? 0 : r[4] % 500,
                              .cold = r[5] % 3 ? 0 : r[5] % 500,
                              .disk_room = r[6] % 3 ? 0 : r[6] % 500,
                              .compress = r[7] & 1,
                              .transit = r[7] % 8 == 6};
        enum xpet_work w = xpet_decide(&p, &l);
        assert_true(w != XPET_GROW || l.growable);
        assert_true(w != XPET_COMPRESS || (l.compress && l.raw && !l.transit));
        assert_true(w != XPET_WRITE || (l.disk_room && l.raw + l.cold));
        bool full = l.used >= l.limit && l.used;
        bool could = (l.disk_room && l.raw + l.cold) || (l.compress && !l.transit && l.raw);
        assert_true(!full || !could || w != XPET_IDLE);
    }
}

/* ---- the thread ---- */

static int make_dir(void **state)
{
    strcpy(dir, "/var/tmp/edm-test-xpet-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    store_fini();
    return rmdir(dir);
}

static void start(uint32_t memory_pages, uint32_t disk_pages, enum edm_compression c)
{
    char err[256] = "";
    struct store_options opt = {.memory_bytes = (uint64_t)memory_pages * PAGE,
                                .disk_bytes = (uint64_t)disk_pages * PAGE,
                                .compression = c};
    strcpy(opt.disk_path, dir);
    if (store_init(&opt, err, sizeof err))
        fail_msg("store_init: %s", err);
}

static void put(uint32_t seed, bool noise, store_handle *h)
{
    unsigned char page[PAGE];
    uint32_t x = seed * 2654435761u + 1;
    for (uint32_t i = 0; i < PAGE; i++) {
        x = x * 1664525u + 1013904223u;
        page[i] = noise || i < 8 ? (unsigned char)(x >> 24) : (unsigned char)seed;
    }
    assert_int_equal(store_put(page, seed, true, h), 0);
}

static bool wait_stats(bool (*ready)(const struct store_stats *))
{
    struct timespec t0, t;
    struct store_stats st;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    do {
        store_get_stats(&st);
        if (ready(&st))
            return true;
        sched_yield();
        clock_gettime(CLOCK_MONOTONIC, &t);
    } while (t.tv_sec - t0.tv_sec < WAIT_SECONDS);
    return false;
}

static bool below_write_mark(const struct store_stats *st)
{
    return st->memory.used_bytes <= 460 * PAGE && st->disk.pages > 0; /* 90 % of 512 */
}

static void memory_is_brought_below_its_mark(void **state)
{
    store_handle h[512];
    start(512, 2000, EDM_COMPRESSION_NONE);
    for (uint32_t i = 0; i < 512; i++)
        put(i, true, &h[i]);
    assert_true(wait_stats(below_write_mark));
    assert_false(store_is_memory(h[0])); /* the coldest */
    assert_true(store_is_memory(h[511]));
    store_unref_many(h, 512);
}

static bool compressed_enough(const struct store_stats *st)
{
    return st->lz4_pages > 0 && st->memory.used_bytes < st->memory.capacity_bytes * 7 / 10;
}

static void cold_pages_are_compressed_before_disk_is_used(void **state)
{
    static store_handle h[1450];
    struct store_stats st;
    start(2000, 2000, EDM_COMPRESSION_AUTO);
    for (uint32_t i = 0; i < 1450; i++) /* 72.5 % */
        put(i, false, &h[i]);
    put(9999, true, &h[0]);
    assert_true(wait_stats(compressed_enough));
    store_get_stats(&st);
    assert_int_equal(st.disk.pages, 0);
    assert_true(st.raw_pages > 0); /* the warmest stay raw */
    store_unref_many(h, 1450);
}

static bool all_tried(const struct store_stats *st)
{
    return st->lz4_pages == 400;
}

static void incompressible_pages_stay_raw(void **state)
{
    store_handle h[900];
    start(1000, 0, EDM_COMPRESSION_AUTO);
    for (uint32_t i = 0; i < 500; i++)
        put(i, true, &h[i]);
    for (uint32_t i = 500; i < 900; i++)
        put(i, false, &h[i]);
    /* All 500 must be passed over before enough of the others have shrunk; then it rests. */
    struct store_stats st;
    struct timespec t0, t;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    do {
        store_get_stats(&st);
        sched_yield();
        clock_gettime(CLOCK_MONOTONIC, &t);
    } while (st.memory.used_bytes > 700 * PAGE && t.tv_sec - t0.tv_sec < WAIT_SECONDS);
    assert_true(st.memory.used_bytes <= 700 * PAGE);
    assert_true(st.raw_pages >= 500 && st.lz4_pages > 200 && !all_tried(&st));
    store_unref_many(h, 900);
}

static bool given_back(const struct store_stats *st)
{
    return st->memory.pages == 0;
}

static uint64_t shm_used(void)
{
    FILE *f = fopen("/proc/self/smaps", "r");
    char line[512];
    bool ours = false;
    unsigned long rss = 0, kib, from, to;
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            ours = strstr(line, " rw-s ") &&
                   (strstr(line, "/dev/shm/") || strstr(line, "memfd:edm-store"));
        else if (ours && sscanf(line, "Rss: %lu kB", &kib) == 1)
            rss += kib;
    }
    fclose(f);
    return (uint64_t)rss << 10;
}

static void unused_memory_goes_back_to_the_system(void **state)
{
    enum { N = 40000 };
    static store_handle h[N];
    struct timespec t0, t;
    start(50000, 0, EDM_COMPRESSION_NONE);
    for (uint32_t i = 0; i < N; i++)
        put(i, false, &h[i]);
    assert_true(shm_used() >= (uint64_t)N * PAGE);
    store_unref_many(h, N);
    assert_true(wait_stats(given_back));
    clock_gettime(CLOCK_MONOTONIC, &t0);
    do {
        sched_yield();
        clock_gettime(CLOCK_MONOTONIC, &t);
    } while (shm_used() > MEM_STEP_SIZE * 2 && t.tv_sec - t0.tv_sec < WAIT_SECONDS);
    assert_true(shm_used() <= MEM_STEP_SIZE * 2);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rests_while_there_is_room),
        cmocka_unit_test(grows_ahead_of_need),
        cmocka_unit_test(compresses_between_its_marks),
        cmocka_unit_test(is_not_woken_for_a_few_pages),
        cmocka_unit_test(writes_and_compresses_in_turn),
        cmocka_unit_test(transit_is_drained_at_once),
        cmocka_unit_test(never_chooses_what_cannot_be_done),
        T(memory_is_brought_below_its_mark),
        T(cold_pages_are_compressed_before_disk_is_used),
        T(incompressible_pages_stay_raw),
        T(unused_memory_goes_back_to_the_system),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
