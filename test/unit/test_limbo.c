/* Limbo: ring pages, and batches that are stored aside while their pages may be wanted back. */
#include "dms/die.h"
#include "dms/keeper.h"
#include "fake_instance.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#define RING 512u
#define TARGET 16u
#define PAGES 1024u
#define HANDLES 65536u

/* ---- in place of the store, the budget and the clock ---- */

static struct {
    int refs;
    uint32_t version;
    uint64_t word; /* the first of its contents */
} stored[HANDLES];
static uint32_t nstored;
static bool full, tight, unkept;

int copies_put(const void *page, uint32_t version, const struct copies_wish *wish, bool force,
               store_handle *out)
{
    if (full && !force)
        return -ENOSPC;
    *out = ++nstored;
    stored[*out].refs = 1;
    stored[*out].version = version;
    memcpy(&stored[*out].word, page, sizeof(uint64_t));
    return 0;
}

void copies_ref(store_handle h)
{
    assert_true(stored[h].refs > 0);
    stored[h].refs++;
}

void copies_unref(store_handle h)
{
    assert_true(stored[h].refs > 0);
    stored[h].refs--;
}

bool copies_same(store_handle h, uint32_t version, const void *page)
{
    assert_true(stored[h].refs > 0);
    return stored[h].version == version &&
           memcmp(&stored[h].word, page, sizeof(stored[h].word)) == 0;
}

void budget_note(const struct instance *in)
{
}

uint64_t budget_charge(const struct instance *in)
{
    return tight ? in->budget.limit : 0;
}

bool budget_is_kept(const struct instance *in)
{
    return !unkept;
}

struct state *keeper_state(void)
{
    return NULL;
}

uint64_t now_ns(void)
{
    return 1;
}

/* ---- */

static struct instance *in;
static struct chunk *first;
static uint64_t words[PAGES]; /* what each page has */
static uint64_t word;

static int setup(void **state)
{
    in = fake_instance_new();
    full = tight = unkept = false;
    nstored = 0;
    in->budget.limit = 1000;
    in->limbo.pages = RING;
    in->limbo.target = TARGET;
    in->limbo.data = calloc(RING, EDM_PAGE_SIZE);
    in->limbo.owner = malloc(RING * sizeof(*in->limbo.owner));
    in->limbo.work = limbo_aside_new();
    memset(in->limbo.owner, 0xff, RING * sizeof(*in->limbo.owner));
    for (uint64_t a = 0; a < PAGES / EDM_CHUNK_PAGES; a++)
        page_chunk(in, FAKE_ARENA + a * EDM_CHUNK_SIZE);
    first = in->spt.chunks;
    return 0;
}

static int teardown(void **state)
{
    free(in->limbo.work);
    free(in->limbo.owner);
    free(in->limbo.data);
    fake_instance_free(in);
    return 0;
}

/* As the LPET and evict.c do it; false: no ring page. */
static bool page_out(uint32_t id)
{
    int64_t ring = limbo_take(&in->limbo, 1);
    struct page *p = spt_page(&in->spt, id);
    if (ring < 0)
        return false;
    assert_int_equal(in->limbo.owner[ring], RING_PENDING);
    memcpy(in->limbo.data + (size_t)ring * EDM_PAGE_SIZE, &words[id], sizeof(words[id]));
    in->limbo.owner[ring] = id;
    in->limbo.used++;
    p->link.next = (uint32_t)ring;
    spt_set(spt_chunk_of(&in->spt, id), p, PAGE_LIMBO);
    return true;
}

static void pages_out(uint32_t from, uint32_t n)
{
    for (uint32_t id = from; id < from + n; id++) {
        words[id] = ++word;
        assert_true(page_out(id));
    }
}

/* It is where it should be, and there as it should be. */
static void check_page(uint32_t id)
{
    const struct page *p = spt_page(&in->spt, id);
    if (p->state == PAGE_LIMBO) {
        assert_int_equal(in->limbo.owner[p->link.next], id);
        assert_memory_equal(in->limbo.data + (size_t)p->link.next * EDM_PAGE_SIZE, &words[id],
                            sizeof(words[id]));
    } else if (p->state == PAGE_STORED) {
        assert_int_equal(stored[p->handle].version, p->version);
        assert_int_equal(stored[p->handle].word, words[id]);
    }
}

/* No copy has more owners, or fewer, than pages name it. For when no batch is aside. */
static void check_all(void)
{
    static int named[HANDLES];
    uint32_t in_limbo = 0;
    memset(named, 0, sizeof(named));
    for (uint32_t id = 0; id < PAGES; id++) {
        check_page(id);
        named[spt_page(&in->spt, id)->handle]++;
        in_limbo += spt_page(&in->spt, id)->state == PAGE_LIMBO;
    }
    for (uint32_t h = 1; h <= nstored; h++)
        assert_int_equal(stored[h].refs, named[h]);
    assert_int_equal(in->limbo.used, in_limbo);
}

static void batch_over(void)
{
    assert_true(limbo_work(in));
    assert_true(limbo_is_done(in));
    limbo_collect(in);
    assert_int_equal(in->limbo.aside, 0);
    check_all();
}

