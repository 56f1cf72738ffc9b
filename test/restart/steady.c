/*
 * steady BYTES SECONDS: reads, checks and changes pages of memory at random until the time is over
 * (0: until SIGTERM), then checks all. Prints the longest that one access took.
 */
#include "../lib/edmtest.h"
#include <signal.h>
#include <stdlib.h>
#include <time.h>

static volatile sig_atomic_t stop;

static void on_term(int signal)
{
    (void)signal;
    stop = 1;
}

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void page_check(const char *p, const uint32_t *turns, size_t i)
{
    edmtest_expect(p + i * EDMTEST_PAGE, EDMTEST_PAGE, i << 32 | turns[i], "a page");
}

/* The next page, in runs of up to 64. */
static size_t page_next(uint64_t *rng, size_t i, size_t n)
{
    *rng = *rng * 6364136223846793005u + 1442695040888963407u;
    return *rng >> 58 ? (i + 1) % n : (*rng >> 20) % n;
}

int main(int argc, char **argv)
{
    size_t n = argc == 3 ? strtoul(argv[1], NULL, 10) / EDMTEST_PAGE : 0, i = 0;
    double seconds = argc == 3 ? atof(argv[2]) : 0, longest = 0;
    uint64_t rng = 1;

    edmtest_begin("steady", 300);
    EXPECT(n > 0, "usage: steady BYTES SECONDS");
    signal(SIGTERM, on_term);
    char *p = edmtest_map(n * EDMTEST_PAGE);
    uint32_t *turns = calloc(n, sizeof(*turns));
    EXPECT(turns, "out of memory");
    for (i = 0; i < n; i++)
        edmtest_fill(p + i * EDMTEST_PAGE, EDMTEST_PAGE, i << 32);
    for (double begin = now(), t = begin; !stop && (seconds == 0 || t < begin + seconds);) {
        i = page_next(&rng, i, n);
        page_check(p, turns, i);
        if (rng >> 40 & 1)
            edmtest_fill(p + i * EDMTEST_PAGE, EDMTEST_PAGE, i << 32 | ++turns[i]);
        double took = now() - t;
        t += took;
        longest = took > longest ? took : longest;
    }
    for (i = 0; i < n; i++)
        page_check(p, turns, i);
    printf("longest access %.3f s\n", longest);
    edmtest_ok();
}
