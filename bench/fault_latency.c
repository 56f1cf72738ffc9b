/*
 * fault_latency MIB TOUCHES [PAUSE]: fills MIB MiB of private memory, then reads a word of TOUCHES
 * pages chosen at random, with PAUSE ms of rest before each, and scans all of it. Prints the 10th,
 * 50th and 90th percentile of the touches that took longer than 4 us (those found missing) in us,
 * how many they were, GB/s of the scan, and the touches' 99th percentile.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

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

int main(int argc, char **argv)
{
    size_t pages = argc > 2 ? strtoul(argv[1], NULL, 10) << 8 : 0, n = 0, wrong = 0;
    size_t touches = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    unsigned long pause = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;
    const struct timespec rest = {.tv_sec = (time_t)(pause / 1000),
                                  .tv_nsec = (long)(pause % 1000) * 1000000};
    uint64_t state = 88172645463325252u;
    double *took = malloc((touches + 1) * sizeof(*took));
    uint64_t *m =
        mmap(NULL, pages << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!pages || m == MAP_FAILED || !took)
        return 2;
    for (size_t i = 0; i < pages << 9; i++)
        m[i] = i * 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < touches; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        size_t at = (size_t)(state % pages) << 9;
        if (pause)
            nanosleep(&rest, NULL);
        double start = now_us();
        wrong += *(volatile uint64_t *)(m + at) != at * 0x9e3779b97f4a7c15u;
        double t = now_us() - start;
        if (t > 4)
            took[n++] = t;
    }
    double start = now_us();
    for (size_t at = 0; at < pages << 9; at += 512)
        wrong += *(volatile uint64_t *)(m + at) != at * 0x9e3779b97f4a7c15u;
    double scan = (double)(pages << 12) / (now_us() - start) / 1e3;
    qsort(took, n, sizeof(*took), by_size);
    printf("%.2f %.2f %.2f %zu %.3f %.2f\n", n ? took[n / 10] : 0, n ? took[n / 2] : 0,
           n ? took[n / 10 * 9] : 0, n, scan, n ? took[n * 99 / 100] : 0);
    return wrong != 0;
}
