/*
 * stream MIB ROUNDS: copy, scale, add and triad over three static arrays of MIB MiB together, in
 * the manner of McCalpin's STREAM; best of ROUNDS, in GB/s. Checks the arrays at the end.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MOST ((size_t)256 << 17) /* words of an array: 256 MiB */
#define KERNELS 4

static double a[MOST], b[MOST], c[MOST];
static const size_t moved[KERNELS] = {2, 2, 3, 3}; /* words that a kernel reads and writes */

static double now_s(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void run(int kernel, size_t n)
{
    size_t i = 0;

    if (kernel == 0)
        for (; i < n; i++)
            c[i] = a[i];
    else if (kernel == 1)
        for (; i < n; i++)
            b[i] = 3 * c[i];
    else if (kernel == 2)
        for (; i < n; i++)
            c[i] = a[i] + b[i];
    else
        for (; i < n; i++)
            a[i] = b[i] + 3 * c[i];
}

int main(int argc, char **argv)
{
    size_t n = argc > 2 ? (strtoul(argv[1], NULL, 0) << 17) / 3 : 0;
    int rounds = argc > 2 ? atoi(argv[2]) : 0;
    double best[KERNELS] = {0}, value = 1;

    if (!n || n > MOST || rounds <= 0) {
        fprintf(stderr, "usage: stream MIB ROUNDS (at most 768 MiB)\n");
        return 2;
    }
    for (size_t i = 0; i < n; i++)
        a[i] = 1;
    for (int r = 0; r < rounds; r++) {
        for (int k = 0; k < KERNELS; k++) {
            double begin = now_s();
            run(k, n);
            double rate = (double)(moved[k] * n * sizeof(double)) / (now_s() - begin) / 1e9;
            best[k] = rate > best[k] ? rate : best[k];
        }
        value = 15 * value; /* b = 3a, c = 4a, a = 15a */
    }
    for (size_t i = 0; i < n; i++)
        if (fabs(a[i] / value - 1) > 1e-9) {
            fprintf(stderr, "stream: a[%zu] is wrong\n", i);
            return 1;
        }
    printf("%.3f %.3f %.3f %.3f\n", best[0], best[1], best[2], best[3]);
    return 0;
}
