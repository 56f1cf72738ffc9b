/* Marks against a table with an entry for each page. */
#include "dms/image.h"
#include "dms/marks.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PAGES 600u

static struct marks marks, child;
static struct mark model[PAGES];

static void change(struct mark *k, const void *arg)
{
    switch (*(const int *)arg) {
    case 0:
        k->flags |= PF_WIPE;
        break;
    case 1:
        k->flags |= PF_NOFORK;
        break;
    case 2:
        k->flags = 0;
        break;
    case 3:
        k->pins++;
        break;
    case 4:
        k->pins -= k->pins > 0;
        break;
    default:
        k->pins = k->flags = 0;
    }
}

/* In order, none next to its like, each with an effect; and each page as in the model. */
static void expect_same(const struct marks *m)
{
    const struct mark_list *l = &m->list[m->which];
    for (uint32_t i = 0; i < l->n; i++) {
        const struct mark *k = &l->at[i], *before = k - 1;
        assert_true(k->first < k->end && (k->flags || k->pins));
        if (!i)
            continue;
        assert_true(before->end <= k->first);
        assert_false(before->end == k->first && before->flags == k->flags &&
                     before->pins == k->pins);
    }
    for (uint64_t i = 0; i < PAGES; i++) {
        struct mark k = marks_at(m, i);
        assert_int_equal(k.flags, model[i].flags);
        assert_int_equal(k.pins, model[i].pins);
        assert_true(k.first <= i && k.end > i);
    }
}

static void test_model(void **state)
{
    memset(&marks, 0, sizeof(marks));
    memset(model, 0, sizeof(model));
    srand(1);
    for (int round = 0; round < 20000; round++) {
        uint64_t first = (uint64_t)rand() % (PAGES / 2), n = 1 + (uint64_t)rand() % (PAGES / 3);
        int what = rand() % 8, back = rand() % 2;
        uint64_t end = first + n, from = back ? PAGES / 2 : 0, to = PAGES / 2 - from;
        if (what < 6) {
            for (uint64_t i = first; i < end; i++)
                change(&model[i], &what);
            assert_int_equal(marks_change(&marks, first, end, change, &what), 0);
        } else {
            n = n < PAGES / 2 ? n : PAGES / 2;
            for (uint64_t i = 0; i < n; i++)
                model[to + i].flags =
                    (uint8_t)((model[to + i].flags & ~PF_WIPE) | (model[from + i].flags & PF_WIPE));
            assert_int_equal(marks_copy(&marks, from, to, n, PF_WIPE), 0);
        }
        if (round % 16 == 0)
            expect_same(&marks);
    }
}

static void test_huge(void **state)
{
    const int wipe = 0, none = 5;
    memset(&marks, 0, sizeof(marks));
    assert_int_equal(marks_change(&marks, 3, 1ull << 36, change, &wipe), 0);
    assert_int_equal(marks.list[marks.which].n, 1);
    assert_int_equal(marks_at(&marks, 2).flags, 0);
    assert_int_equal(marks_at(&marks, 3).flags, PF_WIPE);
    assert_int_equal(marks_at(&marks, (1ull << 36) - 1).flags, PF_WIPE);
    assert_int_equal(marks_at(&marks, 1ull << 36).flags, 0);
    assert_int_equal(marks_copy(&marks, 0, 1ull << 40, 1ull << 37, PF_WIPE), 0);
    assert_int_equal(marks_at(&marks, (1ull << 40) + 2).flags, 0);
    assert_int_equal(marks_at(&marks, (1ull << 40) + 3).flags, PF_WIPE);
    assert_int_equal(marks_change(&marks, 0, 1ull << 42, change, &none), 0);
    assert_int_equal(marks.list[marks.which].n, 0);
}

/* What does not fit changes nothing. */
static void test_full(void **state)
{
    const int wipe = 0, pin = 3;
    memset(&marks, 0, sizeof(marks));
    for (uint64_t i = 0; i < MARKS_MAX; i++)
        assert_int_equal(marks_change(&marks, 2 * i, 2 * i + 1, change, &wipe), 0);
    assert_int_equal(marks_change(&marks, 2 * MARKS_MAX, 2 * MARKS_MAX + 1, change, &wipe),
                     -ENOMEM);
    assert_int_equal(marks_change(&marks, 0, 1ull << 36, change, &pin), -ENOMEM);
    for (uint64_t i = 0; i < MARKS_MAX; i++) {
        assert_int_equal(marks_at(&marks, 2 * i).flags, PF_WIPE);
        assert_int_equal(marks_at(&marks, 2 * i).pins, 0);
        assert_int_equal(marks_at(&marks, 2 * i + 1).flags, 0);
    }
    assert_int_equal(marks_change(&marks, 0, 1ull << 36, change, &wipe), 0);
    assert_int_equal(marks.list[marks.which].n, 1);
}

static void for_good(struct mark *k, const void *arg)
{
    k->pins = PINS_FOR_GOOD;
}

static void test_inherit(void **state)
{
    const int wipe = 0, pin = 3;
    memset(&marks, 0, sizeof(marks));
    assert_int_equal(marks_change(&marks, 0, 10, change, &pin), 0);
    assert_int_equal(marks_change(&marks, 5, 20, change, &wipe), 0);
    assert_int_equal(marks_change(&marks, 30, 40, for_good, NULL), 0);
    marks_inherit(&child, &marks);
    assert_int_equal(marks_at(&child, 0).pins, 0);
    assert_int_equal(marks_at(&child, 7).pins, 0);
    assert_int_equal(marks_at(&child, 7).flags, PF_WIPE);
    assert_int_equal(marks_at(&child, 35).pins, PINS_FOR_GOOD);
    assert_int_equal(child.list[child.which].n, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_huge),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_inherit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
