/* Rule 7: read-only pages are evicted by copying; the program's DONTNEED of them still counts. */
#include "../lib/discard.h"
#include <sys/mman.h>

static void read_only(char *p, size_t len)
{
    EXPECT_CALL(mprotect(p, len, PROT_READ));
}

static void dontneed(char *p, size_t len)
{
    EXPECT_CALL(madvise(p, len, MADV_DONTNEED));
}

int main(void)
{
    struct edmtest_counters before;
    char *p;

    edmtest_begin("kernel_07_readonly_dontneed", 120);
    edmtest_pressure();
    p = edmtest_map(DISCARD_LEN);
    edmtest_fill(p, DISCARD_LEN, 1);
    read_only(p, DISCARD_LEN);
    before = edmtest_now();
    for (int i = 0; i < 20; i++) {
        edmtest_evict(p, DISCARD_LEN);
        edmtest_expect(p, DISCARD_LEN, 1, "read-only pages");
    }
    edmtest_came_back(&before, 20 * DISCARD_LEN / EDMTEST_PAGE / 2);
    discard_rounds(600, read_only, dontneed);
    edmtest_expect(p, DISCARD_LEN, 1, "read-only pages at the end");
    edmtest_ok();
}
