/*
 * Rule 36: a thread moves memory away by a raw mremap; before the events of that call are all told,
 * another thread moves memory of its own into the hole. Both must keep their contents, in memory or
 * evicted.
 */
#include "../lib/edmtest.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PART (16 * EDMTEST_PAGE)
#define ROUNDS 200

static char *hole, *away;
static pthread_barrier_t barrier;

/* libc's would tell the server beforehand. */
static char *raw_move(char *from, char *to)
{
    char *ret;
    register long r10 __asm__("r10") = MREMAP_MAYMOVE | MREMAP_FIXED;
    register long r8 __asm__("r8") = (long)to;

    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(SYS_mremap), "D"(from), "S"(PART), "d"(PART), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return ret;
}

static void *leaver(void *arg)
{
    for (int round = 0; round < ROUNDS; round++) {
        pthread_barrier_wait(&barrier);
        EXPECT(raw_move(hole, away) == away, "raw mremap out of %p", (void *)hole);
        pthread_barrier_wait(&barrier);
    }
    return arg;
}

/* Fails with ENOMEM once nothing is mapped there. */
static bool is_mapped(char *p)
{
    unsigned char there[PART / EDMTEST_PAGE];

    return mincore(p, PART, there) == 0;
}

static void check(uint64_t round)
{
    edmtest_expect(hole, PART, round + ROUNDS, "what came into the hole");
    edmtest_expect(away, PART, round, "what was there before");
}

int main(void)
{
    struct edmtest_counters before, after;
    pthread_t t;

    edmtest_begin("kernel_36_late_events", 120);
    edmtest_pressure();
    pthread_barrier_init(&barrier, NULL, 2);
    before = edmtest_now();
    EXPECT(pthread_create(&t, NULL, leaver, NULL) == 0, "pthread_create");
    for (uint64_t round = 0; round < ROUNDS; round++) {
        char *source = edmtest_map(PART);

        hole = edmtest_map(PART);
        away = edmtest_map(PART);
        edmtest_fill(hole, PART, round);
        edmtest_fill(source, PART, round + ROUNDS);
        if (round % 2)
            edmtest_evict(hole, PART);
        if (round % 4 < 2)
            edmtest_evict(source, PART);
        pthread_barrier_wait(&barrier);
        while (is_mapped(hole))
            ;
        EXPECT(raw_move(source, hole) == hole, "raw mremap into %p", (void *)hole);
        pthread_barrier_wait(&barrier);
        check(round);
        edmtest_evict(hole, PART);
        edmtest_evict(away, PART);
        check(round);
        EXPECT_CALL(munmap(hole, PART));
        EXPECT_CALL(munmap(away, PART));
    }
    pthread_join(t, NULL);
    after = edmtest_now();
    EXPECT(edmtest_native() || after.remaps >= before.remaps + 2 * ROUNDS, "%lu remap events",
           after.remaps - before.remaps);
    edmtest_ok();
}
