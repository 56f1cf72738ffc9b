/* Evicted memory keeps its rights: read-only can be read, nothing else; and all come back. */
#include "../lib/edmtest.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#define LEN (64 * EDMTEST_PAGE)

static sigjmp_buf after_fault;
static volatile int last_signal;

static void handler(int sig)
{
    last_signal = sig;
    siglongjmp(after_fault, 1);
}

static bool can(char *at, bool write_access)
{
    volatile char *v = at;

    last_signal = 0;
    if (sigsetjmp(after_fault, 1) == 0) {
        char c = *v;

        if (write_access)
            *v = c;
    }
    EXPECT(last_signal == 0 || last_signal == SIGSEGV, "signal %d", last_signal);
    return last_signal == 0;
}

int main(void)
{
    struct edmtest_counters before;
    char *p;

    edmtest_begin("faults_protection", 60);
    signal(SIGSEGV, handler);
    signal(SIGBUS, handler);
    p = edmtest_map(LEN);
    edmtest_fill(p, LEN, 1);
    edmtest_pressure();
    edmtest_evict(p, LEN);
    before = edmtest_now();
    EXPECT_CALL(mprotect(p, LEN, PROT_READ));
    EXPECT(can(p, false) && !can(p + 4096, true), "wrong rights on read-only memory");
    edmtest_expect(p, LEN, 1, "read-only");
    edmtest_evict(p, LEN); /* read-only pages must be evictable too */
    edmtest_expect(p, LEN, 1, "evicted while read-only");
    edmtest_evict(p, LEN);
    EXPECT_CALL(mprotect(p, LEN, PROT_NONE));
    EXPECT(!can(p, false), "PROT_NONE memory can be read");
    EXPECT_CALL(mprotect(p, LEN / 2, PROT_READ | PROT_WRITE));
    EXPECT(can(p, true) && !can(p + LEN / 2, false), "wrong rights");
    EXPECT_CALL(mprotect(p, LEN, PROT_READ | PROT_WRITE));
    edmtest_expect(p, LEN, 1, "at the end");
    edmtest_came_back(&before, LEN / EDMTEST_PAGE);
    EXPECT_CALL(munmap(p, LEN / 2));
    EXPECT(!can(p, false) && can(p + LEN / 2, true), "unmapped memory can be read");
    edmtest_pressure_check();
    edmtest_ok();
}
