#include "store_mem.h"

#include "../config/log.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum step_state { STEP_EMPTY = 0, STEP_MOVING, STEP_FILE, STEP_PRIVATE };

#define OBJECT_SHIFT 5
#define OBJECTS_MAX (1u << OBJECT_SHIFT)

/* Objects in a frame, by class. */
static const uint8_t per_frame[MEM_CLASSES] = {32, 24, 16, 12, 10, 8, 6, 5, 4, 3, 2};

/* ---- lists of frames ---- */

static void list_remove(struct store_mem *m, struct mem_list *l, uint32_t f)
{
    struct mem_frame *fr = &m->frames[f];
    if (fr->prev == MEM_NONE)
        l->head = fr->next;
    else
        m->frames[fr->prev].next = fr->next;
    if (fr->next == MEM_NONE)
        l->tail = fr->prev;
    else
        m->frames[fr->next].prev = fr->prev;
}

static void list_push_head(struct store_mem *m, struct mem_list *l, uint32_t f)
{
    m->frames[f].prev = MEM_NONE;
    m->frames[f].next = l->head;
    if (l->head == MEM_NONE)
        l->tail = f;
    else
        m->frames[l->head].prev = f;
    l->head = f;
}

static void list_push_tail(struct store_mem *m, struct mem_list *l, uint32_t f)
{
    m->frames[f].next = MEM_NONE;
    m->frames[f].prev = l->tail;
    if (l->tail == MEM_NONE)
        l->head = f;
    else
        m->frames[l->tail].next = f;
    l->tail = f;
}

/* ---- frames ---- */

uint32_t store_mem_frame_get(struct store_mem *m)
{
    uint32_t f = m->free.head;
    if (f == MEM_NONE)
        return MEM_NONE;
    list_remove(m, &m->free, f);
    m->used++;
    if (--m->spare < m->spare_min)
        m->spare_min = m->spare;
    m->steps[f / MEM_STEP_FRAMES].used++;
    return f;
}

void store_mem_frame_put(struct store_mem *m, uint32_t frame)
{
    assert(m->steps[frame / MEM_STEP_FRAMES].used > 0);
    m->steps[frame / MEM_STEP_FRAMES].used--;
    m->used--;
    m->spare++;
    list_push_head(m, &m->free, frame);
}

uint32_t store_mem_capacity(const struct store_mem *m)
{
    return m->ceiling < m->capacity ? m->ceiling : m->capacity;
}

/* ---- objects ---- */

uint32_t store_mem_class(uint32_t len)
{
    assert(len > 0 && len <= MEM_OBJECT_MAX);
    uint32_t c = 0;
    while (MEM_FRAME_SIZE / per_frame[c] < len)
        c++;
    return c;
}

bool store_mem_object_ready(const struct store_mem *m, uint32_t class)
{
    return m->partial[class].head != MEM_NONE;
}

uint32_t store_mem_object_get(struct store_mem *m, uint32_t class)
{
    uint32_t f = m->partial[class].head;
    if (f == MEM_NONE) {
        f = store_mem_frame_get(m);
        if (f == MEM_NONE)
            return MEM_NONE;
        m->frames[f].class = class;
        m->frames[f].free = (uint32_t)((1ull << per_frame[class]) - 1);
        list_push_head(m, &m->partial[class], f);
    }
    struct mem_frame *fr = &m->frames[f];
    uint32_t i = (uint32_t)__builtin_ctz(fr->free);
    fr->free &= fr->free - 1;
    if (fr->free == 0)
        list_remove(m, &m->partial[class], f);
    return f << OBJECT_SHIFT | i;
}

void store_mem_object_put(struct store_mem *m, uint32_t object)
{
    uint32_t f = object >> OBJECT_SHIFT, bit = 1u << (object & (OBJECTS_MAX - 1));
    struct mem_frame *fr = &m->frames[f];
    uint32_t all = (uint32_t)((1ull << per_frame[fr->class]) - 1);
    assert(!(fr->free & bit));
    if (fr->free == 0)
        list_push_head(m, &m->partial[fr->class], f);
    fr->free |= bit;
    if (fr->free == all) {
        list_remove(m, &m->partial[fr->class], f);
        store_mem_frame_put(m, f);
    }
}

