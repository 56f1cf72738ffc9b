/*
 * Rule 4: a late eviction takes newer data. Threads count up on pages that are evicted all the
 * time; each read must give the last value written.
 */
#include "../lib/edmtest.h"
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>

#define THREADS 3
#define PAGES 64ul
#define LEN (PAGES * EDMTEST_PAGE)
#define SECONDS 8

static char *p;
static volatile bool stop;

static void *counter(void *arg)
{
    uint64_t me = (uint64_t)arg, n = 0;

    for (; !stop; n++)
        for (size_t i = 0; i < PAGES; i++) {
            volatile uint64_t *w = (volatile uint64_t *)(p + i * EDMTEST_PAGE) + 64 * me;

            EXPECT(*w == n, "thread %lu page %zu: found %lu, wrote %lu", me, i, *w, n);
            *w = n + 1;
        }
    return (void *)n;
}

int main(void)
{
    struct timespec start, now;
    struct edmtest_counters before;
    pthread_t t[THREADS];
    void *rounds[THREADS];

    edmtest_begin("kernel_04_writes_while_evicting", 90);
    p = edmtest_map(LEN);
    edmtest_pressure();
    before = edmtest_now();
    for (size_t i = 0; i < THREADS; i++)
        EXPECT(pthread_create(&t[i], NULL, counter, (void *)i) == 0, "pthread_create");
    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        EXPECT_CALL(madvise(p, LEN, MADV_PAGEOUT));
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - start.tv_sec < SECONDS);
    stop = true;
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(t[i], &rounds[i]);
    for (size_t i = 0; i < THREADS; i++)
        for (size_t k = 0; k < PAGES; k++)
            EXPECT(((uint64_t *)(p + k * EDMTEST_PAGE))[64 * i] == (uint64_t)rounds[i],
                   "last value of thread %zu on page %zu", i, k);
    edmtest_came_back(&before, 10 * PAGES);
    edmtest_ok();
}
