/*
 * Relocations of jemalloc's tables, a thousand of them on six pages: most commands never come to
 * need them, and each would pay 30 us. So the dynamic linker does not know of them
 * (late_relocs_link.c), and they are applied before jemalloc starts.
 */
#ifndef EDM_LATE_RELOCS_H
#define EDM_LATE_RELOCS_H

#include <stdint.h>

/* Written when the shim is linked. offset: of the first, from the start of the library. */
struct late_relocs_place {
    uint64_t offset, n;
};

/* Any thread, any number of times, also at once: the outcome is the same. */
void late_relocs_apply(void);

#endif
