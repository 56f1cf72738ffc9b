/*
 * graph SCALE DEGREE ROUNDS: a graph of 2^SCALE vertices and DEGREE edges for each, drawn by the
 * R-MAT rule (Chakrabarti et al., 2004; a b c = .57 .19 .19, as in Graph500), stored both ways in
 * compressed rows; then ROUNDS breadth-first searches, each from another vertex and checked, and
 * ROUNDS steps of PageRank. Prints seconds: build, search, rank; then a digest of the results.
 */
#include <inttypes.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define UNSEEN UINT32_MAX
#define DAMPING 0.85

struct graph {
    size_t n, m; /* vertices; directed edges */
    uint64_t *row;
    uint32_t *to;
};

static double now_s(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* In each step one of four quarters of the matrix is chosen, with unequal chances. */
static void draw(uint64_t *state, unsigned scale, uint32_t *from, uint32_t *to)
{
    *from = *to = 0;
    for (unsigned i = 0; i < scale; i++) {
        unsigned r = (unsigned)(next(state) >> 40) % 100;

        *from = *from << 1 | (r >= 76);
        *to = *to << 1 | ((r >= 57 && r < 76) || r >= 95);
    }
    /* else low numbers were the popular ones, and lay side by side */
    *from = *from * 2654435761u & ((1u << scale) - 1);
    *to = *to * 2654435761u & ((1u << scale) - 1);
}

static int build(struct graph *g, unsigned scale, size_t degree)
{
    size_t drawn = degree << scale;
    uint32_t *list = malloc(drawn * 2 * sizeof(*list));
    uint64_t state = 88172645463325252u;

    g->n = (size_t)1 << scale;
    g->m = drawn * 2;
    g->row = calloc(g->n + 2, sizeof(*g->row));
    g->to = malloc(g->m * sizeof(*g->to));
    if (!list || !g->row || !g->to)
        return -1;
    for (size_t i = 0; i < drawn; i++) {
        draw(&state, scale, &list[2 * i], &list[2 * i + 1]);
        g->row[list[2 * i] + 2]++;
        g->row[list[2 * i + 1] + 2]++;
    }
    for (size_t v = 2; v < g->n + 2; v++)
        g->row[v] += g->row[v - 1];
    for (size_t i = 0; i < g->m;
         i++) /* row[v + 1] moves from the start of v's edges to their end */
        g->to[g->row[list[i] + 1]++] = list[i ^ 1];
    free(list);
    return 0;
}

static size_t search(const struct graph *g, uint32_t root, uint32_t *level, uint32_t *queue)
{
    size_t head = 0, tail = 1;

    memset(level, 0xff, g->n * sizeof(*level));
    level[root] = 0;
    queue[0] = root;
    while (head < tail) {
        uint32_t v = queue[head++];

        for (uint64_t e = g->row[v]; e < g->row[v + 1]; e++) {
            uint32_t w = g->to[e];

            if (level[w] == UNSEEN) {
                level[w] = level[v] + 1;
                queue[tail++] = w;
            }
        }
    }
    return tail;
}

/* Levels along an edge differ by one at most, and whom an edge reaches was seen. */
static int search_is_right(const struct graph *g, const uint32_t *level)
{
    for (size_t v = 0; v < g->n; v++)
        for (uint64_t e = g->row[v]; e < g->row[v + 1]; e++)
            if (level[v] != UNSEEN && level[g->to[e]] + 1 < level[v])
                return 0;
            else if ((level[v] == UNSEEN) != (level[g->to[e]] == UNSEEN))
                return 0;
    return 1;
}

/* One step; returns the sum of all ranks, which stays 1. */
static double rank_step(const struct graph *g, const double *old, double *new)
{
    double lost = 0, sum = 0;

    for (size_t v = 0; v < g->n; v++)
        lost += g->row[v] == g->row[v + 1] ? old[v] : 0;
    for (size_t v = 0; v < g->n; v++) {
        double in = 0;

        for (uint64_t e = g->row[v]; e < g->row[v + 1]; e++) {
            uint32_t w = g->to[e];
            in += old[w] / (double)(g->row[w + 1] - g->row[w]);
        }
        new[v] = (1 - DAMPING + DAMPING * lost) / (double)g->n + DAMPING *in;
        sum += new[v];
    }
    return sum;
}

static int searches(const struct graph *g, unsigned rounds, uint64_t *digest)
{
    uint32_t *level = malloc(g->n * sizeof(*level)), *queue = malloc(g->n * sizeof(*queue));
    int right = level && queue;

    for (unsigned r = 0; right && r < rounds; r++) {
        uint32_t root = g->to[g->m / rounds * r]; /* one that has edges */

        *digest = *digest * 31 + search(g, root, level, queue);
        right = r || search_is_right(g, level);
    }
    free(level);
    free(queue);
    return right ? 0 : -1;
}

static int ranks(const struct graph *g, unsigned rounds, uint64_t *digest)
{
    double *old = malloc(g->n * sizeof(*old)), *new = malloc(g->n * sizeof(*new)), sum = 1;

    for (size_t v = 0; old && v < g->n; v++)
        old[v] = 1 / (double)g->n;
    for (unsigned r = 0; old && new &&r < rounds; r++) {
        double *t = old;

        sum = rank_step(g, old, new);
        old = new;
        new = t;
    }
    for (size_t v = 0; old && new &&v < g->n; v++)
        *digest = *digest * 31 + (uint64_t)(old[v] * 1e15);
    int right = old && new &&fabs(sum - 1) < 1e-6;
    free(old);
    free(new);
    return right ? 0 : -1;
}

int main(int argc, char **argv)
{
    unsigned scale = argc > 3 ? (unsigned)atoi(argv[1]) : 0;
    size_t degree = argc > 3 ? strtoul(argv[2], NULL, 0) : 0;
    unsigned rounds = argc > 3 ? (unsigned)atoi(argv[3]) : 0;
    struct graph g;
    uint64_t digest = 0;
    double t[4];

    if (scale < 4 || scale > 30 || !degree || !rounds) {
        fprintf(stderr, "usage: graph SCALE DEGREE ROUNDS\n");
        return 2;
    }
    t[0] = now_s();
    int rc = build(&g, scale, degree);
    t[1] = now_s();
    rc = rc ? rc : searches(&g, rounds, &digest);
    t[2] = now_s();
    rc = rc ? rc : ranks(&g, rounds, &digest);
    t[3] = now_s();
    if (rc) {
        fprintf(stderr, "graph: not enough memory, or a result is wrong\n");
        return 1;
    }
    fprintf(stderr, "%.3f %.3f %.3f\n", t[1] - t[0], t[2] - t[1], t[3] - t[2]);
    printf("%016" PRIx64 "\n", digest);
    return 0;
}
