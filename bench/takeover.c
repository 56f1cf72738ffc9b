/*
 * takeover MIB: memory of so many MiB, filled, then a page of it chosen at random is read every
 * millisecond. Prints "filled", and for every read that took longer than 50 ms how many ms. Ends
 * with status 1 when a page is not what it was. Runs until it is ended.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE_WORDS 512
#define LONG_MS 50

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static uint64_t word_of(size_t page, size_t i)
{
    return (page * PAGE_WORDS + i) * 0x9e3779b97f4a7c15u;
}

static int read_for_ever(const volatile uint64_t *m, size_t pages)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    uint64_t state = 88172645463325252u;
    for (;;) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        size_t p = state % pages;
        double began = now_ms();
        if (m[p * PAGE_WORDS + 7] != word_of(p, 7))
            return 1;
        double took = now_ms() - began;
        if (took > LONG_MS)
            printf("%.0f\n", took);
        nanosleep(&pause, NULL);
    }
}

int main(int argc, char **argv)
{
    size_t pages = argc == 2 ? strtoul(argv[1], NULL, 0) << 8 : 0;
    uint64_t *m = mmap(NULL, pages * PAGE_WORDS * sizeof(*m), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED) {
        fprintf(stderr, "usage: takeover MIB\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t p = 0; p < pages; p++)
        for (size_t i = 0; i < PAGE_WORDS; i++)
            m[p * PAGE_WORDS + i] = word_of(p, i);
    puts("filled");
    return read_for_ever(m, pages);
}
