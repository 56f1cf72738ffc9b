#include "spt.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MID_BITS 13
#define MID_SIZE (1u << MID_BITS)
#define TOP_SIZE (1u << (47 - EDM_CHUNK_SHIFT - MID_BITS))
#define CHUNKS_MAX (1u << 22)

int spt_init(struct spt *t)
{
    memset(t, 0, sizeof(*t));
    t->top = calloc(TOP_SIZE, sizeof(*t->top));
    t->chunks = mmap(NULL, CHUNKS_MAX * sizeof(*t->chunks), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    t->cap = CHUNKS_MAX;
    if (!t->top || t->chunks == MAP_FAILED) {
        free(t->top);
        t->top = NULL;
        return -ENOMEM;
    }
    return 0;
}

void spt_fini(struct spt *t)
{
    if (!t || !t->top)
        return;
    for (uint32_t i = 0; i < t->nchunks; i++)
        munmap(t->chunks[i], sizeof(struct chunk));
    for (uint32_t i = 0; i < TOP_SIZE; i++)
        free(t->top[i]);
    free(t->top);
    munmap(t->chunks, CHUNKS_MAX * sizeof(*t->chunks));
    memset(t, 0, sizeof(*t));
}

static struct chunk *chunk_new(struct spt *t, uint64_t number)
{
    if (t->nchunks == t->cap)
        return NULL;
    struct chunk *c =
        mmap(NULL, sizeof(*c), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (c == MAP_FAILED)
        return NULL;
    c->addr = number << EDM_CHUNK_SHIFT;
    c->number = t->nchunks;
    t->chunks[t->nchunks++] = c;
    return c;
}

struct chunk *spt_chunk(struct spt *t, uint64_t addr, bool make)
{
    uint64_t number = addr >> EDM_CHUNK_SHIFT;
    uint64_t top = number >> MID_BITS;
    if (top >= TOP_SIZE)
        return NULL;
    struct chunk **mid = t->top[top];
    if (!mid) {
        if (!make)
            return NULL;
        mid = t->top[top] = calloc(MID_SIZE, sizeof(*mid));
        if (!mid)
            return NULL;
    }
    struct chunk **slot = &mid[number & (MID_SIZE - 1)];
    if (!*slot && make)
        *slot = chunk_new(t, number);
    return *slot;
}

void spt_set(struct chunk *c, struct page *p, enum page_state state)
{
    c->touched -= p->state != PAGE_NEW;
    c->foreign -= p->state == PAGE_FOREIGN;
    p->state = state;
    c->touched += p->state != PAGE_NEW;
    c->foreign += p->state == PAGE_FOREIGN;
}
