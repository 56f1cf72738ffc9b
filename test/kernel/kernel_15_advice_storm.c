/* Rule 15: threads in loops of madvise do not starve the faults of another. */
#include "../lib/edmtest.h"
#include <pthread.h>
#include <sys/mman.h>

#define THREADS 8
#define LEN (256 * EDMTEST_PAGE)
#define ROUNDS 4

static volatile bool stop;

static void *storm(void *arg)
{
    char *p = edmtest_map(16 * EDMTEST_PAGE);

    while (!stop) {
        *p = 1;
        EXPECT_CALL(madvise(p, 16 * EDMTEST_PAGE, MADV_DONTNEED));
    }
    return arg;
}

int main(void)
{
    struct edmtest_counters before;
    pthread_t t[THREADS];
    char *p;

    edmtest_begin("kernel_15_advice_storm", 60);
    edmtest_pressure();
    p = edmtest_map(LEN);
    edmtest_fill(p, LEN, 1);
    edmtest_evict(p, LEN);
    before = edmtest_now();
    for (size_t i = 0; i < THREADS; i++)
        EXPECT(pthread_create(&t[i], NULL, storm, NULL) == 0, "pthread_create");
    for (uint64_t round = 0; round < ROUNDS; round++) {
        edmtest_expect(p, LEN, 1 + round, "in the storm");
        edmtest_fill(p, LEN, 2 + round);
        edmtest_evict(p, LEN);
    }
    stop = true;
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    edmtest_expect(p, LEN, 1 + ROUNDS, "after the storm");
    edmtest_came_back(&before, ROUNDS * LEN / EDMTEST_PAGE);
    edmtest_ok();
}
