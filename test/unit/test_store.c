/* The page store as its users see it, and a randomised run against a model. */
#include "../../dms/store.h"
#include "store_pages.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define WAIT_SECONDS 20

static char dir[64];

/* ---- putting and looking ---- */

static void put_ok(uint32_t seed, store_handle *h)
{
    unsigned char page[PAGE];
    fill(page, seed);
    assert_int_equal(store_put(page, seed, false, h), 0);
    assert_int_not_equal(*h, 0);
}

/* The page of that seed, by store_view where that works, else by store_read. */
static int look(store_handle h, uint32_t seed)
{
    unsigned char want[PAGE], buf[PAGE];
    struct store_view v;
    fill(want, seed);
    int rc = store_view(h, seed, buf, &v);
    if (rc == 0) {
        rc = memcmp(v.data, want, PAGE) ? -1 : 0;
        store_unview(&v);
    } else if (rc == -EAGAIN) {
        rc = store_read(h, seed, buf);
        if (rc == 0)
            rc = memcmp(buf, want, PAGE) ? -1 : 0;
    }
    return rc;
}

/* ---- what on_room said ---- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    unsigned room, full;
} told = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};

static void on_room(void *arg, bool full)
{
    pthread_mutex_lock(&told.lock);
    assert_ptr_equal(arg, &told);
    told.room += !full;
    told.full += full;
    pthread_cond_broadcast(&told.cond);
    pthread_mutex_unlock(&told.lock);
}

/* Waits until *counter passes seen; false when that takes too long. */
static bool wait_told(const unsigned *counter, unsigned seen)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_SECONDS;
    int rc = 0;
    pthread_mutex_lock(&told.lock);
    while (*counter <= seen && !rc)
        rc = pthread_cond_timedwait(&told.cond, &told.lock, &until);
    pthread_mutex_unlock(&told.lock);
    return rc == 0;
}

static unsigned told_now(const unsigned *counter)
{
    pthread_mutex_lock(&told.lock);
    unsigned n = *counter;
    pthread_mutex_unlock(&told.lock);
    return n;
}

/* ---- fixture ---- */

