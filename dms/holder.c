#include "holder.h"
#include "../config/log.h"
#include "homes.h"
#include "lasting.h"
#include "store.h"
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC 0x7470656bu
#define LAYOUT 1u
#define NSLOTS (1ull << 32)

/* By the store's handle of the slot; lasts. */
union kept {
    struct {
        uint32_t version;
        uint16_t home;    /* whose it is; 0: not kept for a rank */
        uint16_t claimed; /* 0: kept for a rank of an earlier job that has not asked for it yet */
    };
    uint64_t all; /* of that, to be changed at once */
};

static struct {
    pthread_mutex_t lock;
    struct lasting table;
    uint64_t top;              /* slots ever used */
    uint64_t pages[HOMES_MAX]; /* by home */
    uint64_t *total;           /* of these */
    /* FETCHes that must wait for the disk */
    struct waiting *first, **last;
    pthread_cond_t more;
    atomic_flag told; /* of pages given back that were not there: once */
    bool stale;       /* fault injection */
} kept = {.told = ATOMIC_FLAG_INIT,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .last = &kept.first,
          .more = PTHREAD_COND_INITIALIZER};

struct waiting {
    struct peer_buf *b;
    struct waiting *next;
};

/* ---- who owns what ---- */

static union kept *kept_at(uint32_t slot)
{
    return (union kept *)kept.table.items + slot;
}

static void kept_count(uint32_t slot, uint32_t home)
{
    kept.pages[home]++;
    ++*kept.total;
    if (slot >= kept.top)
        kept.top = slot + 1ull;
}

/* Lock held. */
static void kept_set(uint32_t slot, union kept to)
{
    union kept *k = kept_at(slot);
    if (k->home) {
        kept.pages[k->home]--;
        --*kept.total;
    }
    __atomic_store_n(&k->all, to.all, __ATOMIC_RELEASE);
    lasting_order(); /* before the slot is anything else */
    if (to.home)
        kept_count(slot, to.home);
}

/* Lock held. The entry, if that version in that slot is kept for that rank. Only to look at a slot
 * that was never used would take memory. */
static union kept *kept_find(int rank, const struct rank_slot *s)
{
    if (s->slot >= kept.top)
        return NULL;
    union kept *k = kept_at(s->slot);
    return k->home && k->home == homes_of(rank) && k->version == s->version ? k : NULL;
}

static int keep(int rank, store_handle h, uint32_t version)
{
    uint32_t home = homes_of(rank);
    if (!home)
        return -ENOSPC;
    pthread_mutex_lock(&kept.lock);
    kept_set(h, (union kept){{version, (uint16_t)home, 1}});
    pthread_mutex_unlock(&kept.lock);
    return 0;
}

/* False: it is not that rank's. */
static bool release(int rank, const struct rank_slot *s)
{
    pthread_mutex_lock(&kept.lock);
    bool ok = kept_find(rank, s) != NULL;
    if (ok)
        kept_set(s->slot, (union kept){.all = 0});
    pthread_mutex_unlock(&kept.lock);
    if (ok)
        store_unref(s->slot);
    return ok;
}

/* One owner more for as long as it is read: nobody can free it meanwhile. */
static bool hold(int rank, const struct rank_slot *s)
{
    pthread_mutex_lock(&kept.lock);
    bool ok = kept_find(rank, s) != NULL;
    if (ok)
        store_ref(s->slot);
    pthread_mutex_unlock(&kept.lock);
    return ok;
}

typedef bool doomed_fn(const union kept *k, uint32_t home);

static bool is_of(const union kept *k, uint32_t home)
{
    return k->home == home;
}

static bool is_unclaimed_of(const union kept *k, uint32_t home)
{
    return k->home == home && !k->claimed;
}

static bool is_absent(const union kept *k, uint32_t home)
{
    return k->home && homes_rank(k->home) < 0;
}

uint64_t holder_pages(void)
{
    uint64_t n = 0;
    pthread_mutex_lock(&kept.lock);
    for (int r = 0; r < peer_ranks(); r++)
        n += peer_is_alive(r) ? kept.pages[homes_of(r)] : 0;
    pthread_mutex_unlock(&kept.lock);
    return n;
}

