/* Messages between ranks: whole and possible ones pass, everything else is named. */
#include "dms/proto/rank.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static _Alignas(64) uint8_t message[RANK_MESSAGE_MAX];

static struct rank_head *make(enum rank_kind kind, bool answer, uint32_t count)
{
    struct rank_head *h = (void *)message;
    memset(message, 0, sizeof(message));
    *h = (struct rank_head){RANK_MAGIC, RANK_VERSION, (uint8_t)kind, answer, 1, count, 0, 0, 0};
    return h;
}

static bool passes(size_t body)
{
    return rank_check(message, sizeof(struct rank_head) + body) == NULL;
}

/* Exactly one length of body is right. */
static void expect_body(enum rank_kind kind, bool answer, uint32_t count, size_t body)
{
    make(kind, answer, count);
    assert_true(passes(body));
    assert_false(passes(body + 1));
    if (body)
        assert_false(passes(body - 1));
}

static void bodies_have_one_length(void **state)
{
    const size_t slot = sizeof(struct rank_slot), stat = sizeof(struct rank_stat);
    expect_body(RANK_HELLO, false, 0, sizeof(struct rank_hello));
    expect_body(RANK_HELLO, true, 0, sizeof(struct rank_hello));
    for (uint32_t n = 1; n <= RANK_PAGES; n++) {
        expect_body(RANK_STORE, false, n, n * (slot + RANK_PAGE));
        expect_body(RANK_STORE, true, n, stat + n * slot);
        expect_body(RANK_FETCH, false, n, n * slot);
        expect_body(RANK_FETCH, true, n, n * (slot + RANK_PAGE));
    }
    expect_body(RANK_DROP, false, RANK_DROPS, RANK_DROPS * slot);
    expect_body(RANK_DROP, true, RANK_DROPS, 0);
    expect_body(RANK_CLAIM, false, RANK_DROPS, RANK_DROPS * slot);
    expect_body(RANK_CLAIM, true, RANK_DROPS, RANK_DROPS * slot);
    expect_body(RANK_CLAIMED, false, 0, 0);
    expect_body(RANK_CLAIMED, true, 0, 0);
    expect_body(RANK_STAT, false, 0, 0);
    expect_body(RANK_STAT, true, 0, stat);
    expect_body(RANK_BYE, false, 0, 0);
}

static void a_fetch_brings_pages_of_good_results_only(void **state)
{
    struct rank_head *h = make(RANK_FETCH, true, 3);
    struct rank_result *r = (void *)(h + 1);
    r[1].code = -EBADMSG;
    assert_true(passes(3 * sizeof(*r) + 2 * RANK_PAGE));
    assert_false(passes(3 * sizeof(*r) + 3 * RANK_PAGE));
    r[0].code = r[2].code = -ENOENT;
    assert_true(passes(3 * sizeof(*r)));
}

static void counts_have_limits(void **state)
{
    static const uint32_t wrong[] = {0, RANK_PAGES + 1, RANK_DROPS + 1, UINT32_MAX};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        make(RANK_STORE, false, wrong[i]);
        assert_false(passes((size_t)wrong[i] * (8 + RANK_PAGE)));
        make(RANK_FETCH, true, wrong[i]);
        assert_false(passes(0));
    }
    make(RANK_DROP, false, RANK_DROPS + 1);
    assert_false(passes((RANK_DROPS + 1) * sizeof(struct rank_slot)));
}

static void refusals_are_bare(void **state)
{
    make(RANK_FETCH, true, 99)->code = -EINVAL;
    assert_true(passes(0));
    assert_false(passes(8));
    make(RANK_FETCH, true, 1)->code = 5;
    assert_false(passes(0));
}

static void other_versions_may_only_greet(void **state)
{
    make(RANK_STAT, false, 0)->version = RANK_VERSION + 1;
    assert_false(passes(0));
    make(RANK_HELLO, false, 0)->version = RANK_VERSION + 1;
    assert_true(passes(3));
    make(RANK_HELLO, false, 0)->magic = 1;
    assert_false(passes(sizeof(struct rank_hello)));
}

static void a_host_name_ends(void **state)
{
    struct rank_head *h = make(RANK_HELLO, false, 0);
    memset(((struct rank_hello *)(void *)(h + 1))->host, 'x', RANK_HOST_MAX);
    assert_false(passes(sizeof(struct rank_hello)));
    h = make(RANK_HELLO, false, 0);
    memcpy(((struct rank_hello *)(void *)(h + 1))->host, "a\"b", 4);
    assert_false(passes(sizeof(struct rank_hello)));
}

/* Under the sanitizers: no bytes and no length make it read what is not there. */
static void garbage_is_refused(void **state)
{
    srand(1);
    for (int i = 0; i < 200000; i++) {
        size_t len = (size_t)rand() % 200;
        uint8_t *copy = malloc(len ? len : 1);
        for (size_t k = 0; k < len; k++)
            copy[k] = (uint8_t)rand();
        if (len >= sizeof(struct rank_head) && i % 2) {
            struct rank_head *h = (void *)copy;
            h->magic = RANK_MAGIC;
            h->version = RANK_VERSION;
            h->kind %= RANK_KINDS;
            h->answer &= 1;
            h->count %= 20;
        }
        const char *wrong = rank_check(copy, len);
        assert_true(wrong || len >= sizeof(struct rank_head));
        free(copy);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bodies_have_one_length),
        cmocka_unit_test(a_fetch_brings_pages_of_good_results_only),
        cmocka_unit_test(counts_have_limits),
        cmocka_unit_test(refusals_are_bare),
        cmocka_unit_test(other_versions_may_only_greet),
        cmocka_unit_test(a_host_name_ends),
        cmocka_unit_test(garbage_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
