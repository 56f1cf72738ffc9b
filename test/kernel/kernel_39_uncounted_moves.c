/*
 * Linux 6.18: UFFDIO_MOVE may move pages that it does not count, and then says EEXIST, when a page
 * table entry changes under it. Here a thread reads pages that have just been marked as not read
 * (MADV_COLD by a raw call, which is no business of the shim's), while they are evicted. No page
 * may be lost.
 */
#include "../lib/edmtest.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGES 64
#define LEN (PAGES * EDMTEST_PAGE)
#define AREAS 8
#define SECONDS 8

static char *areas[AREAS];
static atomic_uint area;
static atomic_bool stop;

/* The page of the area that is leaving which it meets is a matter of chance. */
static void *reader(void *arg)
{
    unsigned seed = 1;
    while (!stop) {
        const volatile char *p = areas[area];
        size_t from = (size_t)rand_r(&seed) % PAGES;
        syscall(SYS_madvise, (char *)areas[area], LEN, MADV_COLD);
        for (size_t i = 0; i < PAGES; i++)
            (void)p[(from + i) % PAGES * EDMTEST_PAGE];
    }
    return arg;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(void)
{
    struct edmtest_counters before;
    pthread_t t;
    unsigned rounds = 0;

    edmtest_begin("kernel_39_uncounted_moves", 60);
    edmtest_pressure();
    for (unsigned i = 0; i < AREAS; i++) {
        areas[i] = edmtest_map(LEN);
        edmtest_fill(areas[i], LEN, i);
    }
    before = edmtest_now();
    EXPECT(pthread_create(&t, NULL, reader, NULL) == 0, "pthread_create");
    for (double end = seconds() + SECONDS; seconds() < end; rounds++) {
        area = rounds % AREAS;
        EXPECT_CALL(madvise(areas[area], LEN, MADV_PAGEOUT));
        edmtest_expect(areas[area], LEN, area, "an area that was read while it left");
    }
    stop = true;
    pthread_join(t, NULL);
    for (unsigned i = 0; i < AREAS; i++)
        edmtest_expect(areas[i], LEN, i, "at the end");
    edmtest_came_back(&before, rounds);
    edmtest_ok();
}
