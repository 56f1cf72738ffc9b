#include "store.h"

#include "../config/log.h"
#include "store_int.h"
#include <assert.h>
#include <errno.h>
#include <lz4.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#define SHM_DIR "/dev/shm"
#define TRANSIT_BYTES (4ull << 20)
#define MANY_STEP 256 /* handles per taking of the lock in the _many calls */
#define RESERVE_FRAMES 16u

static struct store store;

/* ---- lock ---- */

static void store_lock(struct store *s)
{
    pthread_mutex_lock(&s->lock);
}

/* Unlocks after a change that may have made work for XPET. */
static void store_unlock(struct store *s)
{
    bool wake = s->xpet.idle && xpet_has_work(s);
    if (wake)
        s->xpet.idle = false;
    pthread_mutex_unlock(&s->lock);
    if (wake)
        pthread_cond_signal(&s->work);
}

/* ---- lists of slots ---- */

void slot_list_push(struct store *s, struct slot_list *l, uint32_t h)
{
    s->slots[h].prev = l->tail;
    s->slots[h].next = 0;
    if (l->tail)
        s->slots[l->tail].next = h;
    else
        l->head = h;
    l->tail = h;
    l->n++;
}

void slot_list_push_head(struct store *s, struct slot_list *l, uint32_t h)
{
    s->slots[h].prev = 0;
    s->slots[h].next = l->head;
    if (l->head)
        s->slots[l->head].prev = h;
    else
        l->tail = h;
    l->head = h;
    l->n++;
}

void slot_list_remove(struct store *s, struct slot_list *l, uint32_t h)
{
    struct slot *sl = &s->slots[h];
    if (sl->prev)
        s->slots[sl->prev].next = sl->next;
    else
        l->head = sl->next;
    if (sl->next)
        s->slots[sl->next].prev = sl->prev;
    else
        l->tail = sl->prev;
    l->n--;
}

/* ---- slots ---- */

static struct slot *slot_of(struct store *s, store_handle h)
{
    assert(h > 0 && h < s->top && s->slots[h].kind != SLOT_FREE);
    return &s->slots[h];
}

static uint32_t slot_new(struct store *s)
{
    uint32_t h = s->free;
    if (h)
        s->free = s->slots[h].next;
    else if (s->top < s->nslots)
        h = s->top++;
    return h;
}

void *store_slot_data(const struct store *s, const struct slot *sl)
{
    return sl->kind == SLOT_RAW ? store_mem_frame(&s->mem, sl->where)
                                : store_mem_object(&s->mem, sl->where);
}

void store_slot_vacate(struct store *s, struct slot *sl)
{
    switch (sl->kind) {
    case SLOT_RAW:
        store_mem_frame_put(&s->mem, sl->where);
        s->raw_pages--;
        break;
    case SLOT_LZ4:
        store_mem_object_put(&s->mem, sl->where);
        s->lz4_pages--;
        break;
    case SLOT_DISK:
        store_disk_put(&s->disk, sl->where);
        s->disk_pages--;
        break;
    default:
        assert(!"a free slot has no contents");
    }
}

bool store_slot_reap(struct store *s, uint32_t h)
{
    struct slot *sl = &s->slots[h];
    if (sl->count || sl->pins)
        return false;
    store_slot_vacate(s, sl);
    sl->kind = SLOT_FREE;
    sl->next = s->free;
    s->free = h;
    return true;
}

void store_slot_settle(struct store *s, uint32_t h)
{
    struct slot *sl = &s->slots[h];
    sl->busy = 0;
    if (store_slot_reap(s, h))
        return;
    sl->cold = 1;
    slot_list_push(s, &s->cold, h);
}

/* One use less, of an owner or a reader: frees the slot if that was the last. */
static void slot_drop(struct store *s, uint32_t h)
{
    struct slot *sl = &s->slots[h];
    if (sl->count || sl->pins || sl->busy)
        return;
    if (sl->kind != SLOT_DISK)
        slot_list_remove(s, sl->cold ? &s->cold : &s->raw, h);
    store_slot_reap(s, h);
}

static void slot_unpin(struct store *s, uint32_t h)
{
    struct slot *sl = slot_of(s, h);
    assert(sl->pins > 0);
    if (--sl->pins > 0)
        return;
    s->xpet.stuck = false;
    slot_drop(s, h);
}

