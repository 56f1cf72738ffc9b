/* Many threads touch the same evicted pages at the same moment; nothing is lost or invented. */
#include "../lib/edmtest.h"
#include <pthread.h>
#include <sys/mman.h>

#define THREADS 8
#define PAGES 512ul
#define LEN (PAGES * EDMTEST_PAGE)
#define ROUNDS 30

static char *p;
static pthread_barrier_t barrier;

/* Each thread has one word on every page, and reads those of all others. */
static void *toucher(void *arg)
{
    uint64_t me = (uint64_t)arg;

    for (uint64_t round = 1; round <= ROUNDS; round++) {
        pthread_barrier_wait(&barrier);
        for (size_t i = 0; i < PAGES; i++) {
            volatile uint64_t *word = (volatile uint64_t *)(p + i * EDMTEST_PAGE) + me * 8;

            EXPECT(*word == (round == 1 ? 0 : (round - 1) * 1000 + me),
                   "thread %lu round %lu page %zu: %lu", me, round, i, *word);
            *word = round * 1000 + me;
        }
        pthread_barrier_wait(&barrier);
        if (me == 0)
            edmtest_evict(p, LEN);
    }
    return NULL;
}

int main(void)
{
    struct edmtest_counters before;
    pthread_t t[THREADS];

    edmtest_begin("faults_threads", 90);
    p = edmtest_map(LEN);
    edmtest_pressure();
    before = edmtest_now();
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (size_t i = 0; i < THREADS; i++)
        EXPECT(pthread_create(&t[i], NULL, toucher, (void *)i) == 0, "pthread_create");
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    edmtest_came_back(&before, (ROUNDS - 1) * PAGES);
    edmtest_pressure_check();
    edmtest_ok();
}