static int make_dir(void **state)
{
    told.room = told.full = 0;
    strcpy(dir, "/var/tmp/edm-test-store-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    store_fini();
    unsetenv("EDM_TEST_DISK_ERROR");
    unsetenv("EDM_TEST_FLIP");
    return rmdir(dir);
}

static void start(uint32_t memory_pages, uint32_t disk_pages, enum edm_compression c)
{
    char err[256] = "";
    struct store_options opt = {.memory_bytes = (uint64_t)memory_pages * PAGE,
                                .disk_bytes = (uint64_t)disk_pages * PAGE,
                                .compression = c,
                                .on_room = on_room,
                                .arg = &told};
    strcpy(opt.disk_path, dir);
    if (store_init(&opt, err, sizeof err))
        fail_msg("store_init: %s", err);
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

static bool is_empty(const struct store_stats *st)
{
    return st->memory.pages + st->disk.pages + st->memory.used_bytes + st->disk.used_bytes == 0;
}

static bool memory_drained(const struct store_stats *st)
{
    return st->memory.pages == 0 && st->memory.used_bytes == 0;
}

/* ---- behaviours ---- */

static void pages_come_back_in_every_mode(void **state)
{
    const enum edm_compression modes[] = {EDM_COMPRESSION_AUTO, EDM_COMPRESSION_LZ4,
                                          EDM_COMPRESSION_NONE};
    for (int m = 0; m < 3; m++) {
        store_handle h[300];
        struct store_stats st;
        start(1000, 0, modes[m]);
        for (uint32_t i = 0; i < 300; i++)
            put_ok(i, &h[i]);
        for (uint32_t i = 0; i < 300; i++) {
            assert_true(store_is_memory(h[i]));
            assert_int_equal(look(h[i], i), 0);
        }
        store_get_stats(&st);
        assert_int_equal(st.memory.pages, 300);
        assert_int_equal(st.memory.capacity_bytes, 1000 * PAGE);
        assert_int_equal(st.lz4_pages, modes[m] == EDM_COMPRESSION_LZ4 ? 200 : 0);
        store_unref_many(h, 300);
        store_get_stats(&st);
        assert_true(is_empty(&st));
        store_fini();
    }
}

static void wrong_version_is_bad(void **state)
{
    unsigned char buf[PAGE];
    struct store_view v;
    store_handle h;
    start(100, 0, EDM_COMPRESSION_NONE);
    put_ok(5, &h);
    assert_int_equal(store_view(h, 6, buf, &v), -EBADMSG);
    assert_int_equal(store_read(h, 4, buf), -EBADMSG);
    assert_int_equal(look(h, 5), 0);
    store_unref(h);
}

static void damage_is_noticed(enum edm_compression c, const char *where, uint32_t memory)
{
    unsigned char buf[PAGE];
    store_handle h[3];
    setenv("EDM_TEST_FLIP", where, 1);
    start(memory, 100, c);
    for (uint32_t i = 0; i < 3; i++)
        put_ok(i, &h[i]);
    if (memory == 0)
        assert_true(wait_stats(memory_drained));
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(look(h[i], i), -EBADMSG);
        assert_int_equal(store_read(h[i], i, buf), -EBADMSG);
        store_unref(h[i]);
    }
    store_fini();
}

static void damaged_page_is_bad(void **state)
{
    damage_is_noticed(EDM_COMPRESSION_NONE, "memory", 100);
    damage_is_noticed(EDM_COMPRESSION_LZ4, "memory", 100);
    damage_is_noticed(EDM_COMPRESSION_NONE, "disk", 0);
}

static void without_memory_pages_go_to_disk(void **state)
{
    unsigned char buf[PAGE];
    struct store_view v;
    struct store_stats st;
    store_handle h[200];
    start(0, 1000, EDM_COMPRESSION_AUTO);
    for (uint32_t i = 0; i < 200; i++)
        put_ok(i, &h[i]);
    assert_true(wait_stats(memory_drained));
    store_get_stats(&st);
    assert_int_equal(st.disk.pages, 200);
    assert_int_equal(st.disk.used_bytes, 200 * PAGE);
    assert_int_equal(st.written_pages, 200);
    for (uint32_t i = 0; i < 200; i++) {
        assert_false(store_is_memory(h[i]));
        assert_int_equal(store_view(h[i], i, buf, &v), -EAGAIN);
        assert_int_equal(look(h[i], i), 0);
    }
    assert_int_equal(store_read(h[0], 1, buf), -EBADMSG);
    store_get_stats(&st);
    assert_int_equal(st.read_pages, 200);
    store_unref_many(h, 200);
    store_get_stats(&st);
    assert_true(is_empty(&st));
}

static void owners_are_counted(void **state)
{
    store_handle h[4] = {0}, again;
    struct store_stats st;
    start(100, 0, EDM_COMPRESSION_NONE);
    put_ok(1, &h[0]);
    put_ok(2, &h[3]);
    store_ref(h[0]);
    store_ref_many(h, 4);
    store_unref_many(h, 4);
    store_unref(h[0]);
    store_get_stats(&st);
    assert_int_equal(st.memory.pages, 2);
    assert_int_equal(look(h[0], 1), 0);
    store_unref(h[0]);
    store_get_stats(&st);
    assert_int_equal(st.memory.pages, 1);
    put_ok(3, &again);
    assert_int_equal(again, h[0]); /* the slot freed last */
    store_unref(again);
    store_unref(h[3]);
}

static void same_compares_with_raw_pages(void **state)
{
    unsigned char page[PAGE];
    store_handle h;
    start(100, 0, EDM_COMPRESSION_NONE);
    put_ok(7, &h);
    fill(page, 7);
    assert_true(store_same(h, 7, page));
    assert_false(store_same(h, 8, page));
    page[4095] ^= 1;
    assert_false(store_same(h, 7, page));
    store_unref(h);
}

static uint32_t put_until_full(store_handle *h, uint32_t max)
{
    unsigned char page[PAGE];
    uint32_t n = 0;
    int rc = 0;
    for (; n < max; n++) {
        fill(page, n);
        rc = store_put(page, n, false, &h[n]);
        if (rc)
            break;
    }
    assert_int_equal(rc, -ENOSPC);
    return n;
}

static void full_memory_refuses_and_tells(void **state)
{
    store_handle h[200], more[50];
    unsigned char page[PAGE];
    start(128, 0, EDM_COMPRESSION_NONE);
    assert_int_equal(put_until_full(h, 200), 128);
    assert_true(wait_told(&told.full, 0));
    assert_int_equal(store_fullness(), 1000);
    for (uint32_t i = 0; i < 50; i++) { /* capacity is passed by force only */
        fill(page, 1000 + i);
        assert_int_equal(store_put(page, 1000 + i, false, &more[i]), -ENOSPC);
        assert_int_equal(store_put(page, 1000 + i, true, &more[i]), 0);
    }
    assert_int_equal(told_now(&told.room), 0);
    store_unref_many(more, 50);
    assert_int_equal(told_now(&told.room), 0);
    store_unref_many(h, 64);
    assert_true(wait_told(&told.room, 0));
    put_ok(0, &h[0]);
    assert_int_equal(look(h[100], 100), 0);
    assert_int_equal(told_now(&told.full), 1); /* once */
    store_unref(h[0]);
    store_unref_many(h + 64, 64);
}

/* Keeps putting, waiting for room when refused, until the store says that it is full. */
static uint32_t put_all(store_handle *h, uint32_t n)
{
    unsigned char page[PAGE];
    for (uint32_t i = 0; i < n;) {
        unsigned room = told_now(&told.room), full = told_now(&told.full);
        fill(page, i);
        int rc = store_put(page, i, false, &h[i]);
        if (rc == 0) {
            i++;
            continue;
        }
        assert_int_equal(rc, -ENOSPC);
        if (told_now(&told.full) > 0 && full)
            return i;
        pthread_mutex_lock(&told.lock);
        while (told.room == room && told.full == full)
            pthread_cond_wait(&told.cond, &told.lock);
        pthread_mutex_unlock(&told.lock);
    }
    return n;
}

static void auto_compresses_when_memory_fills(void **state)
{
    static store_handle h[4000];
    struct store_stats st;
    start(1024, 0, EDM_COMPRESSION_AUTO);
    uint32_t n = put_all(h, 4000);
    store_get_stats(&st);
    assert_in_range(n, 1500, 3999); /* a third shrinks to 1/32, one to 1/4, one not at all */
    assert_int_equal(told_now(&told.full), 1);
    assert_int_equal(st.raw_pages + st.lz4_pages, n);
    assert_true(st.lz4_pages > n / 2);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(look(h[i], i), 0);
    store_unref_many(h, n);
    assert_true(wait_stats(is_empty));
}

static void raw_while_there_is_room(void **state)
{
    store_handle h[600];
    struct store_stats st;
    start(1024, 0, EDM_COMPRESSION_AUTO);
    for (uint32_t i = 0; i < 600; i++)
        put_ok(i, &h[i]);
    store_get_stats(&st);
    assert_int_equal(st.raw_pages, 600);
    assert_in_range(store_fullness(), 580, 590);
    store_unref_many(h, 600);
}

static void coldest_pages_go_to_disk_until_all_is_full(void **state)
{
    static store_handle h[4000];
    struct store_stats st;
    start(256, 512, EDM_COMPRESSION_NONE);
    uint32_t n = put_all(h, 4000);
    assert_int_equal(n, 768);
    store_get_stats(&st);
    assert_int_equal(st.memory.pages, 256);
    assert_int_equal(st.disk.pages, 512);
    assert_int_equal(told_now(&told.full), 1);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(store_is_memory(h[i]), i >= 512); /* first in, first out */
        assert_int_equal(look(h[i], i), 0);
    }
    unsigned room = told_now(&told.room);
    store_unref_many(h, 512); /* the disk's: XPET makes room in memory by itself */
    assert_true(wait_told(&told.room, room));
    store_unref_many(h + 512, 256);
    assert_true(wait_stats(is_empty));
}

