/*
 * paging MIB distinct|half OPS [THREADS [PHASE...]]: what paging costs. Private memory from malloc,
 * shared by THREADS threads (default 1). The phases run in the order given (default: fill random
 * scan):
 *
 * touch   writes one word of every page (its first touch); only by itself, and it ends there
 * fill    writes every page once, whole (distinct: no two words alike; half: compresses 2:1)
 * random  OPS times: reads and writes a word of a page chosen at random
 * scan    reads a word of every page in order
 * stride  reads a word of every 17th page, 17 times over, so that all are read
 * zipf    4 times: OPS/4 reads and writes, of pages chosen by Zipf's law (a few are hot), then a
 *         scan of a quarter of the memory, which a good policy does not keep
 * chase   OPS/4 times: reads in a page which page is next; each is known only when the last came
 * Prints for each phase microseconds per page or operation, by the clock, all threads together.
 * Every word that is read is checked.
 */
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGE_WORDS 512
#define THREADS_MAX 8
#define NEXT_WORD THREADS_MAX /* where the chase goes on; before it, a word for each thread */
#define STRIDE 17
#define ROUNDS 4
#define THETA 0.99

struct worker {
    pthread_t thread;
    uint64_t (*phase)(struct worker *w);
    size_t id, first, end, count; /* its pages, and what it did */
    uint64_t wrong, state;
};

static uint64_t *memory;
static uint32_t *following; /* page p is followed by page following[p] */
static size_t pages, ops, threads = 1, random_words = PAGE_WORDS;
static double zeta_all, zeta_two;

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

/* A thread's own word of a page holds the page's number, times two. */
static uint64_t look(const struct worker *w, size_t page)
{
    return memory[page * PAGE_WORDS + w->id] / 2 != page;
}

static uint64_t change(const struct worker *w, size_t page)
{
    uint64_t wrong = look(w, page);

    memory[page * PAGE_WORDS + w->id] ^= 1;
    return wrong;
}

static uint64_t do_touch(struct worker *w)
{
    for (size_t p = w->first; p < w->end; p++)
        memory[p * PAGE_WORDS] = p * 2;
    w->count = w->end - w->first;
    return 0;
}

static uint64_t do_fill(struct worker *w)
{
    for (size_t p = w->first; p < w->end; p++) {
        uint64_t *page = memory + p * PAGE_WORDS;

        for (size_t i = 0; i < THREADS_MAX; i++)
            page[i] = p * 2;
        page[NEXT_WORD] = following ? following[p] : p;
        for (size_t i = NEXT_WORD + 1; i < random_words; i++)
            page[i] = next(&w->state);
        for (size_t i = random_words; i < PAGE_WORDS; i++)
            page[i] = p;
    }
    w->count = w->end - w->first;
    return 0;
}

static uint64_t do_random(struct worker *w)
{
    uint64_t wrong = 0;

    for (w->count = 0; w->count < ops / threads; w->count++)
        wrong += change(w, next(&w->state) % pages);
    return wrong;
}

static uint64_t do_scan(struct worker *w)
{
    uint64_t wrong = 0;

    for (size_t p = w->first; p < w->end; p++)
        wrong += look(w, p);
    w->count = w->end - w->first;
    return wrong;
}

static uint64_t do_stride(struct worker *w)
{
    uint64_t wrong = 0;

    for (size_t offset = 0; offset < STRIDE; offset++)
        for (size_t p = w->first + offset; p < w->end; p += STRIDE)
            wrong += look(w, p);
    w->count = w->end - w->first;
    return wrong;
}

/* Gray et al., Quickly generating billion-record synthetic databases, 1994, figure 4. */
static size_t zipf(uint64_t *state)
{
    double u = (double)(next(state) >> 11) / 9007199254740992.0, n = (double)pages;
    double eta = (1 - pow(2 / n, 1 - THETA)) / (1 - zeta_two / zeta_all);

    if (u * zeta_all < 1)
        return 0;
    if (u * zeta_all < zeta_two)
        return 1;
    return (size_t)(n * pow(eta * u - eta + 1, 1 / (1 - THETA))) % pages;
}

static uint64_t do_zipf(struct worker *w)
{
    size_t quarter = pages / ROUNDS, share = quarter / threads, done = 0;
    uint64_t wrong = 0;

    for (size_t r = 0; r < ROUNDS; r++) {
        for (size_t i = 0; i < ops / threads / ROUNDS; i++) /* a prime spreads the hot pages */
            wrong += change(w, zipf(&w->state) * 2654435761u % pages);
        for (size_t i = 0; i < share; i++)
            wrong += look(w, r * quarter + w->id * share + i);
        done += ops / threads / ROUNDS + share;
    }
    w->count = done;
    return wrong;
}

