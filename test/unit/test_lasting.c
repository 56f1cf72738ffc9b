/* Tables that outlive their process: found again as they were, refused when they are something
 * else. */
#include "dms/lasting.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define ITEMS (1ull << 24)

static const struct lasting_kind kind = {"test", 7, 1, sizeof(uint64_t), ITEMS};

static struct lasting make(void)
{
    struct lasting t;
    assert_int_equal(lasting_open(&t, -1, &kind), 0);
    return t;
}

/* Whether item i is among those that may have been written. */
static bool is_seen(const struct lasting *t, uint64_t i)
{
    uint64_t from, to = 0, last = 0;
    bool seen = false;
    while (lasting_next(t, &from, &to)) {
        assert_true(from >= last && to > from && to <= t->n);
        seen |= i >= from && i < to;
        last = to;
    }
    return seen;
}

static uint64_t items_seen(const struct lasting *t)
{
    uint64_t n = 0;
    for (uint64_t from, to = 0; lasting_next(t, &from, &to);)
        n += to - from;
    return n;
}

static void another_process_finds_every_item(void **state)
{
    static const uint64_t where[] = {0, 1, 511, 512, 100000, ITEMS - 1};
    struct lasting t = make(), again;
    for (size_t i = 0; i < sizeof(where) / sizeof(*where); i++)
        ((uint64_t *)t.items)[where[i]] = i + 1;
    assert_int_equal(lasting_open(&again, dup(t.fd), &kind), 0);
    for (size_t i = 0; i < sizeof(where) / sizeof(*where); i++) {
        assert_int_equal(((uint64_t *)again.items)[where[i]], i + 1);
        assert_true(is_seen(&again, where[i]));
    }
    assert_true(items_seen(&again) < 10 * 4096);
}

static void an_empty_table_has_no_items(void **state)
{
    struct lasting t = make();
    assert_int_equal(items_seen(&t), 0);
}

static void what_is_something_else_is_refused(void **state)
{
    struct lasting t = make(), again;
    struct lasting_kind other = kind;
    int fd = memfd_create("empty", MFD_CLOEXEC), pipes[2];
    other.layout = 2;
    assert_int_equal(lasting_open(&again, t.fd, &other), -EPROTO);
    other = kind;
    other.magic = 8;
    assert_int_equal(lasting_open(&again, t.fd, &other), -EPROTO);
    other = kind;
    other.item = 4;
    assert_int_equal(lasting_open(&again, t.fd, &other), -EPROTO);
    other = kind;
    other.n--;
    assert_int_equal(lasting_open(&again, t.fd, &other), -EPROTO);
    assert_int_equal(lasting_open(&again, fd, &kind), -EPROTO);
    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(lasting_open(&again, pipes[0], &kind), -EPROTO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(another_process_finds_every_item),
        cmocka_unit_test(an_empty_table_has_no_items),
        cmocka_unit_test(what_is_something_else_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