static void failing_disk_leaves_pages_in_memory(void **state)
{
    const char *const faults[] = {"EIO", "SHORT", "ENOSPC"};
    for (int f = 0; f < 3; f++) {
        static store_handle h[1000];
        struct store_stats st;
        setenv("EDM_TEST_DISK_ERROR", faults[f], 1);
        told.room = told.full = 0;
        start(256, 512, EDM_COMPRESSION_NONE);
        uint32_t n = put_all(h, 1000);
        assert_int_equal(n, 256);
        store_get_stats(&st);
        assert_int_equal(st.disk.pages, 0);
        assert_int_equal(st.memory.pages, 256);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(look(h[i], i), 0);
        store_unref_many(h, n);
        store_fini();
    }
}

static void unreadable_disk_is_eio(void **state)
{
    unsigned char buf[PAGE];
    store_handle h;
    setenv("EDM_TEST_DISK_ERROR", "READ", 1);
    start(0, 512, EDM_COMPRESSION_NONE);
    put_ok(3, &h);
    assert_true(wait_stats(memory_drained));
    assert_int_equal(store_read(h, 3, buf), -EIO);
    store_unref(h);
}

static void pinned_page_stays_until_unview(void **state)
{
    static store_handle h[1000];
    unsigned char want[PAGE], buf[PAGE];
    struct store_view v;
    struct store_stats st;
    start(128, 512, EDM_COMPRESSION_AUTO);
    put_ok(0, &h[0]);
    assert_int_equal(store_view(h[0], 0, buf, &v), 0);
    assert_int_equal(v.pinned, h[0]);
    store_unref(h[0]); /* nobody's any more, but read */
    uint32_t n = put_all(h, 600);
    fill(want, 0);
    assert_memory_equal(v.data, want, PAGE);
    store_unview(&v);
    store_unref_many(h, n);
    assert_true(wait_stats(is_empty));
    store_get_stats(&st);
    assert_true(st.written_pages > 0);
}

