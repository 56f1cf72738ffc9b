/*
 * churn MIB ROUNDS: a program that lives on its allocator and fits into its budget. Keeps blocks of
 * 16 bytes to 256 KiB, MIB MiB in all, replaces them at random, reads and writes them; now and then
 * a large one comes and goes. Prints seconds.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BLOCKS 20000

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Most blocks are small, most memory is in large ones. */
static size_t draw_size(uint64_t *state, size_t mean)
{
    size_t most = (size_t)16 << next(state) % 15;

    return (most + next(state) % most) * mean / 52000 + 16;
}

static int replace(unsigned char **blocks, size_t *sizes, size_t i, size_t size)
{
    if (blocks[i] && blocks[i][sizes[i] - 1] != (unsigned char)i)
        return -1;
    free(blocks[i]);
    blocks[i] = malloc(size);
    if (!blocks[i])
        return -1;
    memset(blocks[i], (int)(i & 0xff), size);
    sizes[i] = size;
    return 0;
}

static int large(size_t size)
{
    unsigned char *p = calloc(1, size);
    int bad = !p;

    for (size_t i = 0; p && i < size; i += 4096)
        bad |= p[i]++ != 0;
    free(p);
    return bad;
}

int main(int argc, char **argv)
{
    static unsigned char *blocks[BLOCKS];
    static size_t sizes[BLOCKS];
    size_t mean = (argc > 2 ? strtoul(argv[1], NULL, 0) << 20 : 0) / BLOCKS;
    long rounds = argc > 2 ? atol(argv[2]) : 0;
    uint64_t state = 88172645463325252u;
    struct timespec a, b;

    if (!mean || rounds <= 0) {
        fprintf(stderr, "usage: churn MIB ROUNDS\n");
        return 2;
    }
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (size_t i = 0; i < BLOCKS; i++)
        if (replace(blocks, sizes, i, draw_size(&state, mean)))
            return 1;
    for (long r = 0; r < rounds; r++) {
        size_t i = next(&state) % BLOCKS;

        if (replace(blocks, sizes, i, draw_size(&state, mean)))
            return 1;
        if (r % 5000 == 0 && large((size_t)8 << 20))
            return 1;
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("%.4f\n", (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9);
    return 0;
}
