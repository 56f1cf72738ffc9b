/* Rule 17: the program unmaps memory, shared with a child or not, while it is being evicted. */
#include "../lib/edmtest.h"
#include <sys/mman.h>
#include <unistd.h>

#define LEN (256 * EDMTEST_PAGE)
#define ROUNDS 300

int main(void)
{
    edmtest_begin("kernel_17_unmap_while_evicting", 120);
    edmtest_pressure();
    for (uint64_t round = 0; round < ROUNDS; round++) {
        char *p = edmtest_map(LEN);
        pid_t pid = 0;

        edmtest_fill(p, LEN, round);
        if (round % 10 == 0) { /* shared pages: busy until they are made exclusive */
            EXPECT_CALL(pid = fork());
            if (pid == 0) {
                edmtest_expect(p, LEN, round, "child");
                _exit(0);
            }
        }
        EXPECT_CALL(madvise(p, LEN, MADV_PAGEOUT));
        if (round % 3 == 0)
            edmtest_expect(p, LEN / 2, round, "before munmap");
        EXPECT_CALL(munmap(p + (round % 4) * LEN / 8, LEN / 2));
        if (round % 4 == 0)
            EXPECT_CALL(munmap(p + LEN / 2, LEN / 2));
        else
            EXPECT_CALL(munmap(p, LEN));
        if (pid)
            edmtest_reap(pid, "child");
    }
    edmtest_pressure_check();
    edmtest_ok();
}