/* ---- the ring ---- */

static void ring_is_taken_in_order(void **state)
{
    struct limbo *l = &in->limbo;
    for (uint32_t i = 0; i < RING / 64; i++)
        assert_int_equal(limbo_take(l, 64), i * 64);
    assert_int_equal(limbo_take(l, 1), -1);
    memset(l->owner + 64, 0xff, 64 * sizeof(*l->owner)); /* the second is free first */
    limbo_release(l);
    assert_int_equal(limbo_take(l, 1), -1);
    memset(l->owner, 0xff, 64 * sizeof(*l->owner));
    limbo_release(l);
    assert_int_equal(limbo_take(l, 64), 0);
    assert_int_equal(limbo_take(l, 64), 64);
    assert_int_equal(limbo_take(l, 1), -1);
}

/* Pages of one command are neighbours: what is left at the ring's end is skipped, and comes back.
 */
static void ring_end_is_skipped(void **state)
{
    struct limbo *l = &in->limbo;
    assert_int_equal(limbo_take(l, RING - 8), 0);
    memset(l->owner, 0xff, RING * sizeof(*l->owner));
    limbo_release(l);
    assert_int_equal(limbo_take(l, 16), 0);
    for (uint32_t i = RING - 8; i < RING; i++)
        assert_int_equal(l->owner[i], RING_FREE);
    assert_int_equal(l->head, RING + 16);
    memset(l->owner, 0xff, RING * sizeof(*l->owner));
    limbo_release(l);
    assert_int_equal(l->tail, l->head);
}

static void ring_is_restored(void **state)
{
    struct limbo *l = &in->limbo;
    for (uint32_t i = 500; i < 530; i++) /* in use across the end, with a hole */
        if (i != 510)
            l->owner[i % RING] = i % 2 ? i : RING_PENDING;
    limbo_restore(l);
    assert_int_equal(l->tail % RING, 500);
    assert_int_equal(l->head - l->tail, 30);
    assert_int_equal(l->used, 15);
    memset(l->owner, 0xff, RING * sizeof(*l->owner));
    limbo_restore(l);
    assert_int_equal(l->head, l->tail);
    assert_int_equal(l->used, 0);
    memset(l->owner, 0, RING * sizeof(*l->owner));
    limbo_restore(l);
    assert_int_equal(l->head - l->tail, RING);
    assert_int_equal(limbo_take(l, 1), -1);
}

/* ---- batches ---- */

static void batch_goes_to_the_store(void **state)
{
    pages_out(0, TARGET + 63);
    assert_false(limbo_post(in)); /* not worth it yet */
    pages_out(TARGET + 63, 1);
    assert_true(limbo_post(in));
    assert_false(limbo_post(in));
    assert_false(limbo_is_due(in));
    batch_over();
    assert_false(limbo_work(in));
    assert_int_equal(in->limbo.used, TARGET);
    assert_int_equal(in->limbo.tail, 64);
    assert_int_equal(in->stored, 64);
    for (uint32_t id = 0; id < 64; id++)
        assert_int_equal(spt_page(&in->spt, id)->state, PAGE_STORED);
}

/* Also when all of them are wanted back: their contents are being copied. */
static void ring_pages_aside_are_not_reused(void **state)
{
    pages_out(0, RING);
    assert_true(limbo_post(in));
    for (uint32_t id = 0; id < 100; id++)
        page_forget(in, first, id, PAGE_NEW);
    limbo_release(&in->limbo);
    assert_int_equal(in->limbo.tail, 0);
    assert_int_equal(limbo_take(&in->limbo, 1), -1);
    assert_true(limbo_work(in));
    assert_int_equal(limbo_take(&in->limbo, 1), -1);
    assert_false(limbo_collect(in)); /* nobody left */
    check_all();
    assert_int_equal(in->limbo.tail, 100);
    assert_int_equal(limbo_take(&in->limbo, 1), 0);
}

static void wanted_back_while_aside(void **state)
{
    pages_out(0, 128);
    assert_true(limbo_post(in));
    in->limbo.owner[spt_page(&in->spt, 3)->link.next] = RING_FREE; /* as fault_limbo */
    in->limbo.used--;
    page_make_resident(in, first, 3, false);
    page_forget(in, first, 5, PAGE_NEW);
    assert_true(limbo_work(in));
    page_forget(in, first, 7, PAGE_NEW); /* copied, but not collected */
    pages_out(7, 1);                     /* and out again, with other contents */
    limbo_collect(in);
    check_all();
    assert_int_equal(spt_page(&in->spt, 3)->state, PAGE_RESIDENT);
    assert_int_equal(spt_page(&in->spt, 5)->state, PAGE_NEW);
    assert_int_equal(spt_page(&in->spt, 7)->state, PAGE_LIMBO);
    assert_int_equal(spt_page(&in->spt, 8)->state, PAGE_STORED);
}

