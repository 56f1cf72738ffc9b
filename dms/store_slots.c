#include "die.h"
#include "store_int.h"

#include <assert.h>
#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SLOTS_MAGIC 0x73746f6c734d4445ull /* "EDMslots" */
#define SLOTS_LAYOUT 1u

/* ---- lists ---- */

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

void store_slot_list(struct store *s, uint32_t h)
{
    struct slot *sl = &s->slots[h];
    sl->cold = sl->kind == SLOT_LZ4 || s->compression == EDM_COMPRESSION_LZ4;
    slot_list_push(s, sl->cold ? &s->cold : &s->raw, h);
}

/* ---- places ---- */

void *store_slot_data(const struct store *s, const struct slot *sl)
{
    return sl->kind == SLOT_RAW ? store_mem_frame(&s->mem, sl->where)
                                : store_mem_object(&s->mem, sl->where);
}

/* Pages that have their contents in places of that kind. */
static uint64_t *pages_of(struct store *s, unsigned kind)
{
    return kind == SLOT_RAW ? &s->raw_pages : kind == SLOT_LZ4 ? &s->lz4_pages : &s->disk_pages;
}

static void place_put(struct store *s, const struct slot *old)
{
    --*pages_of(s, old->kind);
    if (old->kind == SLOT_RAW)
        store_mem_frame_put(&s->mem, old->where);
    else if (old->kind == SLOT_LZ4)
        store_mem_object_put(&s->mem, old->where);
    else
        store_disk_put(&s->disk, old->where);
}

void store_slot_move(struct store *s, struct slot *sl, enum slot_kind kind, uint32_t where,
                     uint32_t len)
{
    struct slot old = *sl, next = *sl;
    next.kind = kind & 3;
    next.where = where;
    next.len = len & 0xfff;
    __atomic_store_n(&sl->place, next.place, __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    if (kind != SLOT_FREE)
        ++*pages_of(s, kind);
    if (old.kind != SLOT_FREE && kind != SLOT_FREE)
        die_at(DIE_STORE_MOVED);
    if (old.kind != SLOT_FREE)
        place_put(s, &old);
}

/* ---- slots ---- */

struct slot *store_slot_of(const struct store *s, store_handle h)
{
    assert(h > 0 && h < s->top && s->slots[h].kind != SLOT_FREE);
    return &s->slots[h];
}

uint32_t store_slot_new(struct store *s)
{
    uint32_t h = s->free;
    if (h)
        s->free = s->slots[h].next;
    else if (s->top < s->nslots)
        h = s->top++;
    if (h)
        s->slots[h] = (struct slot){.count = 1};
    return h;
}

bool store_slot_reap(struct store *s, uint32_t h)
{
    struct slot *sl = &s->slots[h];
    if (sl->count || sl->pins)
        return false;
    store_slot_move(s, sl, SLOT_FREE, 0, 0);
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

void store_slot_drop(struct store *s, uint32_t h)
{
    struct slot *sl = &s->slots[h];
    if (sl->count || sl->pins || sl->busy || s->reopening)
        return;
    if (sl->kind != SLOT_DISK)
        slot_list_remove(s, sl->cold ? &s->cold : &s->raw, h);
    store_slot_reap(s, h);
}

/* ---- the file ---- */

static int header_check(int fd, uint64_t *size)
{
    struct slots_header h;
    struct stat st;
    if (fstat(fd, &st))
        return -errno;
    *size = (uint64_t)st.st_size;
    if (!S_ISREG(st.st_mode) || pread(fd, &h, sizeof h, 0) != (ssize_t)sizeof h)
        return -EINVAL;
    bool ours = h.magic == SLOTS_MAGIC && h.layout == SLOTS_LAYOUT &&
                h.slot_size == sizeof(struct slot) && *size >= SLOTS_HEADER_SIZE;
    return ours ? 0 : -EINVAL;
}

static uint64_t table_bytes(const struct store *s)
{
    return SLOTS_HEADER_SIZE + (uint64_t)s->nslots * sizeof *s->slots;
}

/* Maps the table, made longer where n slots need that. */
static int table_map(struct store *s, uint64_t n, int fd, uint64_t size)
{
    uint64_t there = size < SLOTS_HEADER_SIZE ? 0 : (size - SLOTS_HEADER_SIZE) / sizeof *s->slots;
    n = n > there ? n : there;
    s->nslots = n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
    s->top = 1; /* 0 is no handle */
    uint64_t bytes = table_bytes(s);
    if (bytes > size && ftruncate(fd, (off_t)bytes))
        return -errno;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (p == MAP_FAILED)
        return -errno;
    madvise(p, bytes, MADV_DONTDUMP);
    s->header = p;
    s->slots = (struct slot *)((char *)p + SLOTS_HEADER_SIZE);
    return 0;
}

static int table_make(struct store *s, uint64_t n)
{
    int fd = memfd_create("edm-slots", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = table_map(s, n, fd, 0);
    if (rc) {
        close(fd);
        return rc;
    }
    *s->header = (struct slots_header){
        .magic = SLOTS_MAGIC, .layout = SLOTS_LAYOUT, .slot_size = sizeof(struct slot)};
    return fd;
}

int store_slots_init(struct store *s, uint64_t n, int fd)
{
    uint64_t size = 0;
    int rc = fd;
    if (fd < 0) {
        rc = table_make(s, n);
    } else {
        int err = header_check(fd, &size);
        if (!err)
            err = table_map(s, n, fd, size);
        rc = err ? err : fd;
    }
    if (rc < 0)
        return rc;
    s->slots_fd = rc;
    return 0;
}

void store_slots_fini(struct store *s)
{
    if (s->header)
        munmap(s->header, table_bytes(s));
    if (s->slots_fd >= 0)
        close(s->slots_fd);
    s->header = NULL;
    s->slots = NULL;
    s->slots_fd = -1;
}