static void readers_are_not_disturbed_by_compression(void **state)
{
    enum { PINNED = 64 };
    static store_handle h[4000];
    static struct store_view v[PINNED];
    unsigned char want[PAGE], buf[PAGE];
    uint32_t i, n;
    start(1024, 0, EDM_COMPRESSION_AUTO);
    for (i = 0; i < PINNED; i++) {
        put_ok(i, &h[i]);
        assert_int_equal(store_view(h[i], i, buf, &v[i]), 0);
    }
    n = put_until_full(h + PINNED, 4000 - PINNED);
    assert_true(wait_told(&told.room, 0) || told_now(&told.full));
    for (i = 0; i < PINNED; i++) {
        fill(want, i);
        assert_memory_equal(v[i].data, want, PAGE);
        store_unview(&v[i]);
        assert_int_equal(look(h[i], i), 0);
    }
    store_unref_many(h, PINNED + n);
}

static bool below_lower_mark(const struct store_stats *st)
{
    return st->memory.used_bytes <= 54 * PAGE; /* 85 % of 64 */
}

static void writing_goes_on_when_readers_end(void **state)
{
    enum { MARK = 57, TRIES = 200 }; /* 90 % of 64 */
    store_handle h[TRIES];
    struct store_view v[MARK + 1];
    unsigned char buf[PAGE];
    uint32_t n = 0, pinned = 0;
    start(64, 256, EDM_COMPRESSION_NONE);
    while (pinned <= MARK && n < TRIES) { /* the last one is a race with XPET, won some day */
        put_ok(n, &h[n]);
        if (store_view(h[n], n, buf, &v[pinned]) == 0)
            pinned++;
        n++;
    }
    assert_int_equal(pinned, MARK + 1);
    for (uint32_t i = 0; i < 1000; i++) /* time for XPET to find nothing that it may write */
        sched_yield();
    for (uint32_t i = 0; i < pinned; i++) {
        assert_true(store_is_memory(v[i].pinned));
        store_unview(&v[i]);
    }
    assert_true(wait_stats(below_lower_mark));
    store_unref_many(h, n);
}

/* ---- many reads ---- */

enum { MANY = 500 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    unsigned got, groups, wrong, errors[MANY];
    unsigned by_reader; /* groups that the thread which reads was told of itself */
    pthread_t reader;
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};

static void many_done(void *arg, const struct store_read *r, uint32_t n)
{
    unsigned char want[PAGE];
    pthread_mutex_lock(&seen.lock);
    for (uint32_t i = 0; i < n; i++) {
        fill(want, r[i].version);
        seen.wrong += !r[i].err && memcmp(want, r[i].data, PAGE) != 0;
        seen.errors[r[i].tag] = (unsigned)-r[i].err;
        seen.got++;
    }
    seen.groups++;
    seen.by_reader += pthread_equal(seen.reader, pthread_self()) != 0;
    pthread_cond_signal(&seen.cond);
    pthread_mutex_unlock(&seen.lock);
}

