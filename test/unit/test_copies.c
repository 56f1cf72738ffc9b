/* Pages whose copies are on other ranks: what a rank cannot look for now is not lost. */
#include "dms/copies_int.h"
#include "dms/holder.h"
#include "dms/homes.h"
#include "dms/peer.h"
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define RANKS 2
#define PAGES 64u

/* ---- in place of peer.c: rank 1, which is a thread ---- */

static struct {
    uint8_t page[PAGES][RANK_PAGE];
    uint32_t version[PAGES];
    uint32_t n;
    atomic_int busy;    /* so many requests cannot be sent */
    atomic_int no_room; /* so many are answered with -ENOMEM */
    atomic_int damaged; /* so many pages are wrong */
    atomic_bool full, dead;
    struct question {
        struct question *next;
        struct peer_buf *b;
        request_done *done;
        void *arg;
    } * first, **last;
    pthread_mutex_t lock;
    pthread_cond_t more;
} far = {.last = &far.first, .lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};

int peer_ranks(void)
{
    return RANKS;
}

int peer_rank(void)
{
    return 0;
}

bool peer_is_alive(int rank)
{
    return !atomic_load(&far.dead);
}

void peer_get_info(int rank, struct peer_info *out)
{
    *out = (struct peer_info){.alive = peer_is_alive(rank),
                              .host = rank,
                              .host_name = "",
                              .identity = 100 + (uint64_t)rank,
                              .capacity = PAGES};
}

struct peer_buf *peer_buf_get(void)
{
    struct peer_buf *b = aligned_alloc(64, 64 + RANK_MESSAGE_MAX / 64 * 64 + 64);
    *b = (struct peer_buf){.head = (struct rank_head *)(void *)((char *)b + 64)};
    *b->head = (struct rank_head){0};
    return b;
}

void peer_buf_put(struct peer_buf *b)
{
    free(b);
}

void peer_poll_end(void)
{
}

bool peer_poll(void)
{
    return false;
}

void peer_answer(struct peer_buf *b, int code, size_t body)
{
    peer_buf_put(b);
}

static struct rank_stat far_stat(void)
{
    return (struct rank_stat){.capacity = PAGES, .used = atomic_load(&far.full) ? PAGES : far.n};
}

static void far_store(struct rank_head *h)
{
    struct rank_result results[RANK_PAGES];
    const struct rank_slot *slots = (const void *)(h + 1);
    struct rank_stat *stat = (void *)(h + 1);
    const uint8_t *pages = rank_pages(h);
    for (uint32_t i = 0; i < h->count; i++) {
        results[i] = (struct rank_result){-ENOSPC, 0};
        if (atomic_load(&far.full))
            continue;
        memcpy(far.page[far.n], pages + i * RANK_PAGE, RANK_PAGE);
        far.version[far.n] = slots[i].version;
        results[i] = (struct rank_result){0, ++far.n};
    }
    *stat = far_stat();
    memcpy(stat + 1, results, h->count * sizeof(*results));
}

static void far_fetch(struct rank_head *h)
{
    struct rank_slot slots[RANK_PAGES];
    struct rank_result *r = (void *)(h + 1);
    uint8_t *to = rank_pages(h);
    memcpy(slots, h + 1, h->count * sizeof(*slots));
    for (uint32_t i = 0; i < h->count; i++, to += RANK_PAGE) {
        assert_int_equal(far.version[slots[i].slot - 1], slots[i].version);
        r[i] = (struct rank_result){0, slots[i].slot};
        memcpy(to, far.page[slots[i].slot - 1], RANK_PAGE);
        if (atomic_load(&far.damaged) > 0 && atomic_fetch_sub(&far.damaged, 1))
            to[7] ^= 1;
    }
}

/* What rank 1 makes of a message; the code of its answer. */
static int far_serve(struct peer_buf *b)
{
    bool fetch = b->head->kind == RANK_FETCH;
    if (fetch && atomic_load(&far.no_room) > 0 && atomic_fetch_sub(&far.no_room, 1))
        return -ENOMEM;
    if (fetch)
        far_fetch(b->head);
    else if (b->head->kind == RANK_STORE)
        far_store(b->head);
    else if (b->head->kind == RANK_STAT)
        *(struct rank_stat *)(void *)(b->head + 1) = far_stat();
    return 0;
}

static void *far_main(void *arg)
{
    for (;;) {
        pthread_mutex_lock(&far.lock);
        while (!far.first)
            pthread_cond_wait(&far.more, &far.lock);
        struct question *q = far.first;
        far.first = q->next;
        if (!far.first)
            far.last = &far.first;
        pthread_mutex_unlock(&far.lock);
        q->done(q->arg, far_serve(q->b), q->b->head);
        peer_buf_put(q->b);
        free(q);
    }
    return NULL;
}