/* Moved by mremap: the ring page is another entry's. */
static void moved_while_aside(void **state)
{
    pages_out(0, 128);
    assert_true(limbo_post(in));
    struct page *from = spt_page(&in->spt, 9), *to = spt_page(&in->spt, 900);
    to->link = from->link;
    words[900] = words[9];
    spt_set(first, from, PAGE_NEW);
    spt_set(spt_chunk_of(&in->spt, 900), to, PAGE_LIMBO);
    in->limbo.owner[to->link.next] = 900;
    batch_over();
    assert_int_equal(to->state, PAGE_LIMBO);
}

static void refused_pages_stay(void **state)
{
    pages_out(0, 128);
    full = true;
    assert_true(limbo_post(in));
    batch_over();
    assert_int_equal(in->limbo.used, 128);
    assert_true(in->store_refused);
    assert_false(limbo_is_due(in));
    assert_false(limbo_post(in));
    full = false;
    assert_true(limbo_drain(in, 32, false) > 0);
    assert_false(in->store_refused);
    check_all();
}

/* A page whose old copy is still right keeps it; one that has changed gets another. */
static void clean_pages_are_not_stored_again(void **state)
{
    pages_out(0, 128);
    assert_true(limbo_post(in));
    batch_over();
    uint32_t puts = nstored;
    for (uint32_t id = 0; id < 64; id++) {
        in->stored--;
        spt_set(first, spt_page(&in->spt, id), PAGE_RESIDENT);
        words[id] += id == 20;
        assert_true(page_out(id));
    }
    limbo_drain_all(in);
    check_all();
    assert_int_equal(in->stats->evicted_clean, 63);
    assert_int_equal(nstored, puts + 64 + 1);
    assert_int_equal(in->limbo.used, 0);
}

/* fork: everything goes, also what is aside just now; that batch then changes nothing. */
static void all_at_once_while_aside(void **state)
{
    pages_out(0, 200);
    assert_true(limbo_post(in));
    assert_true(limbo_work(in));
    full = true; /* whatever it costs */
    limbo_drain_all(in);
    assert_int_equal(in->limbo.used, 0);
    assert_int_equal(in->limbo.tail, 0);
    limbo_collect(in);
    check_all();
    assert_int_equal(in->limbo.tail, 200);
}

/* Nobody with time has come: the lock's holder does it. */
static void batch_is_taken_back(void **state)
{
    pages_out(0, 128);
    assert_true(limbo_post(in));
    assert_int_equal(limbo_drain(in, 32, true), 0);
    assert_true(in->limbo.aside != 0);
    limbo_drain(in, 32, false);
    assert_int_equal(in->limbo.aside, 0);
    assert_false(limbo_work(in));
    check_all();
}

/* The budget is spent: all that is there goes, and nothing stays for hot pages. */
static void tight_budget_empties_it(void **state)
{
    pages_out(0, 10);
    assert_int_equal(limbo_drain(in, 32, false), 0);
    tight = true;
    assert_int_equal(limbo_drain(in, 32, false), 10);
    check_all();
}

static void step(unsigned what, uint32_t id)
{
    struct page *p = spt_page(&in->spt, id);
    if (what < 50 && (p->state == PAGE_NEW || p->state == PAGE_RESIDENT)) {
        if (p->state == PAGE_RESIDENT)
            page_unlist(in, id);
        words[id] = what % 2 ? ++word : words[id];
        if (!page_out(id))
            page_make_resident(in, spt_chunk_of(&in->spt, id), id, false);
    } else if (what < 60 && p->state == PAGE_LIMBO) {
        in->limbo.owner[p->link.next] = RING_FREE;
        in->limbo.used--;
        page_make_resident(in, spt_chunk_of(&in->spt, id), id, false);
    } else if (what < 70 && p->state == PAGE_STORED) {
        in->stored--;
        page_make_resident(in, spt_chunk_of(&in->spt, id), id, false);
    } else if (what < 75) {
        page_forget(in, spt_chunk_of(&in->spt, id), id, PAGE_NEW);
    } else if (what < 80) {
        limbo_work(in);
    } else if (what < 84) {
        limbo_collect(in);
    } else if (what < 90) {
        limbo_post(in);
    } else if (what < 99) {
        full = what == 98;
        tight = what == 97;
        limbo_drain(in, 32, what % 2);
    } else if (id % 64 == 0) {
        limbo_drain_all(in);
    }
    limbo_release(&in->limbo);
}

static void any_order(void **state)
{
    srand(1);
    for (unsigned i = 0; i < 100000 && nstored < HANDLES - 600; i++) {
        uint32_t id = (uint32_t)rand() % PAGES;
        step((unsigned)rand() % 100, id);
        check_page(id);
        assert_true(in->limbo.head - in->limbo.tail <= RING);
    }
    limbo_work(in);
    limbo_collect(in);
    check_all();
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(ring_is_taken_in_order),
        TEST(ring_end_is_skipped),
        TEST(ring_is_restored),
        TEST(batch_goes_to_the_store),
        TEST(ring_pages_aside_are_not_reused),
        TEST(wanted_back_while_aside),
        TEST(moved_while_aside),
        TEST(refused_pages_stay),
        TEST(clean_pages_are_not_stored_again),
        TEST(all_at_once_while_aside),
        TEST(batch_is_taken_back),
        TEST(tight_budget_empties_it),
        TEST(any_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