/* Asks for all pages, out of order, and waits until they are here. */
static void read_many(const store_handle *h, uint32_t bad)
{
    static struct store_read r[MANY];
    seen.got = seen.groups = seen.wrong = 0;
    for (uint32_t i = 0; i < MANY; i++) {
        uint32_t k = i * 3 % MANY;
        r[i] = (struct store_read){h[k], k == bad ? k + 1 : k, k, 0, NULL};
    }
    store_read_many(r, MANY, many_done, NULL);
    for (uint32_t i = 0; i < MANY; i++)
        assert_int_equal(r[i].err, 0);
    pthread_mutex_lock(&seen.lock);
    while (seen.got < MANY)
        pthread_cond_wait(&seen.cond, &seen.lock);
    pthread_mutex_unlock(&seen.lock);
    assert_int_equal(seen.wrong, 0);
}

static void many_are_read_at_once(void **state)
{
    static store_handle h[MANY];
    struct store_stats st;
    start(0, 2000, EDM_COMPRESSION_NONE);
    for (uint32_t i = 0; i < MANY; i++)
        put_ok(i, &h[i]);
    assert_true(wait_stats(memory_drained));
    read_many(h, 77);
    for (uint32_t i = 0; i < MANY; i++)
        assert_int_equal(seen.errors[i], i == 77 ? EBADMSG : 0);
    assert_true(seen.groups < MANY / 8); /* neighbours came together */
    store_get_stats(&st);
    assert_int_equal(st.read_pages, MANY);
    for (uint32_t i = 0; i < MANY; i += 2) /* the others are no neighbours */
        store_unref(h[i]);
    for (uint32_t i = 0; i < MANY; i += 2)
        put_ok(i, &h[i]); /* some in memory still, perhaps */
    read_many(h, MANY);
    store_unref_many(h, MANY);
}

static void expect_page(uint32_t k)
{
    pthread_mutex_lock(&seen.lock);
    seen.errors[k] = MANY; /* no error's number */
    pthread_mutex_unlock(&seen.lock);
}

static void await_page(uint32_t k)
{
    pthread_mutex_lock(&seen.lock);
    while (seen.errors[k] == MANY)
        pthread_cond_wait(&seen.cond, &seen.lock);
    assert_int_equal(seen.errors[k], 0);
    assert_int_equal(seen.wrong, 0);
    pthread_mutex_unlock(&seen.lock);
}

/* Page k and, when there are two, k + 7, which is no neighbour. */
static void read_few(const store_handle *h, uint32_t k, uint32_t n)
{
    struct store_read r[2] = {{h[k], k, k, 0, NULL}, {h[k + 7], k + 7, k + 7, 0, NULL}};
    expect_page(k);
    if (n > 1)
        expect_page(k + 7);
    store_read_keep();
    store_read_many(r, n, many_done, NULL);
    store_read_await(-1);
    await_page(k);
    if (n > 1)
        await_page(k + 7);
}

static void *keep_and_leave(void *arg)
{
    const store_handle *h = arg;
    store_read_keep();
    struct store_read r = {h[0], 0, 0, 0, NULL};
    store_read_many(&r, 1, many_done, NULL);
    return NULL;
}

/* Whoever looks in the end, every page comes. */
static void few_are_kept_by_who_asks(void **state)
{
    static store_handle h[MANY];
    pthread_t other;
    start(0, 2000, EDM_COMPRESSION_NONE);
    for (uint32_t i = 0; i < MANY; i++)
        put_ok(i, &h[i]);
    assert_true(wait_stats(memory_drained));
    seen.reader = pthread_self();
    seen.by_reader = seen.wrong = 0;
    for (uint32_t i = 0; i < 400; i++)
        read_few(h, i * 31 % (MANY - 7), 1 + i % 2);
    print_message("%u of 400 by who asked\n", seen.by_reader); /* a slow disk, or a crowd: 0 */
    read_many(h, MANY);                                        /* more than a thread keeps */
    expect_page(0);
    assert_int_equal(pthread_create(&other, NULL, keep_and_leave, h), 0);
    assert_int_equal(pthread_join(other, NULL), 0);
    read_few(h, 100, 2); /* who awaits leaves to the reapers what others kept */
    await_page(0);
    store_unref_many(h, MANY);
    memset(&seen.reader, 0, sizeof(seen.reader));
}