int peer_request(int rank, struct peer_buf *b, size_t body, request_done *done, void *arg)
{
    assert_int_equal(rank, 1);
    if (b->head->kind == RANK_FETCH && atomic_load(&far.busy) > 0 &&
        atomic_fetch_sub(&far.busy, 1)) {
        peer_buf_put(b);
        return -EBUSY;
    }
    struct question *q = malloc(sizeof(*q));
    *q = (struct question){NULL, b, done, arg};
    pthread_mutex_lock(&far.lock);
    *far.last = q;
    far.last = &q->next;
    pthread_cond_signal(&far.more);
    pthread_mutex_unlock(&far.lock);
    return 0;
}

/* ---- */

static uint64_t kept_pages;

static void on_room(void *arg, bool full)
{
}

static int setup(void **state)
{
    pthread_t thread;
    char err[200];
    struct store_options o = {.memory_bytes = 64 * 4096, .compression = EDM_COMPRESSION_NONE};
    if (pthread_create(&thread, NULL, far_main, NULL))
        return -1;
    return store_init(&o, err, sizeof(err)) || homes_open(-1) || copies_open(-1) ||
           holder_open(-1, &kept_pages) || copies_init(on_room, NULL) || copies_start();
}

static void fill(uint8_t *page, uint32_t version)
{
    for (uint32_t i = 0; i < RANK_PAGE; i++)
        page[i] = (uint8_t)(version * 31 + i * 7);
}

/* A page that is to be on rank 1 alone. */
static store_handle put(uint32_t version)
{
    const struct copies_wish wish = {EDM_PLACEMENT_REMOTE, 1};
    uint8_t page[RANK_PAGE];
    store_handle h;
    fill(page, version);
    assert_int_equal(copies_put(page, version, &wish, false, &h), 0);
    return h;
}

/* … and is. */
static store_handle put_far(uint32_t version)
{
    store_handle h = put(version);
    for (int i = 0; i < 5000 && copies_rank(h) != 1; i++)
        usleep(1000);
    assert_int_equal(copies_rank(h), 1);
    return h;
}

static void expect_right(store_handle h, uint32_t version)
{
    uint8_t want[RANK_PAGE], got[RANK_PAGE];
    fill(want, version);
    assert_int_equal(copies_read(h, version, got), 0);
    assert_memory_equal(want, got, RANK_PAGE);
}

static void test_far(void **state)
{
    expect_right(put_far(1), 1);
}

static void test_busy_is_not_damaged(void **state)
{
    store_handle h = put_far(2);
    atomic_store(&far.busy, 20);
    expect_right(h, 2);
    assert_int_equal(atomic_load(&far.busy), 0);
}

static void test_no_memory_there_is_not_damaged(void **state)
{
    store_handle h = put_far(3);
    atomic_store(&far.no_room, 20);
    expect_right(h, 3);
    assert_int_equal(atomic_load(&far.no_room), 0);
}

static void test_busy_for_long_is_said(void **state)
{
    uint8_t page[RANK_PAGE];
    store_handle h = put_far(4);
    atomic_store(&far.busy, 1 << 30);
    assert_int_equal(copies_read(h, 4, page), -EBUSY);
    atomic_store(&far.busy, 0);
    expect_right(h, 4);
}

struct got {
    int err;
    bool page;
    sem_t over;
};

static void fetched(void *arg, int err, unsigned n, const void *const *page)
{
    struct got *g = arg;
    g->err = err;
    g->page = page[0] != NULL;
    sem_post(&g->over);
}

static void test_fetch_says_why(void **state)
{
    struct got got = {0};
    struct copies_page p = {put_far(5), 5};
    sem_init(&got.over, 0, 0);
    atomic_store(&far.busy, 1);
    assert_int_equal(copies_fetch(1, &p, 1, fetched, &got), -EBUSY);
    atomic_store(&far.no_room, 1);
    assert_int_equal(copies_fetch(1, &p, 1, fetched, &got), 0);
    sem_wait(&got.over);
    assert_int_equal(got.err, -EBUSY);
    assert_false(got.page);
    assert_int_equal(copies_fetch(1, &p, 1, fetched, &got), 0);
    sem_wait(&got.over);
    assert_int_equal(got.err, 0);
    assert_true(got.page);
}

