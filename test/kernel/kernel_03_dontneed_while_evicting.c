/* Rule 3: REMOVE is announced before the pages go; an eviction in between must not keep them. */
#include "../lib/discard.h"
#include <sys/mman.h>

static void nothing(char *p, size_t len)
{
    (void)p, (void)len;
}

static void dontneed(char *p, size_t len)
{
    EXPECT_CALL(madvise(p, len, MADV_DONTNEED));
}

static void replace(char *p, size_t len)
{
    EXPECT(mmap(p, len, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
               p,
           "mmap: %m");
}

int main(void)
{
    struct edmtest_counters before, after;

    edmtest_begin("kernel_03_dontneed_while_evicting", 150);
    edmtest_pressure();
    before = edmtest_now();
    discard_rounds(600, nothing, dontneed);
    discard_rounds(600, nothing, replace);
    after = edmtest_now();
    EXPECT(edmtest_native() || after.removes >= before.removes + 600, "%lu remove events",
           after.removes - before.removes);
    edmtest_pressure_check();
    edmtest_ok();
}
