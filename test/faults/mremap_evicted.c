/* mremap of evicted memory in every form: the bytes go with it. */
#include "../lib/edmtest.h"
#include <sys/mman.h>

#define LEN (64 * EDMTEST_PAGE)

static char *move(char *p, size_t old, size_t len, int flags, char *to)
{
    char *q = mremap(p, old, len, flags, to);

    EXPECT(q != MAP_FAILED, "mremap with flags %d: %m", flags);
    EXPECT(!(flags & MREMAP_FIXED) || q == to, "MREMAP_FIXED went elsewhere");
    return q;
}

static char *fresh(uint64_t seed)
{
    char *p = edmtest_map(LEN);

    edmtest_fill(p, LEN, seed);
    edmtest_evict(p, LEN);
    return p;
}

int main(void)
{
    struct edmtest_counters before, after;
    char *p, *q, *to;

    edmtest_begin("faults_mremap_evicted", 60);
    edmtest_pressure();
    before = edmtest_now();
    p = move(fresh(1), LEN, LEN / 2, 0, NULL);
    edmtest_expect(p, LEN / 2, 1, "shrunk");
    p = move(fresh(2), LEN, 4 * LEN, MREMAP_MAYMOVE, NULL);
    edmtest_expect(p, LEN, 2, "grown");
    edmtest_expect_zero(p + LEN, 3 * LEN, "behind the old end");
    to = edmtest_map(2 * LEN);
    edmtest_fill(to, 2 * LEN, 99);
    p = move(fresh(3), LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    edmtest_expect(to, LEN, 3, "moved to a fixed place");
    p = fresh(4);
    q = move(p, LEN, LEN, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    edmtest_expect(q, LEN, 4, "moved with DONTUNMAP");
    edmtest_expect_zero(p, LEN, "what DONTUNMAP left");
    p = fresh(5);
    q = move(p, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to);
    edmtest_expect(to, LEN, 5, "moved to a fixed place with DONTUNMAP");
    edmtest_expect_zero(p, LEN, "what FIXED and DONTUNMAP left");
    edmtest_evict(to, LEN);
    edmtest_expect(to, LEN, 5, "evicted at its new place");
    after = edmtest_now();
    EXPECT(edmtest_native() || after.remaps > before.remaps, "no remap event");
    edmtest_came_back(&before, 5 * LEN / EDMTEST_PAGE);
    edmtest_pressure_check();
    edmtest_ok();
}