static void many_from_memory_and_failing_disk(void **state)
{
    static store_handle h[MANY];
    start(1000, 0, EDM_COMPRESSION_LZ4);
    for (uint32_t i = 0; i < MANY; i++)
        put_ok(i, &h[i]);
    read_many(h, 3);
    assert_int_equal(seen.errors[3], EBADMSG);
    assert_int_equal(seen.errors[4], 0);
    store_fini();
    setenv("EDM_TEST_DISK_ERROR", "READ", 1);
    start(0, 2000, EDM_COMPRESSION_NONE);
    for (uint32_t i = 0; i < MANY; i++)
        put_ok(i, &h[i]);
    assert_true(wait_stats(memory_drained));
    read_many(h, MANY);
    for (uint32_t i = 0; i < MANY; i++)
        assert_int_equal(seen.errors[i], EIO);
}

static void same_by_sum_on_disk(void **state)
{
    unsigned char page[PAGE];
    store_handle h;
    start(0, 100, EDM_COMPRESSION_NONE);
    put_ok(8, &h);
    assert_true(wait_stats(memory_drained));
    fill(page, 8);
    assert_true(store_same(h, 8, page));
    assert_false(store_same(h, 9, page));
    page[4095] ^= 1;
    assert_false(store_same(h, 8, page));
    store_unref(h);
}

static unsigned descriptors(void)
{
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static void fini_leaves_nothing(void **state)
{
    store_handle h[300];
    unsigned before = descriptors();
    start(128, 512, EDM_COMPRESSION_AUTO);
    put_all(h, 300); /* never freed */
    store_fini();
    assert_int_equal(descriptors(), before);
}

static void limited_file_size_is_a_small_store(void **state)
{
    static store_handle h[6000];
    struct rlimit old, r;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    r = old;
    r.rlim_cur = 10 << 20;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &r), 0);
    start(8192, 8192, EDM_COMPRESSION_NONE);
    uint32_t n = put_all(h, 6000);
    assert_in_range(n, 2 * 9 * 256, 2 * 10 * 256);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(look(h[i], i), 0);
    store_unref_many(h, n);
    store_fini();
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
}

static void bad_disk_path_is_said(void **state)
{
    char err[256] = "";
    struct store_options opt = {.memory_bytes = 1 << 20, .disk_bytes = 1 << 20};
    strcpy(opt.disk_path, "/proc/self/no/such");
    unsigned before = descriptors();
    assert_int_equal(store_init(&opt, err, sizeof err), -ENOENT);
    assert_non_null(strstr(err, "/proc/self/no/such"));
    assert_int_equal(descriptors(), before);
}

/* ---- the model ---- */

#define THREADS 4
#define ENTRIES 200
#define SHARED 32

struct entry {
    store_handle h;
    uint32_t seed;
};

