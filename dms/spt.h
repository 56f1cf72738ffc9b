/*
 * State page table of one instance: for every page of its managed memory, where the up-to-date
 * contents are. Pages are found by address through a two-level table of chunks (2 MiB each), so
 * memory that moved out of the arena (mremap) is found like any other. A page is also named by a
 * page id (chunk number * 512 + page in chunk), which the LSPT's lists use.
 *
 * Protected by the instance's lock.
 */
#ifndef EDM_SPT_H
#define EDM_SPT_H

#include "proto/proto.h"
#include "store.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPT_NONE UINT32_MAX
/* No address of a program has this bit. With it: what was at the address before another page came,
 * while the event that says where it went is still to come (ghost.c). */
#define SPT_GHOST (1ull << 47)
#define SPT_CHUNK_BIT 0x80000000u /* in a list: this node is a leased chunk, not a page */

enum page_state {
    PAGE_NEW = 0,  /* zeros, nowhere stored (in a leased chunk: the kernel's business) */
    PAGE_RESIDENT, /* mapped in the instance, in the LSPT */
    PAGE_EVICTING, /* a command to the LPET is outstanding; link.next is its tag */
    PAGE_LIMBO,    /* in the channel's ring; link.next is the ring page */
    PAGE_STORED,   /* in the store under (handle, version) */
    PAGE_POISONED, /* could not be had intact */
    PAGE_FOREIGN,  /* not ours: unmapped, or something else is mapped there */
};

enum page_flag {
    PF_HOT = 1,        /* came back soon after it left: belongs to the protected list */
    PF_PREFETCHED = 2, /* fetched ahead, not known to be used */
    PF_FETCHING = 4,   /* STORED, and a read from disk is under way */
    PF_DISCARD = 8,    /* EVICTING, and the program has discarded it meanwhile */
    PF_COPY = 16,      /* MOVE refused it: evict by copying */
    PF_WIPE = 32,      /* MADV_WIPEONFORK */
    PF_NOFORK = 64,    /* MADV_DONTFORK */
    PF_LISTED = 128,   /* in a list of the LSPT */
};

struct link {
    uint32_t prev, next;
};

#define PINS_FOR_GOOD UINT8_MAX

struct page {
    struct link link;    /* in the LSPT; next, else: EVICTING: tag, LIMBO: ring page, STORED: the
                            number    of evictions when it left */
    store_handle handle; /* STORED: where; RESIDENT, LIMBO: an older copy that may still be right */
    uint32_t version;
    uint8_t state;   /* enum page_state */
    uint8_t flags;   /* enum page_flag */
    uint8_t pins;    /* never evicted while > 0; PINS_FOR_GOOD: a child's, too */
    uint8_t removes; /* COPY eviction: REMOVE events that covered it (KERNEL.md 7) */
};

struct chunk {
    uint64_t addr;
    struct link link;        /* the lease's place in the LSPT */
    uint32_t number;         /* in spt.chunks */
    uint16_t touched;        /* pages that are not NEW: 0 means the chunk may be leased */
    uint16_t foreign;        /* pages that are FOREIGN */
    uint16_t pinned;         /* pages with pins */
    uint8_t leased;          /* MODE_WP only: the kernel serves first touches */
    uint8_t listed;          /* in the LSPT */
    uint8_t unevictable;     /* its registration could not be mended: never evict from it */
    uint8_t unknown;         /* of a forked child: what the kernel put there is not counted yet */
    uint64_t last_remove_ns; /* as removed_ns, leased or not */
    uint64_t broken_ns;      /* when its last lease ended, 0 = never leased */
    uint64_t removed_ns;     /* last REMOVE while it was leased, 0 = none (KERNEL.md 3) */
    struct page pages[EDM_CHUNK_PAGES];
};

struct image;

struct spt {
    struct chunk ***top;  /* [top][mid] */
    struct chunk *chunks; /* in the image */
    uint32_t nchunks;
    struct image *img;
};

/* A table whose chunks are those of img. 0 or -ENOMEM. */
int spt_init(struct spt *t, struct image *img);
/* Forgets every chunk; drops no store handles (instance.c does). NULL is allowed. */
void spt_fini(struct spt *t);
/* The chunk that holds addr; made when missing and `make`; NULL when missing or out of memory. */
struct chunk *spt_chunk(struct spt *t, uint64_t addr, bool make);

/* For one who goes through the table by address, and finds no chunk at addr: where the next may
 * begin. Ranges that a program names may be huge, and must not be walked chunk by chunk. */
uint64_t spt_beyond(const struct spt *t, uint64_t addr);

static inline uint32_t spt_index(uint64_t addr)
{
    return (uint32_t)(addr >> EDM_PAGE_SHIFT) & (EDM_CHUNK_PAGES - 1);
}

static inline struct page *spt_page(const struct spt *t, uint32_t id)
{
    return &t->chunks[id / EDM_CHUNK_PAGES].pages[id % EDM_CHUNK_PAGES];
}

static inline struct chunk *spt_chunk_of(const struct spt *t, uint32_t id)
{
    return &t->chunks[id / EDM_CHUNK_PAGES];
}

static inline bool spt_is_ghost(const struct chunk *c)
{
    return c->addr & SPT_GHOST;
}

static inline uint64_t spt_addr(const struct spt *t, uint32_t id)
{
    return spt_chunk_of(t, id)->addr + ((uint64_t)(id % EDM_CHUNK_PAGES) << EDM_PAGE_SHIFT);
}

static inline uint32_t spt_id(const struct chunk *c, uint32_t index)
{
    return c->number * EDM_CHUNK_PAGES + index;
}

/* Sets the state and keeps the chunk's counts right. */
void spt_set(struct chunk *c, struct page *p, enum page_state state);

#endif