static uint64_t page_sum(const void *page, uint32_t version)
{
    uint64_t x = (version + 1ull) * 0x9e3779b97f4a7c15ull;
    return XXH3_64bits(page, STORE_PAGE) ^ (x ^ x >> 32);
}

/* ---- putting ---- */

uint32_t store_limit(const struct store *s)
{
    uint32_t capacity = store_mem_capacity(&s->mem), reserve = 0;
    if (s->compression == EDM_COMPRESSION_AUTO && !s->transit)
        reserve = capacity / 8 < RESERVE_FRAMES ? capacity / 8 : RESERVE_FRAMES;
    return capacity - reserve;
}

/* Takes memory and a slot for a page, an object of len bytes or a frame (len 0). 0; -ENOSPC: no
 * room; -EAGAIN: memory must grow first. */
static int slot_take(struct store *s, uint32_t len, bool force, uint32_t *out)
{
    uint32_t class = len ? store_mem_class(len) : 0;
    bool ready = len && store_mem_object_ready(&s->mem, class);
    if (!force && !ready && s->mem.used >= store_limit(s))
        return -ENOSPC;
    uint32_t where = len ? store_mem_object_get(&s->mem, class) : store_mem_frame_get(&s->mem);
    if (where == MEM_NONE)
        return -EAGAIN;
    uint32_t h = slot_new(s);
    if (h == 0) {
        if (len)
            store_mem_object_put(&s->mem, where);
        else
            store_mem_frame_put(&s->mem, where);
        return -ENOSPC;
    }
    s->slots[h] = (struct slot){.where = where,
                                .count = 1,
                                .len = (uint16_t)len & 0xfff,
                                .kind = len ? SLOT_LZ4 : SLOT_RAW};
    *out = h;
    return 0;
}

/* As slot_take, growing memory when it must. Lock held; dropped to grow. */
static int slot_take_grown(struct store *s, uint32_t len, bool force, uint32_t *out)
{
    int rc;
    while ((rc = slot_take(s, len, force, out)) == -EAGAIN) {
        uint32_t step = store_mem_grow_begin(&s->mem, force);
        if (step == MEM_NONE && !s->mem.moving)
            return -ENOSPC;
        if (step == MEM_NONE) { /* somebody else is at it */
            pthread_cond_wait(&s->grown, &s->lock);
            continue;
        }
        pthread_mutex_unlock(&s->lock);
        rc = store_mem_grow_run(&s->mem, step, force);
        store_lock(s);
        store_mem_grow_end(&s->mem, step, rc);
        pthread_cond_broadcast(&s->grown);
        if (rc < 0 && force)
            return -ENOSPC;
    }
    return rc;
}

/* The slot becomes visible to XPET. */
static void slot_publish(struct store *s, uint32_t h)
{
    struct slot *sl = &s->slots[h];
    bool lz4 = sl->kind == SLOT_LZ4;
    sl->cold = lz4 || s->compression == EDM_COMPRESSION_LZ4;
    slot_list_push(s, sl->cold ? &s->cold : &s->raw, h);
    if (lz4)
        s->lz4_pages++;
    else
        s->raw_pages++;
    s->xpet.stuck = false;
}

int store_put(const void *page, uint32_t version, bool force, store_handle *out)
{
    struct store *s = &store;
    char small[MEM_OBJECT_MAX];
    uint32_t h, len = 0;
    uint64_t sum = page_sum(page, version);
    if (s->compression == EDM_COMPRESSION_LZ4 && !s->transit)
        len = (uint32_t)LZ4_compress_default(page, small, STORE_PAGE, sizeof small);
    store_lock(s);
    int rc = slot_take_grown(s, len, force, &h);
    if (rc) {
        s->refused = true;
        store_unlock(s);
        return rc;
    }
    struct slot *sl = &s->slots[h];
    unsigned char *to = store_slot_data(s, sl);
    sl->sum = sum;
    sl->version = version;
    pthread_mutex_unlock(&s->lock);
    memcpy(to, len ? small : page, len ? len : STORE_PAGE);
    if (s->flip == STORE_FLIP_MEMORY)
        to[len ? len / 2 : STORE_PAGE / 2] ^= 0x10;
    store_lock(s);
    slot_publish(s, h);
    store_unlock(s);
    *out = h;
    return 0;
}

/* ---- counting ---- */

static void slot_unref(struct store *s, store_handle h)
{
    struct slot *sl = slot_of(s, h);
    assert(sl->count > 0);
    if (--sl->count == 0)
        slot_drop(s, h);
}

