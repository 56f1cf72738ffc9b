/*
 * What a program has said of memory that the page table has no chunk of yet: pins, MADV_DONTFORK,
 * MADV_WIPEONFORK. As ranges, for it may say so of all of a huge and sparse mapping. A chunk starts
 * with what is written here (spt.c); from then on its own pages say it, and what is here for them
 * means nothing.
 *
 * In the image. There are two lists, of which one counts: a server may be killed while it writes
 * the other. Protected by the instance's lock.
 */
#ifndef EDM_MARKS_H
#define EDM_MARKS_H

#include <stdbool.h>
#include <stdint.h>

#define MARKS_MAX 4096u

/* Pages from `first` up to `end`, by number. */
struct mark {
    uint64_t first, end;
    uint8_t flags; /* PF_WIPE, PF_NOFORK */
    uint8_t pins;  /* as in struct page */
};

struct mark_list {
    uint32_t n;
    struct mark at[MARKS_MAX]; /* in order, none empty or without an effect */
};

struct marks {
    uint32_t which; /* list counts */
    struct mark_list list[2];
};

/* What holds for a page, and up to where. */
struct mark marks_at(const struct marks *m, uint64_t page);

/* Has fn change what holds for the pages from `first` up to `end`. 0, or -ENOMEM when that would be
 * too many ranges; then nothing has changed. */
typedef void mark_change(struct mark *k, const void *arg);
int marks_change(struct marks *m, uint64_t first, uint64_t end, mark_change *fn, const void *arg);

/* These flags of n pages from `to` on become those of the pages from `from` on. As marks_change. */
int marks_copy(struct marks *m, uint64_t from, uint64_t to, uint64_t n, uint8_t flags);

/* What a forked child inherits, which has none yet. */
void marks_inherit(struct marks *child, const struct marks *parent);

#endif
