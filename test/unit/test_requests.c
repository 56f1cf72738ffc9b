/* Requests that wait for an answer: only the right answer of the right rank ends one. */
#include "dms/requests.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static struct requests *r;

static int setup(void **state)
{
    r = calloc(1, sizeof(*r));
    return r ? 0 : -1;
}

static int teardown(void **state)
{
    free(r);
    return 0;
}

static struct request_entry *ask(int rank, uint8_t kind, uint32_t count, uint64_t ns)
{
    struct request_entry *e = requests_add(r);
    if (!e)
        return NULL;
    e->rank = rank;
    e->kind = kind;
    e->count = count;
    e->sent_ns = ns;
    return e;
}

static bool answer(int rank, uint64_t id, uint8_t kind, uint32_t count)
{
    struct rank_head h = {.kind = kind, .answer = 1, .id = id, .count = count};
    struct request_entry out;
    return requests_take(r, rank, &h, &out);
}

static void only_the_right_answer_counts(void **state)
{
    uint64_t id = ask(3, RANK_FETCH, 4, 0)->id;
    assert_false(answer(2, id, RANK_FETCH, 4));
    assert_false(answer(3, id + REQUESTS_MAX, RANK_FETCH, 4));
    assert_false(answer(3, id, RANK_STORE, 4));
    assert_false(answer(3, id, RANK_FETCH, 5));
    assert_false(answer(3, 0, RANK_FETCH, 4));
    assert_true(answer(3, id, RANK_FETCH, 4));
    assert_false(answer(3, id, RANK_FETCH, 4));
}

static void a_late_answer_is_not_the_next_requests(void **state)
{
    struct request_entry out;
    uint64_t old = ask(1, RANK_FETCH, 1, 0)->id;
    assert_true(requests_take_any(r, 1, &out));
    uint64_t id = ask(1, RANK_FETCH, 1, 0)->id;
    assert_false(answer(1, old, RANK_FETCH, 1));
    assert_true(answer(1, id, RANK_FETCH, 1));
}

static void they_are_found_by_rank_and_age(void **state)
{
    struct request_entry out;
    ask(1, RANK_STAT, 0, 100);
    ask(2, RANK_STAT, 0, 200);
    assert_true(requests_are_older(r, 1, 101));
    assert_false(requests_are_older(r, 2, 200));
    assert_true(requests_take_any(r, 2, &out));
    assert_int_equal(out.sent_ns, 200);
    assert_false(requests_take_any(r, 2, &out));
    assert_true(requests_take_any(r, 1, &out));
}

static void there_is_an_end_to_them(void **state)
{
    struct request_entry out;
    unsigned n = 0;
    while (ask(0, RANK_STAT, 0, 0))
        n++;
    assert_int_equal(n, REQUESTS_MAX - 1);
    assert_true(requests_take_any(r, 0, &out));
    assert_non_null(ask(0, RANK_STAT, 0, 0));
    assert_null(ask(0, RANK_STAT, 0, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(only_the_right_answer_counts, setup, teardown),
        cmocka_unit_test_setup_teardown(a_late_answer_is_not_the_next_requests, setup, teardown),
        cmocka_unit_test_setup_teardown(they_are_found_by_rank_and_age, setup, teardown),
        cmocka_unit_test_setup_teardown(there_is_an_end_to_them, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
