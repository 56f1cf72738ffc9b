#include "nursery.h"

#include "late_relocs.h"
#include "shim.h"

#define GRAIN 16ul /* bytes before every block, which hold its size, and alignment of all */

#define NURSERY_ALIGN 4096ul

_Alignas(NURSERY_ALIGN) char nursery_memory[NURSERY_BYTES];
AT_LOAD_DATA atomic_bool nursery_closed;
static AT_LOAD_DATA atomic_size_t mark; /* memory from here on was never given out: it is zero */

static size_t *size_of(const void *p)
{
    return (size_t *)((uintptr_t)p - GRAIN);
}

AT_LOAD void *nursery_take_open(size_t size, size_t align)
{
    size_t at = atomic_load_explicit(&mark, memory_order_relaxed), start, end;
    if (align > NURSERY_ALIGN || size > NURSERY_MOST)
        goto close;
    size = size ? (size + GRAIN - 1) & ~(GRAIN - 1) : GRAIN;
    do {
        start = (at + GRAIN + align - 1) & ~(align - 1);
        end = start + size;
        if (end > NURSERY_BYTES)
            goto close;
    } while (!atomic_compare_exchange_weak(&mark, &at, end));
    *size_of(nursery_memory + start) = size;
    return nursery_memory + start;
close:
    nursery_close();
    return NULL;
}

bool nursery_extend(void *p, size_t size)
{
    size_t start = (size_t)((char *)p - nursery_memory), end = start + *size_of(p);
    if (size > NURSERY_MOST)
        return false;
    size = (size + GRAIN - 1) & ~(GRAIN - 1);
    if (start + size > NURSERY_BYTES || !atomic_compare_exchange_strong(&mark, &end, start + size))
        return false;
    *size_of(p) = size;
    return true;
}

size_t nursery_size(const void *p)
{
    return *size_of(p);
}

void nursery_close(void)
{
    if (atomic_load(&nursery_closed))
        return;
    late_relocs_apply();
    atomic_store(&nursery_closed, true);
}
