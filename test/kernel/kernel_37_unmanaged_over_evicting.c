/*
 * Rule 37: memory that EDM does not manage is mapped by libc's mmap over pages that are on their
 * way out. A command that comes late must not take what the program has written there.
 */
#include "../lib/edmtest.h"
#include <sys/mman.h>
#include <unistd.h>

#define PART (256 * EDMTEST_PAGE)
#define ROUNDS 300

int main(void)
{
    struct edmtest_counters before, after;

    edmtest_begin("kernel_37_unmanaged_over_evicting", 60);
    edmtest_pressure();
    before = edmtest_now();
    for (uint64_t round = 0; round < ROUNDS; round++) {
        char *p = edmtest_map(PART);

        edmtest_fill(p, PART, round);
        EXPECT_CALL(madvise(p, PART, MADV_PAGEOUT)); /* does not wait */
        EXPECT(mmap(p, PART, PROT_READ | PROT_WRITE,
                    MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0) == p,
               "mmap: %m");
        edmtest_fill(p, PART, round + ROUNDS);
        usleep(1000);
        edmtest_expect(p, PART, round + ROUNDS, "unmanaged memory");
        EXPECT_CALL(munmap(p, PART));
    }
    after = edmtest_now();
    EXPECT(edmtest_native() || after.evicted > before.evicted, "nothing was evicted");
    edmtest_ok();
}
