/*
 * The first small memory of a process. jemalloc's start costs more than a short command takes in
 * all its mallocs; so the first NURSERY_BYTES come from a static array by moving a mark, are
 * never given back, and jemalloc starts when they are used up. Lock-free; never managed.
 */
#ifndef EDM_NURSERY_H
#define EDM_NURSERY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NURSERY_BYTES (2ul << 20)
#define NURSERY_MOST (256ul << 10) /* larger requests open jemalloc at once */

extern char nursery_memory[NURSERY_BYTES];
extern atomic_bool nursery_closed;

void *nursery_take_open(size_t size, size_t align);

/* Zeroed memory, or NULL when it has to be jemalloc's. align: a power of two, 16 or more. */
static inline void *nursery_take(size_t size, size_t align)
{
    if (__builtin_expect(atomic_load_explicit(&nursery_closed, memory_order_acquire), 1))
        return NULL;
    return nursery_take_open(size, align);
}

static inline bool nursery_has(const void *p)
{
    return (uintptr_t)p - (uintptr_t)nursery_memory < NURSERY_BYTES;
}

/* Makes p larger where it is, if it was the last one taken. */
bool nursery_extend(void *p, size_t size);
/* Bytes usable at p. */
size_t nursery_size(const void *p);
/* No more from here: every malloc is jemalloc's, whose tables are ready when this returns. */
void nursery_close(void);

#endif
