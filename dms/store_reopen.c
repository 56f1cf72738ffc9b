/*
 * What a successor makes of the files of a process that was killed. The table of slots is the only
 * record: which frames, objects and blocks are in use, and all lists and counts, follow from the
 * slots that can be true.
 */
#include "../config/log.h"
#include "store_int.h"
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

#define SWEEP_SLOTS 4096u /* looked at per taking of the lock */
#define SLOT_SIZE sizeof(struct slot)

/* ---- finding ---- */

static bool place_claim(struct store *s, const struct slot *sl)
{
    switch (sl->kind) {
    case SLOT_RAW:
        return store_mem_claim_frame(&s->mem, sl->where);
    case SLOT_LZ4:
        return store_mem_claim_object(&s->mem, sl->where, sl->len);
    default:
        return s->has_disk && store_disk_claim(&s->disk, sl->where);
    }
}

static void slot_scan(struct store *s, uint32_t h)
{
    struct slot *sl = &s->slots[h];
    sl->count = 0;
    sl->pins = sl->busy = sl->cold = 0;
    if (sl->kind == SLOT_FREE)
        return;
    if (!place_claim(s, sl)) {
        sl->place = 0;
        s->lost++;
        return;
    }
    s->raw_pages += sl->kind == SLOT_RAW;
    s->lz4_pages += sl->kind == SLOT_LZ4;
    s->disk_pages += sl->kind == SLOT_DISK;
    s->top = h + 1;
}

/* The slots of a part of the file; the last in use makes top. */
static void part_scan(struct store *s, off_t from, off_t to)
{
    off_t header = SLOTS_HEADER_SIZE, size = (off_t)SLOT_SIZE;
    uint64_t h = from <= header + size ? 1 : (uint64_t)((from - header) / size);
    uint64_t end = to <= header ? 0 : (uint64_t)((to - header) / size);
    if (end > s->nslots)
        end = s->nslots;
    for (; h < end; h++)
        slot_scan(s, (uint32_t)h);
}

/* ---- lists ---- */

/* One pass of a radix sort of slots by 16 bits of their age. */
static void sort_pass(const struct store *s, const uint32_t *from, uint32_t *to, uint32_t n,
                      unsigned shift, uint32_t *start)
{
    uint32_t newest = s->header->version_last, sum = 0;
    for (uint32_t i = 0; i <= UINT16_MAX; i++)
        start[i] = 0;
    for (uint32_t i = 0; i < n; i++)
        start[(s->slots[from[i]].version - newest - 1) >> shift & UINT16_MAX]++;
    for (uint32_t i = 0; i <= UINT16_MAX; i++) {
        uint32_t here = start[i];
        start[i] = sum;
        sum += here;
    }
    for (uint32_t i = 0; i < n; i++)
        to[start[(s->slots[from[i]].version - newest - 1) >> shift & UINT16_MAX]++] = from[i];
}

/* Lists the pages in memory, those put first at the head, as if nothing had happened. */
static void memory_list(struct store *s)
{
    uint32_t n = 0, all = (uint32_t)(s->raw_pages + s->lz4_pages);
    uint32_t *h = calloc(2ull * all + UINT16_MAX + 1, sizeof *h);
    uint32_t *other = h + all, *start = other + all;
    for (uint32_t i = 1; i < s->top; i++) {
        if (s->slots[i].kind != SLOT_RAW && s->slots[i].kind != SLOT_LZ4)
            continue;
        if (h)
            h[n++] = i;
        else
            store_slot_list(s, i);
    }
    if (!h) /* any order will do */
        return;
    sort_pass(s, h, other, n, 0, start);
    sort_pass(s, other, h, n, 16, start);
    for (uint32_t i = 0; i < n; i++)
        store_slot_list(s, h[i]);
    free(h);
}

static void free_list(struct store *s)
{
    for (uint32_t h = s->top; h-- > 1;) {
        if (s->slots[h].kind != SLOT_FREE)
            continue;
        s->slots[h].next = s->free;
        s->free = h;
    }
}

void store_reopen_scan(struct store *s)
{
    off_t from, to = 0;
    while ((from = lseek(s->slots_fd, to, SEEK_DATA)) >= 0 &&
           (to = lseek(s->slots_fd, from, SEEK_HOLE)) >= 0)
        part_scan(s, from, to);
    free_list(s);
    memory_list(s);
    store_mem_reopen_end(&s->mem);
    if (s->lost)
        edm_warn("page store: %llu pages of the server before cannot be taken over",
                 (unsigned long long)s->lost);
}

/* ---- owners ---- */

bool store_adopt(store_handle h, uint32_t version)
{
    struct store *s = &store_self;
    store_lock(s);
    bool ok =
        h > 0 && h < s->top && s->slots[h].kind != SLOT_FREE && s->slots[h].version == version;
    if (ok)
        s->slots[h].count++;
    pthread_mutex_unlock(&s->lock);
    return ok;
}

void store_reopen_end(void)
{
    struct store *s = &store_self;
    store_lock(s);
    s->reopening = false; /* from here on who drops a page frees it, so none is missed */
    uint32_t top = s->top;
    for (uint32_t h = 1; h < top; h++) {
        if (s->slots[h].kind != SLOT_FREE)
            store_slot_drop(s, h);
        if (h % SWEEP_SLOTS == 0) {
            pthread_mutex_unlock(&s->lock);
            store_lock(s);
        }
    }
    pthread_mutex_unlock(&s->lock);
    pthread_cond_signal(&s->work);
}

uint32_t store_version_max(void)
{
    struct store *s = &store_self;
    store_lock(s);
    uint32_t version = s->header->version_last;
    pthread_mutex_unlock(&s->lock);
    return version;
}
