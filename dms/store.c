#include "store.h"

#include "../config/log.h"
#include "die.h"
#include "mutex.h"
#include "store_int.h"
#include <assert.h>
#include <errno.h>
#include <lz4.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <xxhash.h>

#define SHM_DIR "/dev/shm"
#define TRANSIT_BYTES (4ull << 20)
#define MANY_STEP 256 /* handles per taking of the lock in the _many calls */
#define RESERVE_FRAMES 16u

struct store store_self;

/* ---- lock ---- */

void store_lock(struct store *s)
{
    pthread_mutex_lock(&s->lock);
}

void store_unlock(struct store *s)
{
    bool wake = s->xpet.idle && xpet_has_work(s);
    if (wake)
        s->xpet.idle = false;
    pthread_mutex_unlock(&s->lock);
    if (wake)
        pthread_cond_signal(&s->work);
}

/* ---- sums ---- */

uint64_t store_page_sum(const void *page, uint32_t version)
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

/* Where the contents of a page go: an object of len bytes, or a frame (len 0). */
struct room {
    uint32_t h, where, len;
};

/* Takes memory and a slot. 0; -ENOSPC: no room; -EAGAIN: memory must grow first. */
static int room_take(struct store *s, struct room *r, bool force)
{
    uint32_t class = r->len ? store_mem_class(r->len) : 0;
    bool ready = r->len && store_mem_object_ready(&s->mem, class);
    if (!force && !ready && s->mem.used >= store_limit(s))
        return -ENOSPC;
    r->where = r->len ? store_mem_object_get(&s->mem, class) : store_mem_frame_get(&s->mem);
    if (r->where == MEM_NONE)
        return -EAGAIN;
    r->h = store_slot_new(s);
    if (r->h)
        return 0;
    if (r->len)
        store_mem_object_put(&s->mem, r->where);
    else
        store_mem_frame_put(&s->mem, r->where);
    return -ENOSPC;
}

