/*
 * Threads that map, write, check, resize and unmap at the same time, and malloc and free each
 * other's memory: no page is ever in two hands, new memory is zero. Runs with and without the shim.
 *
 *     hooks_threads [ROUNDS]
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#define THREADS 32
#define MOST 40
#define SHARED 64

static long rounds = 2000;
static _Atomic(uint64_t *) shared[SHARED];

__attribute__((noreturn)) static void fail(const char *what, const void *at)
{
    dprintf(1, "hooks_threads: %s at %p\n", what, at);
    _exit(1);
}

static uint32_t below(uint64_t *seed, uint32_t n)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return (uint32_t)(*seed >> 24) % n;
}

static void check(const char *p, size_t from, size_t to, uint64_t want)
{
    for (size_t i = from; i < to; i++) {
        const uint64_t *w = (const uint64_t *)(p + i * PAGE);
        if (w[0] != want || w[511] != want)
            fail("wrong contents", w);
    }
}

static void fill(char *p, size_t from, size_t to, uint64_t value)
{
    for (size_t i = from; i < to; i++) {
        uint64_t *w = (uint64_t *)(p + i * PAGE);
        w[0] = w[511] = value;
    }
}

static void map_round(uint64_t *seed, uint64_t mine)
{
    size_t n = 2 + below(seed, MOST), cut = 1 + below(seed, (uint32_t)n - 1);
    char *p = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        fail("mmap", p);
    check(p, 0, n, 0);
    fill(p, 0, n, mine);
    switch (below(seed, 4)) {
    case 0:
        if (madvise(p, cut * PAGE, MADV_DONTNEED))
            fail("madvise", p);
        check(p, 0, cut, 0);
        check(p, cut, n, mine);
        break;
    case 1:
        p = mremap(p, n * PAGE, (n + cut) * PAGE, MREMAP_MAYMOVE);
        if (p == MAP_FAILED)
            fail("mremap", p);
        check(p, 0, n, mine);
        check(p, n, n + cut, 0);
        n += cut;
        break;
    case 2:
        if (munmap(p + cut * PAGE, (n - cut) * PAGE))
            fail("munmap", p);
        n = cut;
        check(p, 0, n, mine);
        break;
    default:
        if (mprotect(p, n * PAGE, PROT_READ))
            fail("mprotect", p);
        check(p, 0, n, mine);
    }
    if (munmap(p, n * PAGE))
        fail("munmap", p);
}

/* Blocks hold their size and a value at both ends; whoever finds one checks and frees it. */
static void heap_round(uint64_t *seed, uint64_t mine)
{
    size_t words = 2 + below(seed, below(seed, 16) ? 200 : 200000);
    uint64_t *p = below(seed, 2) ? malloc(words * 8) : calloc(words, 8);
    if (!p)
        fail("malloc", p);
    if (below(seed, 4) == 0) {
        words *= 2;
        p = realloc(p, words * 8);
        if (!p)
            fail("realloc", p);
    }
    p[0] = words;
    p[words - 1] = words ^ mine ^ (uintptr_t)p;
    if (words > 2)
        p[1] = mine;
    uint64_t *old = atomic_exchange(&shared[below(seed, SHARED)], p);
    if (!old)
        return;
    if (old[0] < 2 || old[old[0] - 1] != (old[0] ^ (old[0] > 2 ? old[1] : mine) ^ (uintptr_t)old)) {
        if (old[0] > 2)
            fail("wrong block", old);
    }
    free(old);
}

static void *run(void *arg)
{
    uint64_t seed = 88172645463325252ull + (uintptr_t)arg * 2654435761u;
    for (long i = 0; i < rounds; i++) {
        map_round(&seed, (uintptr_t)arg * 1000003 + (uint64_t)i + 1);
        heap_round(&seed, (uintptr_t)arg + 1);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t t[THREADS];
    if (argc > 1)
        rounds = atol(argv[1]);
    for (uintptr_t i = 0; i < THREADS; i++)
        if (pthread_create(&t[i], NULL, run, (void *)i))
            fail("pthread_create", NULL);
    for (int i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    puts("ok");
    return 0;
}
