/*
 * sparse SPAN_MIB PAGES MAPPINGS TOUCHES: what a fault costs in large, sparse and cut-up address
 * space. PAGES pages lie at equal distances in SPAN_MIB MiB of private memory, which is MAPPINGS
 * mappings; each page is written once. Prints "ready"; for each line that it then reads, reads a
 * word of TOUCHES pages chosen at random, checks it, and prints the 50th and 99th percentile of the
 * touches that took longer than 4 us (those found missing), in us, how many they were, and the
 * seconds that all took. Ends with its input.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE ((size_t)4096)

static double now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int by_size(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

/* Every other one with an advice that nothing depends on: the kernel must keep them apart. */
static int cut(char *m, size_t size, size_t mappings)
{
    size_t each = size / mappings & ~(PAGE - 1);

    for (size_t i = 1; mappings > 1 && i < mappings; i += 2)
        if (madvise(m + i * each, each, MADV_NOHUGEPAGE))
            return -1;
    return 0;
}

static size_t touch(const char *m, size_t step, size_t pages, size_t touches, double *took)
{
    static uint64_t state = 88172645463325252u;
    size_t n = 0, wrong = 0;
    double begin = now_us();

    for (size_t i = 0; i < touches; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        size_t p = state % pages;
        double start = now_us();
        wrong += *(const volatile uint64_t *)(m + p * step) != p + 1;
        double t = now_us() - start;
        if (t > 4)
            took[n++] = t;
    }
    double all = (now_us() - begin) / 1e6;
    qsort(took, n, sizeof(*took), by_size);
    printf("%.2f %.2f %zu %.4f\n", n ? took[n / 2] : 0, n ? took[n * 99 / 100] : 0, n, all);
    return wrong;
}

int main(int argc, char **argv)
{
    size_t size = argc > 4 ? strtoul(argv[1], NULL, 0) << 20 : 0;
    size_t pages = argc > 4 ? strtoul(argv[2], NULL, 0) : 0;
    size_t mappings = argc > 4 ? strtoul(argv[3], NULL, 0) : 0;
    size_t touches = argc > 4 ? strtoul(argv[4], NULL, 0) : 0, wrong = 0;
    double *took = malloc((touches + 1) * sizeof(*took));
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char *m = size ? mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0) : MAP_FAILED;
    char line[16];

    if (m == MAP_FAILED || !took || !pages || !mappings || pages > size / PAGE ||
        mappings > size / PAGE || cut(m, size, mappings)) {
        fprintf(stderr, "usage: sparse SPAN_MIB PAGES MAPPINGS TOUCHES\n");
        return 2;
    }
    size_t step = size / pages & ~(PAGE - 1);
    for (size_t i = 0; i < pages; i++)
        *(uint64_t *)(m + i * step) = i + 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof(line), stdin))
        wrong += touch(m, step, pages, touches, took);
    return wrong != 0;
}
