/* A signal handler whose alternate stack is evicted; the kernel writes its frame there. */
#include "../lib/edmtest.h"
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#define LEN (32 * EDMTEST_PAGE)

static char *stack;
static volatile int ran, depth;

__attribute__((noinline)) static int deep(int n)
{
    volatile char room[3000];

    memset((char *)room, n, sizeof(room));
    return n == 0 ? room[0] : deep(n - 1) + (room[2999] == (char)n ? 0 : 1);
}

static void handler(int sig, siginfo_t *info, void *context)
{
    char here;

    (void)sig, (void)info, (void)context;
    if (&here < stack || &here >= stack + LEN)
        return;
    ran++;
    depth += deep(20);
}

int main(void)
{
    struct sigaction act = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct edmtest_counters before;
    stack_t alt = {.ss_size = LEN};

    edmtest_begin("faults_sigaltstack", 60);
    stack = edmtest_map(LEN);
    alt.ss_sp = stack;
    act.sa_sigaction = handler;
    EXPECT_CALL(sigaltstack(&alt, NULL));
    EXPECT_CALL(sigaction(SIGUSR1, &act, NULL));
    raise(SIGUSR1);
    EXPECT(ran == 1, "handler did not run on its stack");
    edmtest_pressure();
    before = edmtest_now();
    for (int i = 0; i < 20; i++) {
        edmtest_evict(stack, LEN);
        raise(SIGUSR1);
        EXPECT(ran == i + 2, "handler did not run on its evicted stack");
    }
    EXPECT(depth == 0, "the stack lost bytes");
    edmtest_came_back(&before, 20);
    edmtest_ok();
}