void store_ref(store_handle h)
{
    struct store *s = &store;
    store_lock(s);
    slot_of(s, h)->count++;
    pthread_mutex_unlock(&s->lock);
}

void store_unref(store_handle h)
{
    struct store *s = &store;
    store_lock(s);
    slot_unref(s, h);
    store_unlock(s);
}

void store_ref_many(const store_handle *h, size_t n)
{
    struct store *s = &store;
    for (size_t i = 0; i < n;) {
        size_t end = n - i > MANY_STEP ? i + MANY_STEP : n;
        store_lock(s);
        for (; i < end; i++)
            if (h[i])
                slot_of(s, h[i])->count++;
        pthread_mutex_unlock(&s->lock);
    }
}

void store_unref_many(const store_handle *h, size_t n)
{
    struct store *s = &store;
    for (size_t i = 0; i < n;) {
        size_t end = n - i > MANY_STEP ? i + MANY_STEP : n;
        store_lock(s);
        for (; i < end; i++)
            if (h[i])
                slot_unref(s, h[i]);
        store_unlock(s);
    }
}

/* ---- reading ---- */

bool store_is_memory(store_handle h)
{
    struct store *s = &store;
    store_lock(s);
    bool memory = slot_of(s, h)->kind != SLOT_DISK;
    pthread_mutex_unlock(&s->lock);
    return memory;
}

/* Pins the slot and copies what a reader needs of it; whether on disk counts as readable is the
 * caller's matter. */
static int slot_pin(struct store *s, store_handle h, uint32_t version, bool disk, struct slot *copy)
{
    int rc = 0;
    store_lock(s);
    struct slot *sl = slot_of(s, h);
    if (sl->version != version)
        rc = -EBADMSG;
    else if (sl->kind == SLOT_DISK && !disk)
        rc = -EAGAIN;
    else
        sl->pins++;
    *copy = *sl;
    pthread_mutex_unlock(&s->lock);
    return rc;
}

static void slot_unpin_locked(struct store *s, store_handle h)
{
    store_lock(s);
    slot_unpin(s, h);
    store_unlock(s);
}

/* Contents of a pinned slot as a page: in place when raw, else in buf. */
static int slot_page(struct store *s, const struct slot *sl, void *buf, const void **page)
{
    *page = buf;
    if (sl->kind == SLOT_DISK)
        return store_disk_read(&s->disk, sl->where, buf);
    const char *data = store_slot_data(s, sl);
    if (sl->kind == SLOT_RAW)
        *page = data;
    else if (LZ4_decompress_safe(data, buf, sl->len, STORE_PAGE) != (int)STORE_PAGE)
        return -EBADMSG;
    return 0;
}

int store_view(store_handle h, uint32_t version, void *buf, struct store_view *v)
{
    struct store *s = &store;
    struct slot copy;
    const void *page;
    int rc = slot_pin(s, h, version, false, &copy);
    if (rc)
        return rc;
    rc = slot_page(s, &copy, buf, &page);
    if (!rc && page_sum(page, version) != copy.sum)
        rc = -EBADMSG;
    bool keep = !rc && page != buf;
    if (!keep)
        slot_unpin_locked(s, h);
    if (!rc)
        *v = (struct store_view){.data = page, .pinned = keep ? h : 0};
    return rc;
}

void store_unview(struct store_view *v)
{
    if (v->pinned)
        slot_unpin_locked(&store, v->pinned);
    v->pinned = 0;
    v->data = NULL;
}

int store_read(store_handle h, uint32_t version, void *buf)
{
    struct store *s = &store;
    struct slot copy;
    const void *page;
    int rc = slot_pin(s, h, version, true, &copy);
    if (rc)
        return rc;
    rc = slot_page(s, &copy, buf, &page);
    if (!rc && page_sum(page, version) != copy.sum)
        rc = -EBADMSG;
    if (!rc && page != buf)
        memcpy(buf, page, STORE_PAGE);
    store_lock(s);
    if (copy.kind == SLOT_DISK)
        s->read++;
    slot_unpin(s, h);
    store_unlock(s);
    return rc;
}

bool store_same(store_handle h, uint32_t version, const void *page)
{
    struct store *s = &store;
    struct slot copy;
    if (slot_pin(s, h, version, false, &copy))
        return false;
    bool same = copy.kind == SLOT_RAW && memcmp(store_slot_data(s, &copy), page, STORE_PAGE) == 0;
    slot_unpin_locked(s, h);
    return same;
}