static uint64_t do_chase(struct worker *w)
{
    uint64_t wrong = 0;
    size_t p = w->first;

    for (w->count = 0; w->count < ops / threads / 4; w->count++) {
        wrong += look(w, p);
        p = memory[p * PAGE_WORDS + NEXT_WORD] % pages;
    }
    return wrong;
}

static const struct {
    const char *name;
    uint64_t (*run)(struct worker *w);
} phases[] = {{"touch", do_touch},   {"fill", do_fill}, {"random", do_random}, {"scan", do_scan},
              {"stride", do_stride}, {"zipf", do_zipf}, {"chase", do_chase}};

static void *work(void *arg)
{
    struct worker *w = arg;

    w->wrong += w->phase(w);
    return NULL;
}

/* Microseconds per page or operation; below zero when the threads cannot be had. */
static double run(struct worker *workers, uint64_t (*phase)(struct worker *w))
{
    double begin = now_us();
    size_t count = 0;

    for (size_t i = 0; i < threads; i++) {
        workers[i].phase = phase;
        if (i && pthread_create(&workers[i].thread, NULL, work, &workers[i]))
            return -1;
    }
    work(&workers[0]);
    for (size_t i = 0; i < threads; i++) {
        if (i)
            pthread_join(workers[i].thread, NULL);
        count += workers[i].count;
    }
    return (now_us() - begin) / (double)(count ? count : 1);
}

/* One cycle through all pages (Sattolo), and what zipf() needs; before the clock runs. */
static int prepare(int chase)
{
    uint64_t state = 521288629u;

    for (size_t i = 1; i <= pages; i++)
        zeta_all += pow((double)i, -THETA);
    zeta_two = 1 + pow(2, -THETA);
    if (!chase)
        return 0;
    following = malloc(pages * sizeof(*following));
    for (size_t i = 0; following && i < pages; i++)
        following[i] = (uint32_t)i;
    for (size_t i = pages - 1; following && i > 0; i--) {
        size_t j = next(&state) % i;
        uint32_t t = following[i];

        following[i] = following[j];
        following[j] = t;
    }
    return following ? 0 : -1;
}

static int run_named(struct worker *workers, const char *name)
{
    double took = -1;

    for (size_t i = 0; i < sizeof(phases) / sizeof(phases[0]); i++)
        if (strcmp(phases[i].name, name) == 0)
            took = run(workers, phases[i].run);
    if (took < 0)
        fprintf(stderr, "paging: no phase %s, or no threads\n", name);
    else
        printf("%.4f ", took);
    return took < 0 ? -1 : 0;
}

int main(int argc, char **argv)
{
    static char *usual[] = {"fill", "random", "scan", NULL};
    static struct worker workers[THREADS_MAX];
    char **names = argc > 5 ? argv + 5 : usual;
    uint64_t wrong = 0;
    int chase = 0;

    pages = argc > 3 ? strtoul(argv[1], NULL, 0) << 8 : 0;
    ops = argc > 3 ? strtoul(argv[3], NULL, 0) : 0;
    threads = argc > 4 ? strtoul(argv[4], NULL, 0) : 1;
    random_words = argc > 2 && strcmp(argv[2], "half") == 0 ? PAGE_WORDS / 2 : PAGE_WORDS;
    for (char **n = names; *n; n++)
        chase |= strcmp(*n, "chase") == 0;
    if (!pages || !ops || !threads || threads > THREADS_MAX || prepare(chase) ||
        !(memory = aligned_alloc(2u << 20, pages << 12))) {
        fprintf(stderr, "usage: paging MIB distinct|half OPS [THREADS [PHASE...]]\n");
        return 2;
    }
    for (size_t i = 0; i < threads; i++)
        workers[i] = (struct worker){.id = i,
                                     .first = pages * i / threads,
                                     .end = pages * (i + 1) / threads,
                                     .state = 88172645463325252u + i * 0x9e3779b97f4a7c15u};
    for (char **n = names; *n; n++)
        if (run_named(workers, *n))
            return 2;
    putchar('\n');
    for (size_t i = 0; i < threads; i++)
        wrong += workers[i].wrong;
    if (wrong)
        fprintf(stderr, "paging: %" PRIu64 " words are wrong\n", wrong);
    return wrong != 0;
}