static uint64_t free_all(doomed_fn *doomed, uint32_t home)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < kept.top; i++) {
        uint32_t slot = (uint32_t)i;
        pthread_mutex_lock(&kept.lock);
        bool out = doomed(kept_at(slot), home);
        if (out)
            kept_set(slot, (union kept){.all = 0});
        pthread_mutex_unlock(&kept.lock);
        if (out)
            store_unref(slot);
        n += out;
    }
    return n;
}

uint64_t holder_forget(int rank)
{
    uint32_t home = homes_of(rank);
    return home ? free_all(is_of, home) : 0;
}

uint64_t holder_forget_absent(void)
{
    return free_all(is_absent, 0);
}

/* ---- requests ---- */

void holder_stat(int rank, struct rank_stat *out)
{
    struct store_stats s;
    store_get_stats(&s);
    out->capacity = (s.memory.capacity_bytes + s.disk.capacity_bytes) / RANK_PAGE;
    out->used = (s.memory.used_bytes + s.disk.used_bytes) / RANK_PAGE;
    pthread_mutex_lock(&kept.lock);
    out->pages = kept.pages[homes_of(rank)];
    pthread_mutex_unlock(&kept.lock);
}

static struct rank_result keep_page(int rank, const void *page, uint32_t version)
{
    struct rank_result r = {0, 0};
    r.code = store_put(page, version, false, &r.slot);
    if (!r.code && (r.code = keep(rank, r.slot, version))) {
        store_unref(r.slot);
        r.slot = 0;
    }
    return r;
}

static void serve_store(struct peer_buf *b)
{
    struct rank_head *h = b->head;
    const struct rank_slot *slots = (const void *)(h + 1);
    struct rank_result results[RANK_PAGES];
    struct rank_stat *stat = (void *)(h + 1);
    const uint8_t *pages = rank_pages(h);
    for (uint32_t i = 0; i < h->count; i++)
        results[i] = keep_page(b->rank, pages + (size_t)i * RANK_PAGE, slots[i].version);
    holder_stat(b->rank, stat);
    memcpy(stat + 1, results, h->count * sizeof(*results));
    peer_answer(b, 0, sizeof(*stat) + h->count * sizeof(*results));
}

/* Fault injection: an older page, as sound as the store can tell. */
static void make_stale(uint8_t *page)
{
    static uint8_t older[RANK_PAGE];
    uint8_t now[RANK_PAGE];
    pthread_mutex_lock(&kept.lock);
    memcpy(now, page, RANK_PAGE);
    memcpy(page, older, RANK_PAGE);
    memcpy(older, now, RANK_PAGE);
    pthread_mutex_unlock(&kept.lock);
}

static int read_page(int rank, const struct rank_slot *s, bool may_block, uint8_t *to)
{
    struct store_view v;
    if (!hold(rank, s))
        return -ENOENT;
    int err =
        may_block ? store_read(s->slot, s->version, to) : store_view(s->slot, s->version, to, &v);
    if (!err && !may_block) {
        if (v.data != to)
            memcpy(to, v.data, RANK_PAGE);
        store_unview(&v);
    }
    store_unref(s->slot);
    if (!err && kept.stale)
        make_stale(to);
    return err;
}

/* False: it must wait for the disk; nothing of the request is changed. */
static bool serve_fetch(struct peer_buf *b, bool may_block)
{
    struct rank_head *h = b->head;
    struct rank_slot slots[RANK_PAGES];
    struct rank_result results[RANK_PAGES];
    uint8_t *to = rank_pages(h);
    memcpy(slots, h + 1, h->count * sizeof(*slots));
    for (uint32_t i = 0; i < h->count; i++) {
        results[i] = (struct rank_result){0, slots[i].slot};
        results[i].code = read_page(b->rank, &slots[i], may_block, to);
        if (results[i].code == -EAGAIN)
            return false;
        to += results[i].code ? 0 : RANK_PAGE;
    }
    memcpy(h + 1, results, h->count * sizeof(*results));
    peer_answer(b, 0, (size_t)(to - (uint8_t *)(h + 1)));
    return true;
}

