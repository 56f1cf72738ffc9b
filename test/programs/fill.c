/*
 * fill MIB THREADS CHILDREN: fills MIB MiB of private memory as fast as it can, by THREADS threads
 * at a time; then forks CHILDREN children that fill as much again each and check what they
 * inherited; checks all of it. Prints a sum.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct part {
    uint64_t *words;
    size_t count;
    uint64_t seed, wrong;
    pthread_t thread;
};

static uint64_t word_of(uint64_t seed, size_t i)
{
    uint64_t x = (seed << 40 | i) * 0x9e3779b97f4a7c15u;

    return x ^ x >> 29;
}

static void *fill_part(void *arg)
{
    struct part *p = arg;

    for (size_t i = 0; i < p->count; i++)
        p->words[i] = word_of(p->seed, i);
    return NULL;
}

static void *check_part(void *arg)
{
    struct part *p = arg;

    p->wrong = 0;
    for (size_t i = 0; i < p->count; i++)
        p->wrong += p->words[i] != word_of(p->seed, i);
    return NULL;
}

static struct part *make_parts(size_t bytes, unsigned threads, uint64_t seed)
{
    struct part *parts = calloc(threads, sizeof(*parts));

    for (unsigned i = 0; i < threads; i++) {
        void *m =
            mmap(NULL, bytes / threads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (m == MAP_FAILED) {
            perror("mmap");
            exit(2);
        }
        parts[i] = (struct part){
            .words = m, .count = bytes / threads / sizeof(uint64_t), .seed = seed * 64 + i};
    }
    return parts;
}

static uint64_t each(struct part *parts, unsigned threads, void *(*run)(void *))
{
    uint64_t wrong = 0;

    for (unsigned i = 0; i < threads; i++)
        if (pthread_create(&parts[i].thread, NULL, run, &parts[i]))
            exit(2);
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(parts[i].thread, NULL);
        wrong += parts[i].wrong;
    }
    return wrong;
}

static int child(size_t bytes, unsigned threads, uint64_t seed, struct part *inherited)
{
    struct part *own = make_parts(bytes, threads, seed);

    each(own, threads, fill_part);
    return each(inherited, threads, check_part) || each(own, threads, check_part);
}

int main(int argc, char **argv)
{
    size_t bytes = argc > 1 ? strtoul(argv[1], NULL, 0) << 20 : 0;
    unsigned threads = argc > 2 ? (unsigned)atoi(argv[2]) : 0;
    int children = argc > 3 ? atoi(argv[3]) : 0;
    struct part *parts;
    uint64_t wrong;
    int bad = 0, status;

    if (!bytes || !threads || threads > 64) {
        fprintf(stderr, "usage: fill MIB THREADS [CHILDREN]\n");
        return 2;
    }
    parts = make_parts(bytes, threads, 1);
    each(parts, threads, fill_part);
    for (int i = 0; i < children; i++) {
        pid_t pid = fork();

        if (pid == 0)
            _exit(child(bytes, threads, (uint64_t)i + 2, parts));
        bad += pid < 0;
    }
    wrong = each(parts, threads, check_part);
    while (wait(&status) > 0)
        bad += status != 0;
    printf("%" PRIu64 " words wrong, %d children failed\n", wrong, bad);
    return wrong || bad;
}
