/*
 * What the files of the page store share: the table of slots. Only for store*.c and xpet.c.
 *
 * One lock protects everything here. It is dropped for copying, hashing, compressing and I/O;
 * what a slot holds cannot go away meanwhile, because a slot that is pinned (a reader) or busy
 * (XPET) is not freed, only its count reaches 0: whoever ends the last such use frees it.
 *
 * The table is a file that outlives a process killed at any instruction. Of a slot, only `sum`,
 * `version` and where its contents are is believed afterwards (store_reopen.c). Hence the order:
 * contents, sum and version are complete before one store of `place` makes them the slot's; that
 * store comes before what it named until then is given to anybody else.
 */
#ifndef EDM_STORE_INT_H
#define EDM_STORE_INT_H

#include "store.h"
#include "store_disk.h"
#include "store_mem.h"
#include "store_reader.h"
#include "xpet.h"
#include <pthread.h>

#define STORE_PAGE 4096u

enum slot_kind { SLOT_FREE, SLOT_RAW, SLOT_LZ4, SLOT_DISK };

struct slot {
    uint64_t sum; /* of the page as it was given, mixed with version */
    uint32_t version;
    uint32_t count;      /* owners */
    uint32_t prev, next; /* in raw or cold, coldest first; next also in the free list; 0 ends */
    union {
        struct {
            uint32_t where;    /* frame, object or block, by kind */
            uint16_t pins;     /* readers */
            uint16_t len : 12; /* of an object */
            uint16_t kind : 2; /* enum slot_kind */
            uint16_t busy : 1; /* XPET moves it; on no list */
            uint16_t cold : 1; /* on (or for) list cold: not to be compressed (again) */
        };
        uint64_t place; /* all of that, to be changed at once */
    };
};
_Static_assert(sizeof(struct slot) == 32, "two slots a cache line");

/* The first page of the table's file. */
struct slots_header {
    uint64_t magic;
    uint32_t layout, slot_size;
    uint32_t version_last; /* the newest version that was put */
    uint32_t reserved[2];
};
#define SLOTS_HEADER_SIZE 4096u

struct slot_list {
    uint32_t head, tail, n;
};

enum store_flip { STORE_FLIP_NONE, STORE_FLIP_MEMORY, STORE_FLIP_DISK };

struct store {
    pthread_mutex_t lock;
    pthread_cond_t work;  /* XPET has something to do */
    pthread_cond_t grown; /* a step of memory was settled */
    int slots_fd;
    struct slots_header *header; /* with the slots behind it */
    struct slot *slots;
    uint32_t nslots, top, free; /* of the table; never used yet; list of free ones */
    struct slot_list raw;       /* raw pages that may be worth compressing */
    struct slot_list cold;      /* colder: LZ4, and raw for good */
    struct store_mem mem;
    struct store_disk disk;
    bool has_disk, transit; /* transit: memory only on the way to disk */
    enum edm_compression compression;
    enum store_flip flip; /* fault injection */
    bool reopening;       /* owners are not all known: nothing is freed, XPET does not run */
    uint64_t raw_pages, lz4_pages, disk_pages, written, read, lost;
    bool refused;   /* a put since on_room(false) */
    bool full_told; /* on_room(true) since on_room(false) */
    void (*on_room)(void *arg, bool full);
    void *arg;
    struct xpet xpet;
    struct store_reader reader;
};

/* ---- store_slots.c ---- */

/*
 * Makes the table's file for n slots or more, or maps that of a dead process (fd >= 0; then the
 * slots are as it left them, to be checked). 0 or -errno; -EINVAL: not such a file. fd stays the
 * caller's when this fails.
 */
int store_slots_init(struct store *s, uint64_t n, int fd);
void store_slots_fini(struct store *s);

/* The slot of a handle that is in use. */
struct slot *store_slot_of(const struct store *s, store_handle h);
/* A slot of one owner without contents, that store_slot_move will give; 0: none is left. */
uint32_t store_slot_new(struct store *s);
/* Bytes where a slot in memory has its contents. */
void *store_slot_data(const struct store *s, const struct slot *sl);
/* The contents of the slot are at a new place from now on; frees the old one. */
void store_slot_move(struct store *s, struct slot *sl, enum slot_kind kind, uint32_t where,
                     uint32_t len);
/* XPET's work on the slot ended and it is still in memory: back to list cold, or freed. */
void store_slot_settle(struct store *s, uint32_t h);
/* Frees a slot that is on no list when nobody has or uses it any more; true if it did. */
bool store_slot_reap(struct store *s, uint32_t h);
/* One use less, of an owner or a reader: frees the slot if that was the last. */
void store_slot_drop(struct store *s, uint32_t h);
/* Puts a slot with contents in memory on the list that it belongs to. */
void store_slot_list(struct store *s, uint32_t h);

void slot_list_push(struct store *s, struct slot_list *l, uint32_t h);
void slot_list_push_head(struct store *s, struct slot_list *l, uint32_t h);
void slot_list_remove(struct store *s, struct slot_list *l, uint32_t h);

/* ---- store_reopen.c ---- */

/* Finds what a dead process left in the mapped table, memory and disk, and makes all lists. */
void store_reopen_scan(struct store *s);

/* ---- store.c ---- */

/* What a slot's sum is for that page. */
uint64_t store_page_sum(const void *page, uint32_t version);
/* Frames that puts may use: the capacity less what compressing itself needs. */
uint32_t store_limit(const struct store *s);

/* The one store of this process. */
extern struct store store_self;

void store_lock(struct store *s);
/* Unlocks after a change that may have made work for XPET. */
void store_unlock(struct store *s);

#endif
