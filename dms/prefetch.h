/*
 * Prefetch policy: recognises streams of faults (forward, backward, strided, several interleaved)
 * and says which pages to fetch along. Pure: no system calls, no locks.
 */
#ifndef EDM_PREFETCH_H
#define EDM_PREFETCH_H

#include <stdint.h>

#define PREFETCH_STREAMS 16

struct prefetch_stream {
    uint64_t last;   /* page number of the last fault */
    uint64_t expect; /* where the next fault is, if the stream goes on */
    int64_t stride;  /* pages; 0: only one fault seen */
    uint32_t window; /* pages fetched along at the last fault */
    uint32_t hits;
    uint64_t clock; /* last use */
};

struct prefetcher {
    struct prefetch_stream streams[PREFETCH_STREAMS];
    uint64_t clock;
    uint32_t doubt; /* grows with streams that end as soon as they have begun */
};

struct prefetch_plan {
    uint64_t first; /* page number of the first page to fetch */
    int64_t stride;
    uint32_t count; /* 0: nothing */
    uint32_t used;  /* pages of the plan before that are now known to have been used */
};

/* A fault at page number `page`; at most `max` pages may be fetched along. */
struct prefetch_plan prefetch_fault(struct prefetcher *p, uint64_t page, uint32_t max);

#endif
