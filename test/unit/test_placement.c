/* Which rank gets a page: hosts, free room, what each placement allows. */
#include "dms/placement.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

/* Two hosts with two ranks each; rank 0 asks. */
static const struct placement_rank four[] = {
    {true, 0, 100}, {true, 0, 400}, {true, 2, 200}, {true, 2, 300}};

static int choose(const struct placement_rank *r, int n, enum edm_placement p, const int *taken,
                  int ntaken)
{
    return placement_choose(r, n, 0, p, taken, ntaken);
}

static void remote_is_another_host(void **state)
{
    assert_int_equal(choose(four, 4, EDM_PLACEMENT_REMOTE, NULL, 0), 3);
    assert_int_equal(placement_possible(four, 4, 0, EDM_PLACEMENT_REMOTE), 2);
}

static void remote_on_one_host_is_another_rank(void **state)
{
    assert_int_equal(choose(four, 2, EDM_PLACEMENT_REMOTE, NULL, 0), 1);
    assert_int_equal(choose(four, 1, EDM_PLACEMENT_REMOTE, NULL, 0), -1);
    assert_int_equal(placement_possible(four, 1, 0, EDM_PLACEMENT_REMOTE), 0);
}

/* The other host is full, which is no reason to break the promise. */
static void remote_never_falls_back_to_the_own_host(void **state)
{
    struct placement_rank r[] = {{true, 0, 100}, {true, 0, 100}, {true, 2, 0}};
    assert_int_equal(choose(r, 3, EDM_PLACEMENT_REMOTE, NULL, 0), -1);
}

static void replicas_go_to_other_hosts(void **state)
{
    const int self[] = {0}, both[] = {0, 3}, far[] = {3};
    assert_int_equal(choose(four, 4, EDM_PLACEMENT_LOCAL, self, 1), 3);
    assert_int_equal(choose(four, 4, EDM_PLACEMENT_LOCAL, both, 2), 1); /* no third host */
    assert_int_equal(choose(four, 4, EDM_PLACEMENT_REMOTE, far, 1), 2);
}

static void spread_goes_where_most_is_free(void **state)
{
    struct placement_rank r[] = {{true, 0, 500}, {true, 1, 400}, {true, 2, 600}};
    int sent[3] = {0};
    for (int i = 0; i < 1500; i++) {
        int t = choose(r, 3, EDM_PLACEMENT_SPREAD, NULL, 0);
        assert_in_range(t, 0, 2);
        sent[t]++;
        r[t].free--;
    }
    assert_int_equal(sent[0], 500);
    assert_int_equal(sent[1], 400);
    assert_int_equal(sent[2], 600);
    assert_int_equal(choose(r, 3, EDM_PLACEMENT_SPREAD, NULL, 0), -1);
}

static void lost_ranks_get_nothing(void **state)
{
    struct placement_rank r[] = {{true, 0, 100}, {false, 1, 900}, {true, 2, 1}};
    assert_int_equal(choose(r, 3, EDM_PLACEMENT_REMOTE, NULL, 0), 2);
    assert_int_equal(placement_possible(r, 3, 0, EDM_PLACEMENT_SPREAD), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(remote_is_another_host),
        cmocka_unit_test(remote_on_one_host_is_another_rank),
        cmocka_unit_test(remote_never_falls_back_to_the_own_host),
        cmocka_unit_test(replicas_go_to_other_hosts),
        cmocka_unit_test(spread_goes_where_most_is_free),
        cmocka_unit_test(lost_ranks_get_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
