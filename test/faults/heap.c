/* malloc's memory, small blocks and large, goes and comes back. */
#include "../lib/edmtest.h"
#include <stdlib.h>
#include <string.h>

#define BLOCK 200ul

int main(void)
{
    size_t want = 3 * edmtest_budget(), n = want / BLOCK, large = edmtest_budget();
    struct edmtest_counters before;
    char **list, *big;

    edmtest_begin("faults_heap", 60);
    list = malloc(n * sizeof(*list));
    big = malloc(large);
    EXPECT(list && big, "no memory");
    edmtest_fill(big, large, 1);
    for (size_t i = 0; i < n; i++) {
        list[i] = malloc(BLOCK);
        EXPECT(list[i], "no memory");
        edmtest_fill(list[i], BLOCK, i);
    }
    edmtest_evicted_at_least(edmtest_budget());
    before = edmtest_now();
    for (size_t i = 0; i < n; i++)
        edmtest_expect(list[i], BLOCK, i, "small block");
    edmtest_expect(big, large, 1, "large block");
    edmtest_came_back(&before, edmtest_budget() / EDMTEST_PAGE);
    for (size_t i = 0; i < n; i += 2)
        free(list[i]);
    big = realloc(big, 2 * large);
    EXPECT(big, "no memory");
    edmtest_expect(big, large, 1, "reallocated block");
    for (size_t i = 1; i < n; i += 2)
        edmtest_expect(list[i], BLOCK, i, "small block between freed ones");
    for (size_t i = 0; i < 1000; i++) {
        char *z = calloc(1, 5000);

        EXPECT(z, "no memory");
        edmtest_expect_zero(z, 5000, "calloc");
    }
    edmtest_ok();
}