/* As room_take, growing memory when it must. Lock held; dropped to grow. */
static int room_take_grown(struct store *s, struct room *r, bool force)
{
    int rc;
    while ((rc = room_take(s, r, force)) == -EAGAIN) {
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

/* The contents are there: a successor of this process finds them, XPET may take them. */
static void room_publish(struct store *s, const struct room *r)
{
    struct slot *sl = &s->slots[r->h];
    if ((int32_t)(sl->version - s->header->version_last) > 0)
        s->header->version_last = sl->version;
    store_slot_move(s, sl, r->len ? SLOT_LZ4 : SLOT_RAW, r->where, r->len);
    store_slot_list(s, r->h);
    s->xpet.stuck = false;
}

int store_put(const void *page, uint32_t version, bool force, store_handle *out)
{
    struct store *s = &store_self;
    char small[MEM_OBJECT_MAX];
    struct room r = {0};
    uint64_t sum = store_page_sum(page, version);
    if (s->compression == EDM_COMPRESSION_LZ4 && !s->transit)
        r.len = (uint32_t)LZ4_compress_default(page, small, STORE_PAGE, sizeof small);
    store_lock(s);
    int rc = room_take_grown(s, &r, force);
    if (rc) {
        s->refused = true;
        store_unlock(s);
        return rc;
    }
    s->slots[r.h].sum = sum;
    s->slots[r.h].version = version;
    unsigned char *to =
        r.len ? store_mem_object(&s->mem, r.where) : store_mem_frame(&s->mem, r.where);
    pthread_mutex_unlock(&s->lock);
    memcpy(to, r.len ? small : page, r.len ? r.len : STORE_PAGE);
    if (s->flip == STORE_FLIP_MEMORY)
        to[r.len ? r.len / 2 : STORE_PAGE / 2] ^= 0x10;
    die_at(DIE_STORE_WRITTEN);
    store_lock(s);
    room_publish(s, &r);
    store_unlock(s);
    *out = r.h;
    return 0;
}

/* ---- counting ---- */

static void slot_unref(struct store *s, store_handle h)
{
    struct slot *sl = store_slot_of(s, h);
    assert(sl->count > 0);
    if (--sl->count == 0)
        store_slot_drop(s, h);
}

void store_ref(store_handle h)
{
    struct store *s = &store_self;
    store_lock(s);
    store_slot_of(s, h)->count++;
    pthread_mutex_unlock(&s->lock);
}

void store_unref(store_handle h)
{
    struct store *s = &store_self;
    store_lock(s);
    slot_unref(s, h);
    store_unlock(s);
}

void store_ref_many(const store_handle *h, size_t n)
{
    struct store *s = &store_self;
    for (size_t i = 0; i < n;) {
        size_t end = n - i > MANY_STEP ? i + MANY_STEP : n;
        store_lock(s);
        for (; i < end; i++)
            if (h[i])
                store_slot_of(s, h[i])->count++;
        pthread_mutex_unlock(&s->lock);
    }
}

void store_unref_many(const store_handle *h, size_t n)
{
    struct store *s = &store_self;
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
    struct store *s = &store_self;
    store_lock(s);
    bool memory = store_slot_of(s, h)->kind != SLOT_DISK;
    pthread_mutex_unlock(&s->lock);
    return memory;
}

/* Pins the slot and copies what a reader needs of it; whether on disk counts as readable is the
 * caller's matter. */
static int slot_pin(struct store *s, store_handle h, uint32_t version, bool disk, struct slot *copy)
{
    int rc = 0;
    store_lock(s);
    struct slot *sl = store_slot_of(s, h);
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

static void slot_unpin(struct store *s, store_handle h)
{
    struct slot *sl = store_slot_of(s, h);
    assert(sl->pins > 0);
    if (--sl->pins > 0)
        return;
    s->xpet.stuck = false;
    store_slot_drop(s, h);
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
        return store_disk_read(&s->disk, sl->where, 1, buf);
    const char *data = store_slot_data(s, sl);
    if (sl->kind == SLOT_RAW)
        *page = data;
    else if (LZ4_decompress_safe(data, buf, sl->len, STORE_PAGE) != (int)STORE_PAGE)
        return -EBADMSG;
    return 0;
}

int store_view(store_handle h, uint32_t version, void *buf, struct store_view *v)
{
    struct store *s = &store_self;
    struct slot copy;
    const void *page;
    int rc = slot_pin(s, h, version, false, &copy);
    if (rc)
        return rc;
    rc = slot_page(s, &copy, buf, &page);
    if (!rc && store_page_sum(page, version) != copy.sum)
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
        slot_unpin_locked(&store_self, v->pinned);
    v->pinned = 0;
    v->data = NULL;
}

int store_read(store_handle h, uint32_t version, void *buf)
{
    struct store *s = &store_self;
    struct slot copy;
    const void *page;
    int rc = slot_pin(s, h, version, true, &copy);
    if (rc)
        return rc;
    rc = slot_page(s, &copy, buf, &page);
    if (!rc && store_page_sum(page, version) != copy.sum)
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
    struct store *s = &store_self;
    struct slot copy;
    if (slot_pin(s, h, version, true, &copy))
        return false;
    bool same = copy.kind == SLOT_RAW ? memcmp(store_slot_data(s, &copy), page, STORE_PAGE) == 0
                                      : store_page_sum(page, version) == copy.sum;
    slot_unpin_locked(s, h);
    return same;
}

/* ---- numbers ---- */

uint32_t store_fullness(void)
{
    struct store *s = &store_self;
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
    struct store *s = &store_self;
    memset(out, 0, sizeof *out);
    store_lock(s);
    out->memory =
        (struct store_level){s->transit ? 0 : (uint64_t)store_mem_capacity(&s->mem) * STORE_PAGE,
                             (uint64_t)s->mem.used * STORE_PAGE, s->raw_pages + s->lz4_pages};
    if (s->has_disk)
        out->disk =
            (struct store_level){(uint64_t)(s->disk.used + store_disk_room(&s->disk)) * STORE_PAGE,
                                 (uint64_t)s->disk.used * STORE_PAGE, s->disk_pages};
    out->raw_pages = s->raw_pages;
    out->lz4_pages = s->lz4_pages;
    out->lost_pages = s->lost;
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

static void locks_init(struct store *s)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    edm_mutex_init(&s->lock);
    pthread_cond_init(&s->work, &attr);
    pthread_cond_init(&s->grown, NULL);
    pthread_condattr_destroy(&attr);
}

static void levels_fini(struct store *s)
{
    store_slots_fini(s);
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

/* The longest file that this process may make. */
static uint64_t file_limit(void)
{
    struct rlimit r;
    bool limited = getrlimit(RLIMIT_FSIZE, &r) == 0 && r.rlim_cur != RLIM_INFINITY;
    return limited ? r.rlim_cur : INT64_MAX;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static void options_take(struct store *s, const struct store_options *opt)
{
    memset(s, 0, sizeof *s);
    s->mem.fd = s->slots_fd = s->disk.fd = -1;
    s->transit = opt->memory_bytes < STORE_PAGE;
    s->compression = opt->compression;
    s->flip = flip_wanted();
    s->on_room = opt->on_room;
    s->arg = opt->arg;
}

static int memory_open(struct store *s, const struct store_options *opt, int fd, char *err,
                       size_t errlen)
{
    uint64_t capacity = s->transit ? TRANSIT_BYTES : opt->memory_bytes / STORE_PAGE * STORE_PAGE;
    uint64_t most = file_limit() / MEM_STEP_SIZE * MEM_STEP_SIZE;
    uint64_t limit = least(memory_limit(capacity), most);
    if (capacity > most)
        edm_warn("memory store: no more than %llu MiB: files may not be longer (RLIMIT_FSIZE)",
                 (unsigned long long)most >> 20);
    capacity = least(capacity, most);
    int rc = fd < 0 ? store_mem_init(&s->mem, SHM_DIR, capacity, limit)
                    : store_mem_reopen(&s->mem, fd, capacity, limit);
    if (rc)
        snprintf(err, errlen, "memory store of %llu MiB cannot be %s: %s",
                 (unsigned long long)capacity >> 20, fd < 0 ? "made" : "taken over", strerror(-rc));
    return rc;
}

static int disk_open(struct store *s, const struct store_options *opt, int fd, char *err,
                     size_t errlen)
{
    int rc = 0;
    if (fd < 0 && opt->disk_bytes < STORE_PAGE)
        return 0;
    if (fd < 0)
        rc = store_disk_init(&s->disk, opt->disk_path, opt->disk_bytes, err, errlen);
    else if ((rc = store_disk_reopen(&s->disk, fd, opt->disk_bytes)))
        snprintf(err, errlen, "disk store cannot be taken over: %s", strerror(-rc));
    s->has_disk = rc == 0;
    return rc;
}

/* Makes what fds lacks, and takes over what it has. */
static int store_open(struct store *s, const struct store_options *opt, const struct store_fds *fds,
                      char *err, size_t errlen)
{
    options_take(s, opt);
    locks_init(s);
    int rc = memory_open(s, opt, fds->memory, err, errlen);
    if (!rc)
        rc = disk_open(s, opt, fds->disk, err, errlen);
    if (rc)
        return rc;
    uint64_t slots = (uint64_t)s->mem.limit * 32 + s->disk.mapped + 1;
    uint64_t most = file_limit() / sizeof(struct slot);
    uint64_t header = SLOTS_HEADER_SIZE / sizeof(struct slot);
    slots = least(slots, most > header ? most - header : 0);
    rc = store_slots_init(s, slots, fds->slots);
    if (rc == -EINVAL)
        snprintf(err, errlen,
                 "page store cannot be taken over: its table is damaged, or that of "
                 "another version of edm-dms");
    else if (rc)
        snprintf(err, errlen, "page store has no table of pages: %s", strerror(-rc));
    return rc;
}

static int threads_start(struct store *s, char *err, size_t errlen)
{
    int rc = store_reader_start(s);
    if (!rc && (rc = xpet_start(s)))
        store_reader_stop(s);
    if (rc)
        snprintf(err, errlen, "page store cannot start: %s", strerror(-rc));
    return rc;
}

int store_init(const struct store_options *opt, char *err, size_t errlen)
{
    struct store *s = &store_self;
    const struct store_fds none = {-1, -1, -1};
    int rc = store_open(s, opt, &none, err, errlen);
    if (!rc)
        rc = threads_start(s, err, errlen);
    if (rc)
        levels_fini(s);
    return rc;
}

void store_get_fds(struct store_fds *out)
{
    const struct store *s = &store_self;
    *out = (struct store_fds){s->mem.fd, s->slots_fd, s->has_disk ? s->disk.fd : -1};
}

/* What was taken over stays the caller's. */
static void levels_leave(struct store *s, const struct store_fds *fds)
{
    if (fds->memory >= 0)
        s->mem.fd = -1;
    if (fds->disk >= 0)
        s->disk.fd = -1;
    s->slots_fd = -1;
    levels_fini(s);
}

int store_reopen(const struct store_options *opt, const struct store_fds *fds, char *err,
                 size_t errlen)
{
    struct store *s = &store_self;
    if (fds->slots < 0) {
        snprintf(err, errlen, "page store cannot be taken over: it has no table of pages");
        return -EBADF;
    }
    int rc = store_open(s, opt, fds, err, errlen);
    if (!rc) {
        s->reopening = true;
        store_reopen_scan(s);
        rc = threads_start(s, err, errlen);
    }
    if (rc)
        levels_leave(s, fds);
    return rc;
}

void store_fini(void)
{
    struct store *s = &store_self;
    if (!s->slots)
        return;
    xpet_stop(s);
    store_reader_stop(s);
    levels_fini(s);
}
