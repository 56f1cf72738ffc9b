/* Pages kept for other ranks: each rank gets at its own only, whatever it asks for. */
#include "dms/holder.h"
#include "dms/homes.h"
#include "dms/store.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define RANKS 3

/* ---- in place of peer.c ---- */

static _Alignas(64) uint8_t message[RANK_MESSAGE_MAX];
static struct peer_buf buf = {.head = (struct rank_head *)(void *)message};
static int answers;
static size_t answer_len;

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
    return rank != 2;
}

void peer_get_info(int rank, struct peer_info *out)
{
    *out = (struct peer_info){.identity = 100 + (uint64_t)rank};
}

void peer_answer(struct peer_buf *b, int code, size_t body)
{
    b->head->answer = 1;
    b->head->code = code;
    answer_len = sizeof(*b->head) + (code ? 0 : body);
    answers++;
}

/* ---- */

static uint64_t kept_pages;

static int setup(void **state)
{
    char err[200];
    struct store_options o = {.memory_bytes = 64 * 4096, .compression = EDM_COMPRESSION_NONE};
    return store_init(&o, err, sizeof(err)) || homes_open(-1) || holder_open(-1, &kept_pages) ||
           holder_init();
}

static int teardown(void **state)
{
    store_fini();
    return 0;
}

/* Serves what is in the buffer; every request gets one answer, which the asking rank accepts. */
static void serve(int rank, enum rank_kind kind, uint32_t count)
{
    *buf.head = (struct rank_head){.magic = RANK_MAGIC, .version = RANK_VERSION, .id = 1};
    buf.head->kind = (uint8_t)kind;
    buf.head->count = count;
    buf.rank = rank;
    answers = 0;
    holder_serve(&buf);
    assert_int_equal(answers, 1);
    assert_null(rank_check(message, answer_len));
}

static void *body(void)
{
    return buf.head + 1;
}

static struct rank_slot keep(int rank, uint32_t version, uint8_t fill)
{
    struct rank_slot s = {0, version};
    buf.head->count = 1;
    memcpy(body(), &s, sizeof(s));
    memset(rank_pages(buf.head), fill, RANK_PAGE);
    serve(rank, RANK_STORE, 1);
    struct rank_result *r = (void *)((struct rank_stat *)body() + 1);
    s.slot = r->code ? 0 : r->slot;
    return s;
}

static int fetch(int rank, struct rank_slot s)
{
    memcpy(body(), &s, sizeof(s));
    serve(rank, RANK_FETCH, 1);
    return ((struct rank_result *)body())->code;
}

static void drop(int rank, struct rank_slot s)
{
    memcpy(body(), &s, sizeof(s));
    serve(rank, RANK_DROP, 1);
}

static uint64_t pages_of(int rank)
{
    struct rank_stat s;
    holder_stat(rank, &s);
    return s.pages;
}

static void a_rank_gets_its_page_back(void **state)
{
    struct rank_slot s = keep(1, 7, 0xab);
    assert_int_not_equal(s.slot, 0);
    assert_int_equal(pages_of(1), 1);
    assert_int_equal(fetch(1, s), 0);
    assert_int_equal(rank_pages(buf.head)[4095], 0xab);
    drop(1, s);
    assert_int_equal(pages_of(1), 0);
    assert_int_equal(fetch(1, s), -ENOENT);
}

static void another_ranks_page_is_not_touched(void **state)
{
    struct rank_slot s = keep(1, 7, 0x11);
    assert_int_equal(fetch(2, s), -ENOENT);
    drop(2, s);
    assert_int_equal(fetch(1, s), 0);
    drop(1, s);
}

static void another_version_is_not_there(void **state)
{
    struct rank_slot s = keep(1, 7, 0x11), older = {s.slot, 6};
    assert_int_equal(fetch(1, older), -ENOENT);
    drop(1, older);
    assert_int_equal(pages_of(1), 1);
    drop(1, s);
}

