/*
 * paging MIB distinct|half|fits OPS: what paging costs. One thread; private memory from malloc.
 *
 * fill    writes every page once, whole (distinct: no two words alike; half: compresses 2:1)
 * random  OPS times: reads and writes a word of a page chosen at random
 * scan    reads a word of every page in order
 * Prints microseconds per page or operation: fill random scan. Checks every word it read.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGE_WORDS 512

static double now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* The first word is the page's number, times two. */
static void fill(uint64_t *m, size_t pages, size_t random_words)
{
    uint64_t state = 88172645463325252u;

    for (size_t p = 0; p < pages; p++) {
        uint64_t *page = m + p * PAGE_WORDS;

        page[0] = p * 2;
        for (size_t i = 1; i < random_words; i++)
            page[i] = next(&state);
        for (size_t i = random_words; i < PAGE_WORDS; i++)
            page[i] = p;
    }
}

static uint64_t touch(uint64_t *m, size_t pages, size_t ops)
{
    uint64_t state = 362436069u, wrong = 0;

    for (size_t i = 0; i < ops; i++) {
        size_t p = next(&state) % pages;
        uint64_t *word = m + p * PAGE_WORDS;

        wrong += *word / 2 != p;
        *word ^= 1;
    }
    return wrong;
}

static uint64_t scan(const uint64_t *m, size_t pages)
{
    uint64_t wrong = 0;

    for (size_t p = 0; p < pages; p++)
        wrong += m[p * PAGE_WORDS] / 2 != p;
    return wrong;
}

int main(int argc, char **argv)
{
    size_t pages = argc > 3 ? strtoul(argv[1], NULL, 0) << 8 : 0;
    size_t ops = argc > 3 ? strtoul(argv[3], NULL, 0) : 0;
    size_t words = argc > 3 && strcmp(argv[2], "half") == 0 ? PAGE_WORDS / 2 : PAGE_WORDS;
    uint64_t *m, wrong;
    double t[4];

    if (!pages || !ops || !(m = aligned_alloc(2u << 20, pages << 12))) {
        fprintf(stderr, "usage: paging MIB distinct|half OPS (and enough memory)\n");
        return 2;
    }
    t[0] = now_us();
    fill(m, pages, words);
    t[1] = now_us();
    wrong = touch(m, pages, ops);
    t[2] = now_us();
    wrong += scan(m, pages);
    t[3] = now_us();
    if (wrong) {
        fprintf(stderr, "paging: %" PRIu64 " words are wrong\n", wrong);
        return 1;
    }
    printf("%.4f %.4f %.4f\n", (t[1] - t[0]) / (double)pages, (t[2] - t[1]) / (double)ops,
           (t[3] - t[2]) / (double)pages);
    return 0;
}
