/*
 * Rule 1: chunks leased while a fork is under way. Threads touch new memory all the time, so that
 * leases are taken and given back; every child must find what was written before its fork.
 */
#include "../lib/edmtest.h"
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#define THREADS 3
#define ROUNDS 25
#define PIECE (4 * EDMTEST_MIB)
#define STRIDE (16 * EDMTEST_PAGE)

static volatile bool stop;

/* New pieces, one word every few pages: each chunk is leased, then evicted in part. */
static void *toucher(void *arg)
{
    for (uint64_t round = 0; !stop; round++) {
        char *p = edmtest_map(PIECE);

        for (size_t i = 0; i < PIECE; i += STRIDE)
            *(uint64_t *)(p + i) = round + i;
        for (size_t i = 0; i < PIECE; i += STRIDE)
            EXPECT(*(uint64_t *)(p + i) == round + i, "thread: wrong word at %p", p + i);
        EXPECT_CALL(munmap(p, PIECE));
    }
    return arg;
}

int main(void)
{
    struct edmtest_counters before, after;
    pthread_t t[THREADS];
    char *pieces[ROUNDS];

    edmtest_begin("kernel_01_fork_while_leasing", 150);
    edmtest_pressure();
    before = edmtest_now();
    for (size_t i = 0; i < THREADS; i++)
        EXPECT(pthread_create(&t[i], NULL, toucher, NULL) == 0, "pthread_create");
    for (int round = 0; round < ROUNDS; round++) {
        pid_t pid;

        pieces[round] = edmtest_map(PIECE / 4);
        edmtest_fill(pieces[round], PIECE / 4, (uint64_t)round);
        EXPECT_CALL(pid = fork());
        if (pid == 0) {
            for (int i = 0; i <= round; i++)
                edmtest_expect(pieces[i], PIECE / 4, (uint64_t)i, "child");
            _exit(0);
        }
        edmtest_reap(pid, "child");
    }
    stop = true;
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    for (int i = 0; i < ROUNDS; i++)
        edmtest_expect(pieces[i], PIECE / 4, (uint64_t)i, "parent");
    after = edmtest_now();
    EXPECT(edmtest_native() || after.forks >= before.forks + ROUNDS, "%lu fork events",
           after.forks - before.forks);
    edmtest_ok();
}
