/* Rule 28: a program that limits its own address space can still use what it allowed itself. */
#include "../lib/edmtest.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

int main(void)
{
    struct rlimit limit = {1ul << 30, 1ul << 30}, seen;
    size_t len;
    char *p;

    edmtest_begin("kernel_28_rlimit_as", 60);
    edmtest_pressure();
    EXPECT_CALL(setrlimit(RLIMIT_AS, &limit));
    EXPECT_CALL(getrlimit(RLIMIT_AS, &seen));
    EXPECT(seen.rlim_cur == limit.rlim_cur, "getrlimit says %lu", seen.rlim_cur);
    len = 2 * edmtest_budget();
    p = edmtest_map(len);
    edmtest_fill(p, len, 1);
    edmtest_expect(p, len, 1, "mapped under the limit");
    EXPECT(malloc(64 * EDMTEST_MIB), "malloc under the limit");
    p = mmap(NULL, 2ul << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
             -1, 0);
    EXPECT(p == MAP_FAILED && errno == ENOMEM, "a mapping above the limit was not refused");
    edmtest_pressure_check();
    edmtest_ok();
}