/* Pages that any thread may take a share of, as forked children do. */
static struct {
    pthread_mutex_t lock;
    struct entry e[SHARED];
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct worker {
    pthread_t thread;
    uint32_t rnd, steps, base;
    unsigned refused, wrong; /* wrong must stay 0 */
    struct entry e[ENTRIES];
};

static void entry_drop(struct entry *e)
{
    if (e->h)
        store_unref(e->h);
    e->h = 0;
}

static void step_put(struct worker *w, struct entry *e)
{
    unsigned char page[PAGE];
    entry_drop(e);
    e->seed = w->base + w->steps; /* never the same version for different contents */
    fill(page, e->seed);
    int rc = store_put(page, e->seed, next_random(&w->rnd) % 64 == 0, &e->h);
    if (rc == 0)
        return;
    e->h = 0;
    w->wrong += rc != -ENOSPC;
    w->refused++;
    for (int i = 0; i < 4; i++)
        entry_drop(&w->e[next_random(&w->rnd) % ENTRIES]);
}

static void step_share(struct worker *w, struct entry *e)
{
    struct entry old, *slot = &pool.e[next_random(&w->rnd) % SHARED];
    pthread_mutex_lock(&pool.lock);
    old = *slot;
    if (e->h)
        store_ref(e->h);
    *slot = *e;
    pthread_mutex_unlock(&pool.lock);
    entry_drop(e);
    *e = old; /* its owner now */
}

static void step_look_shared(struct worker *w)
{
    pthread_mutex_lock(&pool.lock);
    struct entry e = pool.e[next_random(&w->rnd) % SHARED];
    if (e.h)
        store_ref_many(&e.h, 1);
    pthread_mutex_unlock(&pool.lock);
    if (e.h)
        w->wrong += look(e.h, e.seed) != 0;
    entry_drop(&e);
}

static void step_misc(struct worker *w, struct entry *e)
{
    unsigned char page[PAGE], buf[PAGE];
    struct store_view v;
    fill(page, e->seed);
    w->wrong += store_read(e->h, e->seed + 1, buf) != -EBADMSG;
    bool same = store_same(e->h, e->seed, page);
    page[17] ^= 0x80;
    w->wrong += store_same(e->h, e->seed, page);
    page[17] ^= 0x80;
    if (store_view(e->h, e->seed, buf, &v) == 0) {
        bool raw = v.pinned != 0;
        w->wrong += raw && memcmp(v.data, page, PAGE) != 0;
        w->wrong += raw && !same; /* never back to raw */
        store_unref(e->h);
        e->h = 0; /* freed while viewed */
        w->wrong += memcmp(v.data, page, PAGE) != 0;
        store_unview(&v);
    }
}

static void *work(void *arg)
{
    struct worker *w = arg;
    for (uint32_t n = w->steps; w->steps = n, n > 0; n--) {
        struct entry *e = &w->e[next_random(&w->rnd) % ENTRIES];
        uint32_t what = next_random(&w->rnd) % 100;
        if (what < 40)
            step_put(w, e);
        else if (what < 50)
            entry_drop(e);
        else if (what < 60)
            step_share(w, e);
        else if (what < 70)
            step_look_shared(w);
        else if (what < 75 && e->h)
            step_misc(w, e);
        else if (e->h)
            w->wrong += look(e->h, e->seed) != 0;
    }
    for (uint32_t i = 0; i < ENTRIES; i++)
        entry_drop(&w->e[i]);
    return NULL;
}

static void model_run(uint32_t memory, uint32_t disk, enum edm_compression c, uint32_t steps)
{
    static struct worker w[THREADS];
    unsigned wrong = 0;
    start(memory, disk, c);
    memset(w, 0, sizeof w);
    for (uint32_t i = 0; i < THREADS; i++) {
        w[i].rnd = 12345 + i + memory + disk;
        w[i].steps = steps;
        w[i].base = (i + 1) << 24;
        assert_int_equal(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        pthread_join(w[i].thread, NULL);
        wrong += w[i].wrong;
    }
    assert_int_equal(wrong, 0);
    for (uint32_t i = 0; i < SHARED; i++)
        entry_drop(&pool.e[i]);
    assert_true(wait_stats(is_empty));
    store_fini();
}

static void model_holds(void **state)
{
    const char *env = getenv("EDM_TEST_STEPS");
    uint32_t steps = env ? (uint32_t)strtoul(env, NULL, 10) : 4000;
    const enum edm_compression modes[] = {EDM_COMPRESSION_AUTO, EDM_COMPRESSION_LZ4,
                                          EDM_COMPRESSION_NONE};
    static const uint32_t sizes[][2] = {{4, 0},    {64, 0},     {400, 0}, {16, 64},
                                        {64, 256}, {200, 1000}, {0, 300}, {0, 2000}};
    for (int m = 0; m < 3; m++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            model_run(sizes[i][0], sizes[i][1], modes[m], steps);
}

static void model_holds_on_a_failing_disk(void **state)
{
    setenv("EDM_TEST_DISK_ERROR", "EIO", 1);
    model_run(64, 256, EDM_COMPRESSION_AUTO, 2000);
    setenv("EDM_TEST_DISK_ERROR", "SHORT", 1);
    model_run(0, 256, EDM_COMPRESSION_NONE, 2000);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        T(pages_come_back_in_every_mode),
        T(wrong_version_is_bad),
        T(damaged_page_is_bad),
        T(without_memory_pages_go_to_disk),
        T(owners_are_counted),
        T(same_compares_with_raw_pages),
        T(full_memory_refuses_and_tells),
        T(auto_compresses_when_memory_fills),
        T(raw_while_there_is_room),
        T(coldest_pages_go_to_disk_until_all_is_full),
        T(failing_disk_leaves_pages_in_memory),
        T(unreadable_disk_is_eio),
        T(pinned_page_stays_until_unview),
        T(readers_are_not_disturbed_by_compression),
        T(writing_goes_on_when_readers_end),
        T(many_are_read_at_once),
        T(few_are_kept_by_who_asks),
        T(many_from_memory_and_failing_disk),
        T(same_by_sum_on_disk),
        T(fini_leaves_nothing),
        T(limited_file_size_is_a_small_store),
        T(bad_disk_path_is_said),
        T(model_holds),
        T(model_holds_on_a_failing_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
