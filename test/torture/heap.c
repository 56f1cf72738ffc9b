/* malloc and its relatives. */
#include "torture.h"
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

static uint64_t block_word(const struct block *b, size_t i)
{
    return model_word(b->id, (uint32_t)(i / BLOCK_WORDS), 1, i % BLOCK_WORDS);
}

static void block_fill(struct block *b, size_t from)
{
    for (size_t i = from; i < b->size; i++)
        b->p[i] = (unsigned char)(block_word(b, i / 8) >> (i % 8 * 8));
}

static void block_verify(struct worker *w, const struct block *b, size_t len)
{
    w->words_verified += len / 8;
    for (size_t i = 0; i < len; i++)
        if (b->p[i] != (unsigned char)(block_word(b, i / 8) >> (i % 8 * 8)))
            torture_fail(w, (uint64_t)b->p + i,
                         "wrong byte %zu of a heap block of %zu bytes at %p: %02x", i, b->size,
                         (void *)b->p, b->p[i]);
}

static size_t random_size(struct worker *w)
{
    size_t limit = 16ul << worker_random(w, worker_chance(w, 5) ? 18 : 15);

    return 1 + worker_random(w, limit);
}

static void release(struct worker *w, struct block *b)
{
    block_verify(w, b, b->size);
    free(b->p);
    w->heap_used -= b->size;
    *b = (struct block){0};
}

static void expect_zero(struct worker *w, const struct block *b)
{
    for (size_t i = 0; i < b->size; i++)
        if (b->p[i])
            torture_fail(w, (uint64_t)b->p + i, "calloc gave memory that is not zero: %p + %zu",
                         (void *)b->p, i);
}

static void allocate(struct worker *w, struct block *b, size_t size)
{
    size_t align = 16ul << worker_random(w, 12);
    uint64_t kind = worker_random(w, 4);

    if (kind == 0)
        b->p = calloc(1, size);
    else if (kind == 1)
        b->p = malloc(size);
    else if (kind == 2)
        b->p = memalign(align, size);
    else if (posix_memalign((void **)&b->p, align, size))
        b->p = NULL;
    if (!b->p)
        torture_fail(w, 0, "no memory for %zu bytes", size);
    if (kind >= 2 && (uint64_t)b->p % align)
        torture_fail(w, 0, "%p is not aligned to %zu", (void *)b->p, align);
    if (malloc_usable_size(b->p) < size)
        torture_fail(w, 0, "%p has less than %zu usable bytes", (void *)b->p, size);
    b->size = size;
    w->heap_used += size;
    if (kind == 0)
        expect_zero(w, b);
    b->id = ++w->next_id << 8 | w->index;
    block_fill(b, 0);
}

static void resize(struct worker *w, struct block *b, size_t size)
{
    size_t kept = size < b->size ? size : b->size;
    unsigned char *p = realloc(b->p, size);

    if (!p)
        torture_fail(w, 0, "realloc to %zu bytes failed", size);
    w->heap_used += size - b->size;
    b->p = p;
    b->size = size;
    block_verify(w, b, kept);
    block_fill(b, kept);
}

bool op_heap(struct worker *w)
{
    struct block *b = &w->heap[worker_random(w, HEAP_SLOTS)];
    size_t size = random_size(w);

    if (w->heap_used + size > w->heap_max)
        size = 1 + worker_random(w, 64);
    if (!b->p)
        allocate(w, b, size);
    else if (worker_chance(w, 40))
        release(w, b);
    else if (worker_chance(w, 50))
        resize(w, b, size);
    else
        block_verify(w, b, b->size);
    return true;
}

void heap_verify(struct worker *w)
{
    for (uint32_t i = 0; i < HEAP_SLOTS; i++)
        block_verify(w, &w->heap[i], w->heap[i].size);
}

void heap_release(struct worker *w)
{
    for (uint32_t i = 0; i < HEAP_SLOTS; i++)
        if (w->heap[i].p)
            release(w, &w->heap[i]);
}
