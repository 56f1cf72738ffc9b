/*
 * What store.c and xpet.c share: the table of slots. Only for these two.
 *
 * One lock protects everything here. It is dropped for copying, hashing, compressing and I/O;
 * what a slot holds cannot go away meanwhile, because a slot that is pinned (a reader) or busy
 * (XPET) is not freed, only its count reaches 0: whoever ends the last such use frees it.
 */
#ifndef EDM_STORE_INT_H
#define EDM_STORE_INT_H

#include "store.h"
#include "store_disk.h"
#include "store_mem.h"
#include "xpet.h"
#include <pthread.h>

#define STORE_PAGE 4096u

enum slot_kind { SLOT_FREE, SLOT_RAW, SLOT_LZ4, SLOT_DISK };

struct slot {
    uint64_t sum; /* of the page as it was given, mixed with version */
    uint32_t version;
    uint32_t where;      /* frame, object or block, by kind */
    uint32_t count;      /* owners */
    uint32_t prev, next; /* in raw or cold, coldest first; next also in the free list; 0 ends */
    uint16_t pins;       /* readers */
    uint16_t len : 12;   /* of an object */
    uint16_t kind : 2;   /* enum slot_kind */
    uint16_t busy : 1;   /* XPET moves it; on no list */
    uint16_t cold : 1;   /* on (or for) list cold: not to be compressed (again) */
};
_Static_assert(sizeof(struct slot) == 32, "two slots a cache line");

struct slot_list {
    uint32_t head, tail, n;
};

enum store_flip { STORE_FLIP_NONE, STORE_FLIP_MEMORY, STORE_FLIP_DISK };

struct store {
    pthread_mutex_t lock;
    pthread_cond_t work;  /* XPET has something to do */
    pthread_cond_t grown; /* a step of memory was settled */
    struct slot *slots;
    uint32_t nslots, top, free; /* of the table; never used yet; list of free ones */
    struct slot_list raw;       /* raw pages that may be worth compressing */
    struct slot_list cold;      /* colder: LZ4, and raw for good */
    struct store_mem mem;
    struct store_disk disk;
    bool has_disk, transit; /* transit: memory only on the way to disk */
    enum edm_compression compression;
    enum store_flip flip; /* fault injection */
    uint64_t raw_pages, lz4_pages, disk_pages, written, read;
    bool refused;   /* a put since on_room(false) */
    bool full_told; /* on_room(true) since on_room(false) */
    void (*on_room)(void *arg, bool full);
    void *arg;
    struct xpet xpet;
};

/* Bytes where a slot in memory has its contents. */
void *store_slot_data(const struct store *s, const struct slot *sl);
/* Gives back what the slot's contents occupy, wherever. */
void store_slot_vacate(struct store *s, struct slot *sl);
/* XPET's work on the slot ended and it is still in memory: back to list cold, or freed. */
void store_slot_settle(struct store *s, uint32_t h);
/* Frees a slot that is on no list when nobody has or uses it any more; true if it did. */
bool store_slot_reap(struct store *s, uint32_t h);

void slot_list_push(struct store *s, struct slot_list *l, uint32_t h);
void slot_list_push_head(struct store *s, struct slot_list *l, uint32_t h);
void slot_list_remove(struct store *s, struct slot_list *l, uint32_t h);

/* Frames that puts may use: the capacity less what compressing itself needs. */
uint32_t store_limit(const struct store *s);

#endif