void *store_mem_object(const struct store_mem *m, uint32_t object)
{
    uint32_t f = object >> OBJECT_SHIFT, i = object & (OBJECTS_MAX - 1);
    uint32_t size = MEM_FRAME_SIZE / per_frame[m->frames[f].class];
    return m->base + (uint64_t)f * MEM_FRAME_SIZE + (uint64_t)i * size;
}

/* ---- steps ---- */

uint32_t store_mem_grow_begin(struct store_mem *m, bool force)
{
    if (!force && m->granted >= store_mem_capacity(m))
        return MEM_NONE;
    while (m->hint < m->nsteps && m->steps[m->hint].state != STEP_EMPTY)
        m->hint++;
    if (m->hint == m->nsteps)
        return MEM_NONE;
    m->steps[m->hint].state = STEP_MOVING;
    m->granted += MEM_STEP_FRAMES;
    m->moving++;
    return m->hint++;
}

static int step_allocate(const struct store_mem *m, uint32_t step)
{
    int rc;
    do
        rc = fallocate(m->fd, 0, (off_t)(step * MEM_STEP_SIZE), (off_t)MEM_STEP_SIZE);
    while (rc && errno == EINTR);
    return rc ? -errno : 0;
}

int store_mem_grow_run(struct store_mem *m, uint32_t step, bool force)
{
    off_t at = (off_t)(step * MEM_STEP_SIZE);
    int err = step_allocate(m, step);
    if (!err) {
        /* Only saves faults later; the frames are there. */
        madvise(m->base + at, MEM_STEP_SIZE, MADV_POPULATE_WRITE);
        return STEP_FILE;
    }
    if (!force)
        return err;
    void *p = mmap(m->base + at, MEM_STEP_SIZE, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return p == MAP_FAILED ? err : STEP_PRIVATE;
}

void store_mem_grow_end(struct store_mem *m, uint32_t step, int outcome)
{
    m->moving--;
    if (outcome < 0) {
        m->steps[step].state = STEP_EMPTY;
        m->granted -= MEM_STEP_FRAMES;
        m->ceiling = m->granted;
        if (step < m->hint)
            m->hint = step;
        if (!m->told)
            edm_warn("memory store: the system refuses more than %llu MiB of shared memory (%s): "
                     "the store stays smaller than memory_store; enlarge /dev/shm or the memory "
                     "limit",
                     (unsigned long long)m->granted * MEM_FRAME_SIZE >> 20, strerror(-outcome));
        m->told = true;
        return;
    }
    m->steps[step].state = (uint8_t)outcome;
    m->spare += MEM_STEP_FRAMES;
    for (uint32_t i = 0; i < MEM_STEP_FRAMES; i++)
        list_push_tail(m, &m->free, step * MEM_STEP_FRAMES + i);
}

uint32_t store_mem_shrink_begin(struct store_mem *m, uint32_t keep)
{
    if (m->spare < (uint64_t)keep + MEM_STEP_FRAMES)
        return MEM_NONE;
    uint32_t s = m->nsteps;
    while (s-- > 0) {
        struct mem_step *st = &m->steps[s];
        if (st->used || (st->state != STEP_FILE && st->state != STEP_PRIVATE))
            continue;
        for (uint32_t i = 0; i < MEM_STEP_FRAMES; i++)
            list_remove(m, &m->free, s * MEM_STEP_FRAMES + i);
        m->frames[s * MEM_STEP_FRAMES].class = st->state; /* for _run: which kind it was */
        st->state = STEP_MOVING;
        m->spare -= MEM_STEP_FRAMES;
        m->moving++;
        return s;
    }
    return MEM_NONE;
}

int store_mem_shrink_run(struct store_mem *m, uint32_t step)
{
    off_t at = (off_t)(step * MEM_STEP_SIZE);
    int state = (int)m->frames[step * MEM_STEP_FRAMES].class;
    if (state == STEP_FILE) {
        int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        return fallocate(m->fd, mode, at, (off_t)MEM_STEP_SIZE) ? state : STEP_EMPTY;
    }
    void *p = mmap(m->base + at, MEM_STEP_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                   m->fd, at);
    return p == MAP_FAILED ? state : STEP_EMPTY;
}

void store_mem_shrink_end(struct store_mem *m, uint32_t step, int outcome)
{
    if (outcome != STEP_EMPTY) { /* could not: the frames stay in use as spare ones */
        store_mem_grow_end(m, step, outcome);
        return;
    }
    m->moving--;
    m->steps[step].state = STEP_EMPTY;
    m->granted -= MEM_STEP_FRAMES;
    m->ceiling = MEM_NONE; /* what was refused once may be had later */
    if (step < m->hint)
        m->hint = step;
}

uint32_t store_mem_spare_min(struct store_mem *m)
{
    uint32_t least = m->spare_min;
    m->spare_min = m->spare;
    return least;
}

/* ---- start and end ---- */

static int file_open(const char *dir, uint64_t capacity)
{
    struct statvfs vfs;
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 && fstatvfs(fd, &vfs) == 0) {
        uint64_t room = (uint64_t)vfs.f_bavail * vfs.f_frsize;
        if (vfs.f_blocks == 0 || room >= capacity) /* no blocks: no limit */
            return fd;
        edm_warn("memory store: %s has %llu MiB free, memory_store wants %llu MiB: using memory "
                 "outside of it",
                 dir, (unsigned long long)room >> 20, (unsigned long long)capacity >> 20);
    }
    if (fd >= 0)
        close(fd);
    fd = memfd_create("edm-store", MFD_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static void *table_map(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static int file_map(struct store_mem *m)
{
    uint64_t bytes = (uint64_t)m->limit * MEM_FRAME_SIZE;
    struct stat st;
    if (fstat(m->fd, &st) || ((uint64_t)st.st_size < bytes && ftruncate(m->fd, (off_t)bytes)))
        return -errno;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
    if (p == MAP_FAILED)
        return -errno;
    m->base = p;
    madvise(p, bytes, MADV_DONTDUMP);
    return 0;
}

static uint32_t frames_of(uint64_t bytes)
{
    uint64_t n = (bytes + MEM_FRAME_SIZE - 1) / MEM_FRAME_SIZE;
    return n > MEM_FRAMES_MAX ? MEM_FRAMES_MAX : (uint32_t)n;
}

static int tables_init(struct store_mem *m, uint64_t capacity_bytes, uint64_t limit_bytes)
{
    memset(m, 0, sizeof *m);
    m->fd = -1;
    m->capacity = frames_of(capacity_bytes);
    m->limit = frames_of(limit_bytes < capacity_bytes ? capacity_bytes : limit_bytes);
    m->limit = (m->limit + MEM_STEP_FRAMES - 1) / MEM_STEP_FRAMES * MEM_STEP_FRAMES;
    m->nsteps = m->limit / MEM_STEP_FRAMES;
    m->ceiling = MEM_NONE;
    m->free = (struct mem_list){MEM_NONE, MEM_NONE};
    for (int i = 0; i < MEM_CLASSES; i++)
        m->partial[i] = m->free;
    m->steps = table_map((uint64_t)m->nsteps * sizeof *m->steps);
    m->frames = table_map((uint64_t)m->limit * sizeof *m->frames);
    return m->steps && m->frames ? 0 : -ENOMEM;
}

int store_mem_init(struct store_mem *m, const char *dir, uint64_t capacity_bytes,
                   uint64_t limit_bytes)
{
    int rc = tables_init(m, capacity_bytes, limit_bytes);
    if (rc < 0)
        goto fail;
    rc = m->fd = file_open(dir, capacity_bytes);
    if (rc < 0)
        goto fail;
    rc = file_map(m);
    if (rc < 0)
        goto fail;
    uint32_t step = store_mem_grow_begin(m, true);
    rc = store_mem_grow_run(m, step, false);
    if (rc < 0)
        goto fail;
    store_mem_grow_end(m, step, rc);
    return 0;
fail:
    store_mem_fini(m);
    return rc;
}

/* ---- what a dead process left ---- */

/* While claims are made: what frames[].prev says of a frame. */
enum claim { CLAIM_HOLE = 0, CLAIM_DATA, CLAIM_PAGE, CLAIM_OBJECTS };

/* Frames that the file has. Private memory was in its holes, and is gone. */
static void data_find(struct store_mem *m)
{
    uint64_t end = (uint64_t)m->limit * MEM_FRAME_SIZE;
    off_t data = 0, hole = 0;
    while ((data = lseek(m->fd, hole, SEEK_DATA)) >= 0 && (uint64_t)data < end) {
        hole = lseek(m->fd, data, SEEK_HOLE);
        if (hole < 0)
            return;
        uint64_t last = (uint64_t)hole < end ? (uint64_t)hole : end;
        for (uint64_t f = (uint64_t)data / MEM_FRAME_SIZE; f < last / MEM_FRAME_SIZE; f++)
            m->frames[f].prev = CLAIM_DATA;
    }
}

int store_mem_reopen(struct store_mem *m, int fd, uint64_t capacity_bytes, uint64_t limit_bytes)
{
    struct stat st;
    if (fstat(fd, &st))
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    uint64_t there = (uint64_t)st.st_size;
    int rc = tables_init(m, capacity_bytes, there > limit_bytes ? there : limit_bytes);
    m->fd = fd;
    if (rc == 0)
        rc = file_map(m);
    if (rc == 0) {
        data_find(m);
        m->claiming = true;
        return 0;
    }
    m->fd = -1; /* still the caller's */
    store_mem_fini(m);
    return rc;
}

static void frame_claim(struct store_mem *m, uint32_t f, enum claim claim)
{
    m->frames[f].prev = claim;
    m->steps[f / MEM_STEP_FRAMES].used++;
    m->used++;
}

bool store_mem_claim_frame(struct store_mem *m, uint32_t frame)
{
    if (!m->claiming || frame >= m->limit || m->frames[frame].prev != CLAIM_DATA)
        return false;
    frame_claim(m, frame, CLAIM_PAGE);
    return true;
}

bool store_mem_claim_object(struct store_mem *m, uint32_t object, uint32_t len)
{
    uint32_t f = object >> OBJECT_SHIFT, i = object & (OBJECTS_MAX - 1);
    if (!m->claiming || len == 0 || len > MEM_OBJECT_MAX || f >= m->limit)
        return false;
    uint32_t class = store_mem_class(len);
    struct mem_frame *fr = &m->frames[f];
    if (i >= per_frame[class] || fr->prev == CLAIM_HOLE || fr->prev == CLAIM_PAGE)
        return false;
    if (fr->prev == CLAIM_DATA) {
        frame_claim(m, f, CLAIM_OBJECTS);
        fr->class = class;
        fr->free = (uint32_t)((1ull << per_frame[class]) - 1);
    }
    if (fr->class != class || !(fr->free & 1u << i))
        return false;
    fr->free &= ~(1u << i);
    return true;
}

/* The frames of a step in which some were claimed go to their lists. */
static void step_reopen(struct store_mem *m, uint32_t step)
{
    uint32_t first = step * MEM_STEP_FRAMES, end = first + MEM_STEP_FRAMES, f = first;
    while (f < end && m->frames[f].prev != CLAIM_HOLE)
        f++;
    bool backed = f == end || step_allocate(m, step) == 0;
    m->steps[step].state = STEP_FILE;
    m->granted += MEM_STEP_FRAMES;
    for (f = first; f < end; f++) {
        enum claim claim = (enum claim)m->frames[f].prev;
        if (claim == CLAIM_DATA || (claim == CLAIM_HOLE && backed)) {
            list_push_tail(m, &m->free, f);
            m->spare++;
        } else if (claim == CLAIM_HOLE) { /* never to be given out */
            m->steps[step].used++;
            m->used++;
        } else if (claim == CLAIM_OBJECTS && m->frames[f].free) {
            list_push_head(m, &m->partial[m->frames[f].class], f);
        }
    }
}

void store_mem_reopen_end(struct store_mem *m)
{
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    for (uint32_t s = 0, n; m->claiming && s < m->nsteps; s += n) {
        n = 1;
        if (m->steps[s].used) {
            step_reopen(m, s);
            continue;
        }
        while (s + n < m->nsteps && !m->steps[s + n].used)
            n++;
        fallocate(m->fd, mode, (off_t)(s * MEM_STEP_SIZE), (off_t)(n * MEM_STEP_SIZE));
    }
    m->claiming = false;
    m->spare_min = m->spare;
}

void store_mem_fini(struct store_mem *m)
{
    if (m->base)
        munmap(m->base, (uint64_t)m->limit * MEM_FRAME_SIZE);
    if (m->frames)
        munmap(m->frames, (uint64_t)m->limit * sizeof *m->frames);
    if (m->steps)
        munmap(m->steps, (uint64_t)m->nsteps * sizeof *m->steps);
    if (m->fd >= 0)
        close(m->fd);
    memset(m, 0, sizeof *m);
    m->fd = -1;
}
