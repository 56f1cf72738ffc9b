#include "spt.h"
#include "image.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MID_BITS 13
#define MID_SIZE (1u << MID_BITS)
#define TOP_SIZE (1u << (48 - EDM_CHUNK_SHIFT - MID_BITS))

/* The place of the pointer to a chunk, by its address. */
static struct chunk **chunk_slot(struct spt *t, uint64_t number, bool make)
{
    uint64_t top = number >> MID_BITS;
    if (top >= TOP_SIZE)
        return NULL;
    if (!t->top[top] && make)
        t->top[top] = calloc(MID_SIZE, sizeof(*t->top[top]));
    return t->top[top] ? &t->top[top][number & (MID_SIZE - 1)] : NULL;
}

int spt_init(struct spt *t, struct image *img)
{
    memset(t, 0, sizeof(*t));
    t->img = img;
    t->chunks = image_chunk(img, 0);
    t->top = calloc(TOP_SIZE, sizeof(*t->top));
    if (!t->top)
        return -ENOMEM;
    for (; t->nchunks < img->nchunks; t->nchunks++) {
        struct chunk *c = &t->chunks[t->nchunks];
        struct chunk **slot = chunk_slot(t, c->addr >> EDM_CHUNK_SHIFT, true);
        if (!slot) {
            spt_fini(t);
            return -ENOMEM;
        }
        *slot = c;
    }
    if (t->nchunks && t->nchunks < IMAGE_CHUNKS) /* what a dead server had begun to fill */
        memset(&t->chunks[t->nchunks], 0, sizeof(*t->chunks));
    return 0;
}

void spt_fini(struct spt *t)
{
    if (!t || !t->top)
        return;
    for (uint32_t i = 0; i < TOP_SIZE; i++)
        free(t->top[i]);
    free(t->top);
    memset(t, 0, sizeof(*t));
}

/* What the program has said of the chunk's pages before there was one. */
static void chunk_fill(const struct marks *m, struct chunk *c)
{
    const uint64_t start = c->addr >> EDM_PAGE_SHIFT, end = start + EDM_CHUNK_PAGES;
    for (uint64_t at = start; at < end;) {
        struct mark k = marks_at(m, at);
        uint64_t stop = k.end < end ? k.end : end;
        bool any = k.flags || k.pins;
        for (; any && at < stop; at++) {
            c->pages[at - start].flags = k.flags;
            c->pages[at - start].pins = k.pins;
            c->pinned += k.pins > 0;
        }
        at = stop;
    }
}

static struct chunk *chunk_new(struct spt *t, uint64_t number)
{
    if (t->nchunks == IMAGE_CHUNKS)
        return NULL;
    struct chunk *c = &t->chunks[t->nchunks];
    c->addr = number << EDM_CHUNK_SHIFT;
    c->number = t->nchunks;
    chunk_fill(&t->img->marks, c);
    image_order();
    t->img->nchunks = ++t->nchunks;
    return c;
}

struct chunk *spt_chunk(struct spt *t, uint64_t addr, bool make)
{
    uint64_t number = addr >> EDM_CHUNK_SHIFT;
    struct chunk **slot = chunk_slot(t, number, make);
    if (!slot)
        return NULL;
    if (!*slot && make)
        *slot = chunk_new(t, number);
    return *slot;
}

uint64_t spt_beyond(const struct spt *t, uint64_t addr)
{
    uint64_t number = addr >> EDM_CHUNK_SHIFT, top = number >> MID_BITS;
    if (top < TOP_SIZE && t->top[top])
        return (number + 1) << EDM_CHUNK_SHIFT;
    return (top + 1) << (EDM_CHUNK_SHIFT + MID_BITS);
}

void spt_set(struct chunk *c, struct page *p, enum page_state state)
{
    c->touched -= p->state != PAGE_NEW;
    c->foreign -= p->state == PAGE_FOREIGN;
    p->state = state;
    c->touched += p->state != PAGE_NEW;
    c->foreign += p->state == PAGE_FOREIGN;
}
