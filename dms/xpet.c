#include "xpet.h"

#include "store_int.h"
#include <errno.h>
#include <lz4.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define COMPRESS_BATCH 32u
#define COMPRESS_RUN 256u
#define AHEAD_MIN 2048u /* 8 MiB of backed memory ahead of need */
#define AHEAD_MAX 16384u
#define TRIM_SECONDS 1 /* what nobody needed for so long is given back */
#define ROOM_FRAMES 64u

/* ---- policy ---- */

uint32_t xpet_ahead(const struct xpet_load *l)
{
    uint32_t ahead = l->used / 4;
    if (ahead < AHEAD_MIN)
        ahead = l->used ? AHEAD_MIN : MEM_STEP_FRAMES;
    return ahead < AHEAD_MAX ? ahead : AHEAD_MAX;
}

static uint32_t share(uint32_t whole, uint32_t percent)
{
    return (uint32_t)((uint64_t)whole * percent / 100);
}

/* Raw pages that make compressing worth a wake-up: fewer, the less room is left. */
static uint32_t run(const struct xpet_load *l)
{
    uint32_t room = l->used < l->limit ? l->limit - l->used : 0;
    return room / 2 > COMPRESS_RUN ? COMPRESS_RUN : room / 2 + 1;
}

enum xpet_work xpet_decide(struct xpet_policy *p, const struct xpet_load *l)
{
    uint32_t ahead = xpet_ahead(l);
    p->growing = l->growable && l->spare < (p->growing ? ahead : ahead / 2);
    p->compressing = l->compress && !l->transit && l->raw >= (p->compressing ? 1 : run(l)) &&
                     l->used > share(l->limit, p->compressing ? 65 : 70);
    uint32_t mark = l->transit ? 0 : share(l->limit, p->writing ? 85 : 90);
    p->writing = l->raw + l->cold && l->used > mark; /* also while readers hold all that there is */
    if (p->growing)
        return XPET_GROW;
    bool write = p->writing && l->disk_room && !(p->compressing && p->wrote);
    p->wrote = write;
    if (write)
        return XPET_WRITE;
    return p->compressing ? XPET_COMPRESS : XPET_IDLE;
}

static enum xpet_work next_work(struct store *s, struct xpet_policy *p)
{
    uint32_t capacity = store_mem_capacity(&s->mem);
    struct xpet_load l = {
        .limit = store_limit(s),
        .used = s->mem.used,
        .spare = s->mem.spare,
        .growable = capacity > s->mem.granted ? capacity - s->mem.granted : 0,
        .raw = s->raw.n,
        .cold = s->cold.n,
        .disk_room = s->has_disk && !s->xpet.stuck ? store_disk_room(&s->disk) : 0,
        .compress = s->compression == EDM_COMPRESSION_AUTO,
        .transit = s->transit,
    };
    return xpet_decide(p, &l);
}

enum answer { ANSWER_NONE, ANSWER_ROOM, ANSWER_FULL };

/* What a put that was refused is to hear, if anything. */
static enum answer next_answer(const struct store *s, enum xpet_work work)
{
    if (!s->refused)
        return ANSWER_NONE;
    uint32_t limit = store_limit(s);
    uint32_t room = s->mem.used < limit ? limit - s->mem.used : 0;
    uint32_t want = limit / 64 < ROOM_FRAMES ? limit / 64 : ROOM_FRAMES;
    if (want == 0 || (work == XPET_IDLE && !s->full_told))
        want = 1;
    if (room >= want)
        return ANSWER_ROOM;
    bool full = work == XPET_IDLE && !s->xpet.stuck && !s->full_told;
    return full ? ANSWER_FULL : ANSWER_NONE;
}

static uint32_t memory_to_keep(const struct store *s)
{
    return s->mem.used ? AHEAD_MAX + s->mem.used / 4 : MEM_STEP_FRAMES;
}

static bool can_trim(const struct store *s)
{
    bool disk = s->has_disk && s->disk.used == 0 && s->disk.granted > 0;
    return disk || s->mem.spare >= memory_to_keep(s) + MEM_STEP_FRAMES;
}

bool xpet_has_work(struct store *s)
{
    struct xpet_policy p = s->xpet.policy;
    enum xpet_work work = next_work(s, &p);
    if (work != XPET_IDLE || next_answer(s, work) != ANSWER_NONE)
        return true;
    return !s->xpet.timed && can_trim(s);
}

/* ---- work; all called, and left, with the lock held ---- */