static void dropping_twice_frees_once(void **state)
{
    struct store_stats st;
    struct rank_slot a = keep(1, 1, 1), b = keep(1, 2, 2);
    drop(1, a);
    drop(1, a);
    assert_int_equal(pages_of(1), 1);
    assert_int_equal(fetch(1, b), 0);
    drop(1, b);
    store_get_stats(&st);
    assert_int_equal(st.memory.pages, 0);
}

/* This rank's own pages are in the same store. */
static void slots_that_were_never_given_away(void **state)
{
    static const uint32_t slots[] = {0, 1, 2, 63, 64, 1u << 20, UINT32_MAX};
    uint8_t page[RANK_PAGE] = {3};
    store_handle own;
    assert_int_equal(store_put(page, 9, false, &own), 0);
    for (size_t i = 0; i < sizeof(slots) / sizeof(*slots); i++) {
        assert_int_equal(fetch(1, (struct rank_slot){slots[i], 9}), -ENOENT);
        drop(1, (struct rank_slot){slots[i], 9});
    }
    assert_int_equal(fetch(1, (struct rank_slot){own, 9}), -ENOENT);
    assert_int_equal(store_read(own, 9, page), 0);
    store_unref(own);
}

static void a_full_store_says_so_page_by_page(void **state)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < 100; i++)
        kept += keep(1, i + 1, (uint8_t)i).slot != 0;
    assert_in_range(kept, 1, 64);
    assert_int_equal(pages_of(1), kept);
    assert_int_equal(holder_pages(), kept);
    assert_int_equal(holder_forget(2), 0);
    assert_int_equal(holder_forget(1), kept);
    assert_int_equal(pages_of(1), 0);
    assert_int_not_equal(keep(2, 1, 1).slot, 0);
    assert_int_equal(holder_pages(), 0); /* it is dead: nobody waits for it */
    assert_int_equal(holder_forget(2), 1);
}

static int claim(int rank, struct rank_slot s)
{
    memcpy(body(), &s, sizeof(s));
    serve(rank, RANK_CLAIM, 1);
    return ((struct rank_result *)body())->code;
}

/* As if the process had been killed: the next one has its files, and nothing else. */
static void next_process(void)
{
    char err[200];
    struct store_options o = {.memory_bytes = 64 * 4096, .compression = EDM_COMPRESSION_NONE};
    struct store_fds fds;
    int homes = dup(homes_fd()), kept = dup(holder_fd());
    store_get_fds(&fds);
    fds = (struct store_fds){dup(fds.memory), dup(fds.slots), -1};
    store_fini();
    assert_int_equal(store_reopen(&o, &fds, err, sizeof(err)), 0);
    assert_int_equal(homes_open(homes), 0);
    assert_int_equal(holder_open(kept, &kept_pages), 0);
    store_reopen_end();
}

static void what_is_claimed_outlives_the_process(void **state)
{
    struct rank_slot a = keep(1, 1, 0xaa), b = keep(1, 2, 0xbb), c = keep(2, 1, 0xcc);
    next_process();
    assert_int_equal(kept_pages, 3);
    assert_int_equal(claim(1, a), 0);
    assert_int_equal(claim(1, (struct rank_slot){b.slot, 1}), -ENOENT);
    assert_int_equal(claim(1, c), -ENOENT);
    struct rank_slot young = keep(1, 3, 0xdd);
    serve(1, RANK_CLAIMED, 0);
    assert_int_equal(pages_of(1), 2);
    assert_int_equal(pages_of(2), 1);
    assert_int_equal(fetch(1, a), 0);
    assert_int_equal(rank_pages(buf.head)[0], 0xaa);
    assert_int_equal(fetch(1, b), -ENOENT);
    assert_int_equal(fetch(1, young), 0);
    serve(2, RANK_CLAIMED, 0);
    holder_forget(1);
    assert_int_equal(kept_pages, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rank_gets_its_page_back),
        cmocka_unit_test(another_ranks_page_is_not_touched),
        cmocka_unit_test(another_version_is_not_there),
        cmocka_unit_test(dropping_twice_frees_once),
        cmocka_unit_test(slots_that_were_never_given_away),
        cmocka_unit_test(a_full_store_says_so_page_by_page),
        cmocka_unit_test(what_is_claimed_outlives_the_process),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
