/* Rule 25: mremap of a large range of which some chunks are leased and some are not. */
#include "../lib/edmtest.h"
#include <sys/mman.h>

#define CHUNK (2 * EDMTEST_MIB)
#define LEN (8 * CHUNK)

int main(void)
{
    struct edmtest_counters before, after;

    edmtest_begin("kernel_25_mremap_across_leases", 90);
    edmtest_pressure();
    before = edmtest_now();
    for (int round = 0; round < 6; round++) {
        char *p = edmtest_map(LEN), *to = edmtest_map(2 * LEN), *q;

        for (size_t i = 0; i < LEN; i += CHUNK) /* every other chunk is touched, some go out */
            if ((i / CHUNK + (size_t)round) % 2)
                edmtest_fill(p + i, CHUNK, i);
        edmtest_evict(p + CHUNK * 2, CHUNK * 2);
        if (round % 3 == 0)
            q = mremap(p, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, to);
        else if (round % 3 == 1)
            q = mremap(p, LEN, 2 * LEN, MREMAP_MAYMOVE);
        else
            q = mremap(p, LEN, LEN, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
        EXPECT(q != MAP_FAILED, "mremap, round %d: %m", round);
        for (size_t i = 0; i < LEN; i += CHUNK)
            if ((i / CHUNK + (size_t)round) % 2)
                edmtest_expect(q + i, CHUNK, i, "moved chunk");
            else
                edmtest_expect_zero(q + i, CHUNK, "chunk never touched");
        munmap(q, round % 3 == 1 ? 2 * LEN : LEN);
        munmap(to, 2 * LEN);
        if (round % 3 == 2)
            munmap(p, LEN);
    }
    after = edmtest_now();
    EXPECT(edmtest_native() || after.remaps > before.remaps, "no remap event");
    edmtest_pressure_check();
    edmtest_ok();
}