/* The only copy, and it is wrong each time: never those bytes. */
static void test_damaged(void **state)
{
    uint8_t page[RANK_PAGE];
    store_handle h = put_far(6);
    atomic_store(&far.damaged, 10);
    assert_int_equal(copies_read(h, 6, page), -EBADMSG);
    assert_true(atomic_load(&far.damaged) > 5); /* and it is not asked for ever */
    atomic_store(&far.damaged, 0);
}

/* Flips a bit of that page in the memory store's file, where it is first found there. */
static void damage_here(uint32_t version)
{
    struct store_fds fds;
    uint8_t page[RANK_PAGE], there[RANK_PAGE];
    off_t at = -(off_t)RANK_PAGE;
    fill(page, version);
    store_get_fds(&fds);
    do
        assert_int_equal(pread(fds.memory, there, RANK_PAGE, at += RANK_PAGE), RANK_PAGE);
    while (memcmp(page, there, RANK_PAGE) != 0);
    there[100] ^= 4;
    assert_int_equal(pwrite(fds.memory, there, RANK_PAGE, at), RANK_PAGE);
}

/* Two copies, and the one here is damaged: the other is asked for, and a page that is the same is
 * stored anew. */
static void test_damaged_here(void **state)
{
    const struct copies_wish wish = {EDM_PLACEMENT_LOCAL, 2};
    uint8_t page[RANK_PAGE], buf[RANK_PAGE];
    struct store_view v;
    store_handle h;
    uint64_t refused = copies_refused();
    fill(page, 8);
    assert_int_equal(copies_put(page, 8, &wish, false, &h), 0);
    for (int i = 0; i < 5000 && copies_missing(&h, 1); i++)
        usleep(1000);
    assert_int_equal(copies_missing(&h, 1), 0);
    assert_true(copies_same(h, 8, page));
    damage_here(8);
    assert_int_equal(copies_view(h, 8, buf, &v), -EAGAIN);
    assert_int_equal(copies_rank(h), 1);
    assert_int_equal(copies_refused(), refused + 1);
    assert_int_equal(copies_missing(&h, 1), 1);
    assert_false(copies_same(h, 8, page));
    expect_right(h, 8);
}

static uint64_t stuck_pages(void)
{
    pthread_mutex_lock(&copies.lock);
    uint64_t n = copies.stuck.n;
    pthread_mutex_unlock(&copies.lock);
    return n;
}

static uint64_t local_pages(void)
{
    struct store_stats s;
    store_get_stats(&s);
    return s.memory.pages;
}

/* Pages that rank 1 has no room for. */
static void put_stuck(store_handle *h, uint32_t n, uint32_t version)
{
    atomic_store(&far.full, true);
    for (uint32_t i = 0; i < n; i++)
        h[i] = put(version + i);
    for (int i = 0; i < 5000 && stuck_pages() != n; i++)
        usleep(1000);
    assert_int_equal(stuck_pages(), n);
    assert_int_equal(local_pages(), n);
}

/* They need no room here when nobody wants them any more, wherever there is room. */
static void test_stuck_and_not_wanted(void **state)
{
    store_handle h[9];
    put_stuck(h, 9, 10);
    copies_unref(h[4]);
    assert_int_equal(local_pages(), 8);
    copies_unref_many(h, 4);
    assert_int_equal(local_pages(), 4);
    assert_int_equal(copies.transit, 4);
    copies_unref_many(h + 5, 3);
    assert_int_equal(local_pages(), 1);
    assert_true(stuck_pages() <= 2); /* those that are out leave the list, too */
    expect_right(h[8], 18);
    atomic_store(&far.full, false);
    for (int i = 0; i < 5000 && copies_rank(h[8]) != 1; i++)
        usleep(1000);
    expect_right(h[8], 18);
    copies_unref(h[8]);
    assert_int_equal(stuck_pages(), 0);
}

/* There is nobody left to wait for. */
static void test_stuck_and_rank_lost(void **state)
{
    store_handle h[4];
    put_stuck(h, 4, 20);
    atomic_store(&far.dead, true);
    copies_rank_lost(1);
    for (int i = 0; i < 5000 && (stuck_pages() || copies.send.n); i++)
        usleep(1000);
    assert_int_equal(stuck_pages(), 0);
    for (uint32_t i = 0; i < 4; i++)
        expect_right(h[i], 20 + i);
    copies_unref_many(h, 4);
    assert_int_equal(local_pages(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_far),
        cmocka_unit_test(test_busy_is_not_damaged),
        cmocka_unit_test(test_no_memory_there_is_not_damaged),
        cmocka_unit_test(test_busy_for_long_is_said),
        cmocka_unit_test(test_fetch_says_why),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_damaged_here),
        cmocka_unit_test(test_stuck_and_not_wanted),
        cmocka_unit_test(test_stuck_and_rank_lost),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