/* ---- numbers ---- */

uint32_t store_fullness(void)
{
    struct store *s = &store;
    store_lock(s);
    uint64_t whole = s->transit && s->has_disk ? 0 : store_mem_capacity(&s->mem);
    uint64_t used = s->mem.used;
    if (s->has_disk) {
        used += s->disk.used;
        whole += s->disk.used + store_disk_room(&s->disk);
    }
    pthread_mutex_unlock(&s->lock);
    return used >= whole ? 1000 : (uint32_t)(used * 1000 / whole);
}

void store_get_stats(struct store_stats *out)
{
    struct store *s = &store;
    memset(out, 0, sizeof *out);
    store_lock(s);
    out->memory =
        (struct store_level){(uint64_t)store_mem_capacity(&s->mem) * STORE_PAGE,
                             (uint64_t)s->mem.used * STORE_PAGE, s->raw_pages + s->lz4_pages};
    if (s->has_disk)
        out->disk =
            (struct store_level){(uint64_t)(s->disk.used + store_disk_room(&s->disk)) * STORE_PAGE,
                                 (uint64_t)s->disk.used * STORE_PAGE, s->disk_pages};
    out->raw_pages = s->raw_pages;
    out->lz4_pages = s->lz4_pages;
    out->written_pages = s->written;
    out->read_pages = s->read;
    pthread_mutex_unlock(&s->lock);
}

/* ---- start and end ---- */

static enum store_flip flip_wanted(void)
{
    const char *f = getenv("EDM_TEST_FLIP");
    if (f && strcmp(f, "memory") == 0)
        return STORE_FLIP_MEMORY;
    return f && strcmp(f, "disk") == 0 ? STORE_FLIP_DISK : STORE_FLIP_NONE;
}

static int slots_init(struct store *s)
{
    uint64_t n = (uint64_t)s->mem.limit * 32 + s->disk.wanted + 1;
    s->nslots = n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
    s->top = 1; /* 0 is no handle */
    void *p = mmap(NULL, (uint64_t)s->nslots * sizeof *s->slots, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return -errno;
    s->slots = p;
    return 0;
}

static void locks_init(struct store *s)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, &attr);
    pthread_cond_init(&s->grown, NULL);
    pthread_condattr_destroy(&attr);
}

static void levels_fini(struct store *s)
{
    if (s->slots)
        munmap(s->slots, (uint64_t)s->nslots * sizeof *s->slots);
    s->slots = NULL;
    if (s->has_disk)
        store_disk_fini(&s->disk);
    store_mem_fini(&s->mem);
    pthread_cond_destroy(&s->grown);
    pthread_cond_destroy(&s->work);
    pthread_mutex_destroy(&s->lock);
}

/* A forced put may use all of the machine before it fails. */
static uint64_t memory_limit(uint64_t capacity)
{
    return capacity + (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}

int store_init(const struct store_options *opt, char *err, size_t errlen)
{
    struct store *s = &store;
    memset(s, 0, sizeof *s);
    s->mem.fd = -1;
    s->transit = opt->memory_bytes < STORE_PAGE;
    s->compression = opt->compression;
    s->flip = flip_wanted();
    s->on_room = opt->on_room;
    s->arg = opt->arg;
    locks_init(s);
    uint64_t capacity = s->transit ? TRANSIT_BYTES : opt->memory_bytes / STORE_PAGE * STORE_PAGE;
    int rc = store_mem_init(&s->mem, SHM_DIR, capacity, memory_limit(capacity));
    if (rc) {
        snprintf(err, errlen, "memory store of %llu MiB cannot be made: %s",
                 (unsigned long long)capacity >> 20, strerror(-rc));
        goto fail;
    }
    if (opt->disk_bytes >= STORE_PAGE) {
        rc = store_disk_init(&s->disk, opt->disk_path, opt->disk_bytes, err, errlen);
        if (rc)
            goto fail;
        s->has_disk = true;
    }
    rc = slots_init(s);
    if (!rc)
        rc = xpet_start(s);
    if (!rc)
        return 0;
    snprintf(err, errlen, "page store cannot start: %s", strerror(-rc));
fail:
    levels_fini(s);
    return rc;
}

void store_fini(void)
{
    struct store *s = &store;
    if (!s->slots)
        return;
    xpet_stop(s);
    levels_fini(s);
}
