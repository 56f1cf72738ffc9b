/* Rule 4: munmap with pages on their way out, then a new mapping at the same place: zeros. */
#include "../lib/edmtest.h"
#include <sys/mman.h>

#define LEN (64 * EDMTEST_PAGE)
#define ROUNDS 500

int main(void)
{
    struct edmtest_counters before, after;
    int same = 0;

    edmtest_begin("kernel_04_new_mapping_same_place", 90);
    edmtest_pressure();
    before = edmtest_now();
    for (uint64_t round = 0; round < ROUNDS; round++) {
        char *p = edmtest_map(LEN), *q;

        edmtest_fill(p, LEN, round);
        EXPECT_CALL(madvise(p, LEN, MADV_PAGEOUT));
        if (round % 5 == 0)
            edmtest_evict(p, LEN);
        EXPECT_CALL(munmap(p, LEN));
        q = mmap(p, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        EXPECT(q != MAP_FAILED, "mmap: %m");
        same += q == p;
        edmtest_expect_zero(q, LEN, "new mapping");
        EXPECT_CALL(munmap(q, LEN));
    }
    EXPECT(same > ROUNDS / 2, "only %d new mappings were at the old place", same);
    after = edmtest_now();
    EXPECT(edmtest_native() || after.evicted > before.evicted, "nothing was evicted");
    edmtest_pressure_check();
    edmtest_ok();
}
