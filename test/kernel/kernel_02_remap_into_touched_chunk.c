/*
 * Rule 2: stored pages are moved into a chunk in which another thread takes faults at the same
 * moment, so that the chunk may be leased with the move not yet known: they must not be zeros.
 */
#include "../lib/edmtest.h"
#include <pthread.h>
#include <sys/mman.h>

#define CHUNK (2 * EDMTEST_MIB)
#define PART (16 * EDMTEST_PAGE)
#define ROUNDS 300

static char *volatile target;
static pthread_barrier_t barrier;

static void *toucher(void *arg)
{
    for (int round = 0; round < ROUNDS; round++) {
        pthread_barrier_wait(&barrier);
        for (size_t i = 0; i < CHUNK; i += EDMTEST_PAGE)
            if (i < CHUNK / 2 || i >= CHUNK / 2 + PART)
                *(uint64_t *)(target + i) = i + 1;
        pthread_barrier_wait(&barrier);
    }
    return arg;
}

int main(void)
{
    struct edmtest_counters before, after;
    pthread_t t;

    edmtest_begin("kernel_02_remap_into_touched_chunk", 120);
    edmtest_pressure();
    pthread_barrier_init(&barrier, NULL, 2);
    before = edmtest_now();
    EXPECT(pthread_create(&t, NULL, toucher, NULL) == 0, "pthread_create");
    for (uint64_t round = 0; round < ROUNDS; round++) {
        char *room = edmtest_map(2 * CHUNK), *source = edmtest_map(PART), *to;

        target = (char *)(((uintptr_t)room + CHUNK - 1) & ~(CHUNK - 1));
        to = target + CHUNK / 2;
        edmtest_fill(source, PART, round);
        edmtest_evict(source, PART);
        pthread_barrier_wait(&barrier);
        EXPECT(mremap(source, PART, PART, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap: %m");
        edmtest_expect(to, PART, round, "moved pages");
        pthread_barrier_wait(&barrier);
        edmtest_expect(to, PART, round, "moved pages, later");
        for (size_t i = 0; i < CHUNK; i += EDMTEST_PAGE)
            if (i < CHUNK / 2 || i >= CHUNK / 2 + PART)
                EXPECT(*(uint64_t *)(target + i) == i + 1, "neighbour at %zu", i);
        EXPECT_CALL(munmap(room, 2 * CHUNK));
    }
    pthread_join(t, NULL);
    after = edmtest_now();
    EXPECT(edmtest_native() || after.remaps >= before.remaps + ROUNDS, "%lu remap events",
           after.remaps - before.remaps);
    edmtest_ok();
}