static void answer(struct store *s, enum answer a)
{
    s->full_told = a == ANSWER_FULL;
    if (a == ANSWER_ROOM)
        s->refused = false;
    pthread_mutex_unlock(&s->lock);
    if (s->on_room)
        s->on_room(s->arg, a == ANSWER_FULL);
    pthread_mutex_lock(&s->lock);
}

static void grow(struct store *s)
{
    uint32_t step = store_mem_grow_begin(&s->mem, false);
    if (step == MEM_NONE)
        return;
    pthread_mutex_unlock(&s->lock);
    int rc = store_mem_grow_run(&s->mem, step, false);
    pthread_mutex_lock(&s->lock);
    store_mem_grow_end(&s->mem, step, rc);
    pthread_cond_broadcast(&s->grown);
}

/* Replaces a raw page by its compressed form, if that is still wanted and possible. */
static void compressed(struct store *s, uint32_t h, const char *data, uint32_t len)
{
    struct slot *sl = &s->slots[h];
    uint32_t object = MEM_NONE;
    if (len && sl->count && !sl->pins)
        object = store_mem_object_get(&s->mem, store_mem_class(len));
    if (object != MEM_NONE) {
        memcpy(store_mem_object(&s->mem, object), data, len);
        store_slot_move(s, sl, SLOT_LZ4, object, len);
    }
    store_slot_settle(s, h);
}

static void compress(struct store *s)
{
    uint32_t h[COMPRESS_BATCH], n = 0;
    const void *from[COMPRESS_BATCH];
    uint32_t len[COMPRESS_BATCH];
    char *to = (char *)s->xpet.batch;
    while (n < COMPRESS_BATCH && s->raw.head) {
        h[n] = s->raw.head;
        struct slot *sl = &s->slots[h[n]];
        slot_list_remove(s, &s->raw, h[n]);
        sl->busy = 1;
        from[n++] = store_slot_data(s, sl);
    }
    pthread_mutex_unlock(&s->lock);
    for (uint32_t i = 0; i < n; i++)
        len[i] = (uint32_t)LZ4_compress_default(from[i], to + i * MEM_OBJECT_MAX, STORE_PAGE,
                                                MEM_OBJECT_MAX);
    pthread_mutex_lock(&s->lock);
    for (uint32_t i = 0; i < n; i++)
        compressed(s, h[i], to + i * MEM_OBJECT_MAX, len[i]);
}

/* The coldest slots that nobody reads, off their lists and busy; what they hold in copy. */
static uint32_t pick(struct store *s, uint32_t *h, struct slot *copy, uint32_t want)
{
    uint32_t n = 0, pinned[XPET_BATCH], npinned = 0;
    while (n < want && npinned < XPET_BATCH) {
        struct slot_list *l = s->cold.head ? &s->cold : &s->raw;
        uint32_t c = l->head;
        if (!c)
            break;
        struct slot *sl = &s->slots[c];
        slot_list_remove(s, l, c);
        if (sl->pins) {
            pinned[npinned++] = c;
            continue;
        }
        sl->busy = 1;
        h[n] = c;
        copy[n++] = *sl;
    }
    for (uint32_t i = 0; i < npinned; i++) { /* looked at again after all others */
        s->slots[pinned[i]].cold = 1;
        slot_list_push(s, &s->cold, pinned[i]);
    }
    return n;
}

/* Back to where pick took them from. */
static void unpick(struct store *s, const uint32_t *h, uint32_t n)
{
    while (n-- > 0) {
        struct slot *sl = &s->slots[h[n]];
        sl->busy = 0;
        if (store_slot_reap(s, h[n]))
            continue;
        slot_list_push_head(s, sl->cold ? &s->cold : &s->raw, h[n]);
    }
}

static void fill_batch(struct store *s, const struct slot *copy, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        char *to = (char *)s->xpet.batch + i * STORE_PAGE;
        const char *from = store_slot_data(s, &copy[i]);
        if (copy[i].kind == SLOT_RAW)
            memcpy(to, from, STORE_PAGE);
        else if (LZ4_decompress_safe(from, to, copy[i].len, STORE_PAGE) != (int)STORE_PAGE)
            memset(to, 0, STORE_PAGE); /* damaged: the checksum will say so */
        if (s->flip == STORE_FLIP_DISK)
            to[STORE_PAGE / 2] ^= 0x10;
    }
}

