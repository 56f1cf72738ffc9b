/*
 * The malloc family that the program finds: the nursery first, then jemalloc, whose public names
 * have the prefix jem_ here (objcopy, see meson.build).
 */
#include "../dms/proto/proto.h"
#include "nursery.h"
#include "shim.h"
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#define PUBLIC __attribute__((visibility("default")))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define ALIGN 16ul /* of every block */

void *jem_malloc(size_t size);
void *jem_calloc(size_t n, size_t size);
void *jem_realloc(void *p, size_t size);
void jem_free(void *p);
void *jem_memalign(size_t align, size_t size);
void *jem_aligned_alloc(size_t align, size_t size);
int jem_posix_memalign(void **out, size_t align, size_t size);
size_t jem_malloc_usable_size(void *p);
void *jem_mallocx(size_t size, int flags);
void *jem_rallocx(void *p, size_t size, int flags);
size_t jem_xallocx(void *p, size_t size, size_t extra, int flags);
size_t jem_sallocx(const void *p, int flags);
void jem_dallocx(void *p, int flags);
void jem_sdallocx(void *p, size_t size, int flags);
size_t jem_nallocx(size_t size, int flags);
int jem_mallctl(const char *name, void *old, size_t *oldlen, void *new, size_t newlen);
int jem_mallctlnametomib(const char *name, size_t *mib, size_t *miblen);
int jem_mallctlbymib(const size_t *mib, size_t miblen, void *old, size_t *oldlen, void *new,
                     size_t newlen);
void jem_malloc_stats_print(void (*write)(void *, const char *), void *arg, const char *opts);

/* jemalloc's own interface, for programs that were linked with jemalloc; no header of it is used.
 */
void *mallocx(size_t size, int flags);
void *rallocx(void *p, size_t size, int flags);
size_t xallocx(void *p, size_t size, size_t extra, int flags);
size_t sallocx(const void *p, int flags);
void dallocx(void *p, int flags);
void sdallocx(void *p, size_t size, int flags);
size_t nallocx(size_t size, int flags);
int mallctl(const char *name, void *old, size_t *oldlen, void *new, size_t newlen);
int mallctlnametomib(const char *name, size_t *mib, size_t *miblen);
int mallctlbymib(const size_t *mib, size_t miblen, void *old, size_t *oldlen, void *new,
                 size_t newlen);
void malloc_stats_print(void (*write)(void *, const char *), void *arg, const char *opts);

AT_LOAD PUBLIC void *malloc(size_t size)
{
    void *p = nursery_take(size, ALIGN);
    return LIKELY(!p) ? jem_malloc(size) : p;
}

AT_LOAD PUBLIC void *calloc(size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    void *p = nursery_take(bytes, ALIGN);
    return LIKELY(!p) ? jem_calloc(n, size) : p;
}

AT_LOAD PUBLIC void free(void *p)
{
    if (LIKELY(!nursery_has(p)))
        jem_free(p);
}

AT_LOAD PUBLIC void *realloc(void *p, size_t size)
{
    if (!p)
        return malloc(size);
    if (LIKELY(!nursery_has(p)))
        return jem_realloc(p, size);
    if (!size) /* as glibc: p is free now */
        return NULL;
    size_t had = nursery_size(p);
    if (size <= had || nursery_extend(p, size))
        return p;
    void *q = malloc(size);
    return q ? memcpy(q, p, had) : NULL;
}

static void *take_aligned(size_t align, size_t size)
{
    bool power = align && !(align & (align - 1));
    if (power)
        return nursery_take(size, align < ALIGN ? ALIGN : align);
    nursery_close(); /* jemalloc says what is wrong */
    return NULL;
}

PUBLIC void *memalign(size_t align, size_t size)
{
    void *p = take_aligned(align, size);
    return p ? p : jem_memalign(align, size);
}

PUBLIC void *aligned_alloc(size_t align, size_t size)
{
    void *p = take_aligned(align, size);
    return p ? p : jem_aligned_alloc(align, size);
}

PUBLIC int posix_memalign(void **out, size_t align, size_t size)
{
    void *p = take_aligned(align % sizeof(void *) ? 0 : align, size);
    if (!p)
        return jem_posix_memalign(out, align, size);
    *out = p;
    return 0;
}

PUBLIC void *valloc(size_t size)
{
    return memalign(EDM_PAGE_SIZE, size);
}

PUBLIC void *pvalloc(size_t size)
{
    size_t bytes = (size + EDM_PAGE_SIZE - 1) & ~(EDM_PAGE_SIZE - 1);
    if (bytes < size) {
        errno = ENOMEM;
        return NULL;
    }
    return memalign(EDM_PAGE_SIZE, bytes ? bytes : EDM_PAGE_SIZE);
}

PUBLIC size_t malloc_usable_size(void *p)
{
    return LIKELY(!nursery_has(p)) ? jem_malloc_usable_size(p) : nursery_size(p);
}

/* ---- what programs linked with jemalloc may call with memory from malloc ---- */

PUBLIC void *mallocx(size_t size, int flags)
{
    nursery_close();
    return jem_mallocx(size, flags);
}

PUBLIC void *rallocx(void *p, size_t size, int flags)
{
    if (!nursery_has(p))
        return jem_rallocx(p, size, flags);
    void *q = mallocx(size, flags);
    size_t had = nursery_size(p);
    return q ? memcpy(q, p, had < size ? had : size) : NULL;
}

PUBLIC size_t xallocx(void *p, size_t size, size_t extra, int flags)
{
    return nursery_has(p) ? nursery_size(p) : jem_xallocx(p, size, extra, flags);
}

PUBLIC size_t sallocx(const void *p, int flags)
{
    return nursery_has(p) ? nursery_size(p) : jem_sallocx(p, flags);
}

PUBLIC void dallocx(void *p, int flags)
{
    if (!nursery_has(p))
        jem_dallocx(p, flags);
}

PUBLIC void sdallocx(void *p, size_t size, int flags)
{
    if (!nursery_has(p))
        jem_sdallocx(p, size, flags);
}

PUBLIC size_t nallocx(size_t size, int flags)
{
    nursery_close();
    return jem_nallocx(size, flags);
}

PUBLIC int mallctl(const char *name, void *old, size_t *oldlen, void *new, size_t newlen)
{
    nursery_close();
    return jem_mallctl(name, old, oldlen, new, newlen);
}

PUBLIC int mallctlnametomib(const char *name, size_t *mib, size_t *miblen)
{
    nursery_close();
    return jem_mallctlnametomib(name, mib, miblen);
}

PUBLIC int mallctlbymib(const size_t *mib, size_t miblen, void *old, size_t *oldlen, void *new,
                        size_t newlen)
{
    nursery_close();
    return jem_mallctlbymib(mib, miblen, old, oldlen, new, newlen);
}

PUBLIC void malloc_stats_print(void (*write)(void *, const char *), void *arg, const char *opts)
{
    nursery_close();
    jem_malloc_stats_print(write, arg, opts);
}