static void fetch_later(struct peer_buf *b)
{
    struct waiting *w = malloc(sizeof(*w));
    if (!w) {
        peer_answer(b, -ENOMEM, 0);
        return;
    }
    *w = (struct waiting){b, NULL};
    pthread_mutex_lock(&kept.lock);
    *kept.last = w;
    kept.last = &w->next;
    pthread_cond_signal(&kept.more);
    pthread_mutex_unlock(&kept.lock);
}

/* Reads from disk for other ranks; it may wait for the disk and for nothing else. */
static void *disk_main(void *arg)
{
    for (;;) {
        pthread_mutex_lock(&kept.lock);
        while (!kept.first)
            pthread_cond_wait(&kept.more, &kept.lock);
        struct waiting *w = kept.first;
        kept.first = w->next;
        if (!kept.first)
            kept.last = &kept.first;
        pthread_mutex_unlock(&kept.lock);
        serve_fetch(w->b, true);
        free(w);
    }
    return NULL;
}

static void serve_drop(struct peer_buf *b)
{
    const struct rank_slot *slots = (const void *)(b->head + 1);
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < b->head->count; i++)
        wrong += !release(b->rank, &slots[i]);
    if (wrong && !atomic_flag_test_and_set(&kept.told))
        edm_warn("rank %d gives back %u pages that it has not here", b->rank, wrong);
    peer_answer(b, 0, 0);
}

/* A rank of this job says what it had here in an earlier one. */
static void serve_claim(struct peer_buf *b)
{
    struct rank_slot s;
    char *at = (char *)(b->head + 1);
    for (uint32_t i = 0; i < b->head->count; i++, at += sizeof(s)) {
        memcpy(&s, at, sizeof(s));
        pthread_mutex_lock(&kept.lock);
        union kept *k = kept_find(b->rank, &s);
        if (k)
            k->claimed = 1;
        pthread_mutex_unlock(&kept.lock);
        struct rank_result r = {k ? 0 : -ENOENT, s.slot};
        memcpy(at, &r, sizeof(r));
    }
    peer_answer(b, 0, b->head->count * sizeof(s));
}

static void serve_claimed(struct peer_buf *b)
{
    uint32_t home = homes_of(b->rank);
    if (home)
        free_all(is_unclaimed_of, home);
    peer_answer(b, 0, 0);
}

void holder_serve(struct peer_buf *b)
{
    switch (b->head->kind) {
    case RANK_STORE:
        serve_store(b);
        break;
    case RANK_FETCH:
        if (!serve_fetch(b, false))
            fetch_later(b);
        break;
    case RANK_DROP:
        serve_drop(b);
        break;
    case RANK_CLAIM:
        serve_claim(b);
        break;
    case RANK_CLAIMED:
        serve_claimed(b);
        break;
    case RANK_STAT:
        holder_stat(b->rank, (struct rank_stat *)(void *)(b->head + 1));
        peer_answer(b, 0, sizeof(struct rank_stat));
        break;
    default:
        peer_answer(b, -ENOSYS, 0);
    }
}

/* What a dead process kept: of it, what the store still has. Who is killed here leaves it all. */
static void take_over(uint32_t slot)
{
    union kept *k = kept_at(slot);
    if (!k->home)
        return;
    if (k->home >= HOMES_MAX || !store_adopt(slot, k->version)) {
        k->all = 0;
        return;
    }
    homes_use(k->home);
    k->claimed = 0;
    kept_count(slot, k->home);
}

int holder_open(int fd, uint64_t *pages)
{
    static const struct lasting_kind kind = {"edm-kept", MAGIC, LAYOUT, sizeof(union kept), NSLOTS};
    int err = lasting_open(&kept.table, fd, &kind);
    if (err)
        return err;
    kept.total = pages;
    *pages = kept.top = 0;
    memset(kept.pages, 0, sizeof(kept.pages));
    for (uint64_t from, to = 0; lasting_next(&kept.table, &from, &to);)
        for (uint64_t slot = from; slot < to; slot++)
            take_over((uint32_t)slot);
    return 0;
}

int holder_fd(void)
{
    return kept.table.fd;
}

int holder_init(void)
{
    pthread_t thread;
    kept.stale = getenv("EDM_TEST_STALE") != NULL;
    for (int i = 0; i < 4; i++) {
        int err = pthread_create(&thread, NULL, disk_main, NULL);
        if (err)
            return -err;
        pthread_detach(thread);
    }
    return 0;
}