/* The page is on disk now, unless it was freed or is being read in memory. */
static void written(struct store *s, uint32_t h, uint32_t block)
{
    struct slot *sl = &s->slots[h];
    s->written++;
    if (!sl->count || sl->pins) {
        store_disk_put(&s->disk, block);
        store_slot_settle(s, h);
        return;
    }
    sl->busy = 0;
    store_slot_move(s, sl, SLOT_DISK, block, 0);
}

static void extend(struct store *s)
{
    pthread_mutex_unlock(&s->lock);
    int rc = store_disk_extend_run(&s->disk);
    pthread_mutex_lock(&s->lock);
    store_disk_extend_end(&s->disk, rc);
}

static void write_batch(struct store *s)
{
    uint32_t h[XPET_BATCH], block = 0;
    struct slot copy[XPET_BATCH];
    if (store_disk_wants_extend(&s->disk, XPET_BATCH)) {
        extend(s);
        return;
    }
    uint32_t picked = pick(s, h, copy, XPET_BATCH);
    uint32_t n = picked ? store_disk_get(&s->disk, picked, &block) : 0;
    unpick(s, h + n, picked - n);
    if (n == 0) {
        s->xpet.stuck = picked == 0;
        return;
    }
    pthread_mutex_unlock(&s->lock);
    fill_batch(s, copy, n);
    int rc = store_disk_write(&s->disk, block, n, s->xpet.batch);
    pthread_mutex_lock(&s->lock);
    if (rc) {
        store_disk_fail(&s->disk, rc);
        for (uint32_t i = 0; i < n; i++)
            store_disk_put(&s->disk, block + i);
        unpick(s, h, n);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        written(s, h[i], block + i);
}

/* ---- giving back what is not needed ---- */

static void trim(struct store *s)
{
    uint32_t keep = memory_to_keep(s), unused = store_mem_spare_min(&s->mem), step;
    if (s->has_disk)
        store_disk_trim(&s->disk);
    while (!s->xpet.stop && unused >= keep + MEM_STEP_FRAMES &&
           (step = store_mem_shrink_begin(&s->mem, keep)) != MEM_NONE) {
        unused -= MEM_STEP_FRAMES;
        pthread_mutex_unlock(&s->lock);
        int rc = store_mem_shrink_run(&s->mem, step);
        pthread_mutex_lock(&s->lock);
        store_mem_shrink_end(&s->mem, step, rc);
        pthread_cond_broadcast(&s->grown);
    }
}

static void sleep_until_needed(struct store *s)
{
    struct timespec until;
    int rc = 0;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += TRIM_SECONDS;
    s->xpet.timed = can_trim(s);
    s->xpet.idle = true;
    while (s->xpet.idle && !s->xpet.stop && rc != ETIMEDOUT)
        rc = s->xpet.timed ? pthread_cond_timedwait(&s->work, &s->lock, &until)
                           : pthread_cond_wait(&s->work, &s->lock);
    s->xpet.idle = false;
    if (rc == ETIMEDOUT)
        trim(s);
}

/* ---- the thread ---- */

static void *xpet_main(void *arg)
{
    struct store *s = arg;
    pthread_mutex_lock(&s->lock);
    while (s->reopening && !s->xpet.stop)
        pthread_cond_wait(&s->work, &s->lock);
    while (!s->xpet.stop) {
        enum xpet_work work = next_work(s, &s->xpet.policy);
        enum answer a = next_answer(s, work);
        if (a != ANSWER_NONE)
            answer(s, a);
        else if (work == XPET_GROW)
            grow(s);
        else if (work == XPET_COMPRESS)
            compress(s);
        else if (work == XPET_WRITE)
            write_batch(s);
        else
            sleep_until_needed(s);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

int xpet_start(struct store *s)
{
    sigset_t all, old;
    s->xpet.batch = aligned_alloc(STORE_PAGE, XPET_BATCH * STORE_PAGE);
    if (!s->xpet.batch)
        return -ENOMEM;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&s->xpet.thread, NULL, xpet_main, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc) {
        free(s->xpet.batch);
        s->xpet.batch = NULL;
        return -rc;
    }
    pthread_setname_np(s->xpet.thread, "edm-xpet");
    s->xpet.started = true;
    return 0;
}

void xpet_stop(struct store *s)
{
    if (!s->xpet.started)
        return;
    pthread_mutex_lock(&s->lock);
    s->xpet.stop = true;
    pthread_mutex_unlock(&s->lock);
    pthread_cond_signal(&s->work);
    pthread_join(s->xpet.thread, NULL);
    free(s->xpet.batch);
    memset(&s->xpet, 0, sizeof s->xpet);
}
