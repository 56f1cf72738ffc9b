/* What copies.c (where copies are), copies_read.c (how they are read), copies_reopen.c (what a dead
 * process left) and spread.c (who gets one) share. Only for these. */
#ifndef EDM_COPIES_INT_H
#define EDM_COPIES_INT_H

#include "copies.h"
#include "homes.h"
#include "lasting.h"
#include "peer.h"
#include "placement.h"
#include <pthread.h>

#define REMOTE_MAX COPIES_MAX /* copies on other ranks */

union place {
    struct {
        uint32_t slot; /* 0: none */
        uint16_t home; /* of the rank that has it */
        uint16_t lost; /* the rank is not there, or not the page; kept for a later job, when it was
                          the last copy */
    };
    uint64_t all; /* of that, to be changed at once */
};

/* FORSAKEN: still in the list of stuck ones, but nobody wants it any more. */
enum entry_queue { QUEUE_NONE, QUEUE_SEND, QUEUE_STUCK, QUEUE_FORSAKEN };

/*
 * Lasts. It is complete before `used` says so, and a copy elsewhere is written down before the
 * local one is given back. Counts, flights and queues are of this process alone.
 */
struct entry {
    uint64_t hash[2]; /* XXH3 of the page */
    uint32_t version;
    uint32_t count;     /* owners; 0: free, or waiting for its flights to end */
    store_handle local; /* 0: no copy here */
    uint32_t next;      /* in a queue or the list of free ones; 0 ends */
    union place at[REMOTE_MAX];
    uint8_t wanted;    /* copies on other ranks */
    uint8_t flights;   /* STOREs on their way */
    uint8_t placement; /* enum edm_placement */
    uint8_t queue;     /* enum entry_queue */
    bool keep_local;   /* the local copy is one of the copies */
    bool used;
};

struct entry_list {
    uint32_t first, last;
    uint64_t n;
};

struct rank_view {
    uint64_t capacity, used; /* pages, as it said last, and what was sent since */
    uint64_t pages;          /* of ours */
    unsigned flights;        /* STOREs not answered */
    uint64_t lost_ns;        /* when it was lost; 0: it was not */
    bool leaving, asked;     /* asked: a STAT is on its way */
    struct rank_slot *drops; /* to be given back */
    size_t ndrops, drops_cap;
};

struct copies {
    pthread_mutex_t lock;
    pthread_cond_t work; /* of the sender */
    struct lasting table;
    uint32_t top, free;
    uint64_t entries; /* in use */
    struct entry_list send, stuck;
    uint64_t forsaken; /* entries in `stuck` that only wait to be taken out */
    uint64_t transit;  /* entries whose local copy is on its way elsewhere */
    uint64_t ndrops;
    unsigned flights; /* STOREs not answered, to all ranks */
    struct rank_view *ranks;
    struct placement_rank *choice; /* the same ranks, as placement.c wants them */
    int possible[3];               /* ranks that could have a copy, by placement */
    int nranks, self;
    uint64_t refused_pages; /* copies that were not what they should be */
    bool refused, full_told;
    uint64_t joined_ns;
    bool joined;       /* the ranks are known: before that nothing leaves this one */
    bool spread_stays; /* the next pages placed by "spread" stay here */
    unsigned spread_left;
    void (*on_room)(void *arg, bool full);
    void *arg;
};

extern struct copies copies;

/* Is it the handle of an entry? Else it is the store's. */
static inline bool copies_is_entry(store_handle h)
{
    return h & COPIES_BIT;
}
struct entry *copies_entry(uint32_t i);
/* Lock held. The entry of such a handle. */
struct entry *copies_entry_of(store_handle h);
void entry_push(struct entry_list *l, uint32_t i, enum entry_queue which);
/* The head of the list; 0 when it is empty. */
uint32_t entry_pop(struct entry_list *l);
/* Is there a copy? */
static inline bool place_is_there(const union place *p)
{
    return p->slot && !p->lost;
}
void place_set(union place *p, union place to);
/* It can be read there, but the rank is about to end. */
bool place_is_leaving(const union place *p);
/* How many copies it has on other ranks that stay. */
unsigned entry_places(const struct entry *e);
/* Has it a copy here or on any rank, also one that is about to end? */
bool entry_is_somewhere(const struct entry *e);
/* Are all copies made that can be, and none on a rank that ends alone? */
bool entry_has_enough(const struct entry *e);
/* Has a rank a copy that is about to end? */
bool entry_is_leaving(const struct entry *e);
/* Lock held. Something about the entry has changed: sends it on, gives its local copy back, or
 * frees it. */
void entry_settle(uint32_t i);
/* Lock held. Gives the local copy back to the store, if there is one. */
void entry_leave_local(struct entry *e);
/* Lock held. The copy in that place is not needed any more. */
void place_drop(struct entry *e, union place *p);
void copies_hash(const void *page, uint64_t out[2]);
uint64_t copies_clock_ns(void);
/* Lock held. Puts it on the list of free ones. */
void entry_free(uint32_t i);

/* ---- copies_read.c ---- */
/* Waits for pages of that rank; ok[i]: page i is at buf + i * 4096. 0: it has answered; else as
 * copies_fetch. */
int copies_read_from(int rank, const struct copies_page *pages, unsigned n, void *buf, bool *ok);

/* ---- copies_reopen.c ---- */
/* The ranks are known: asks them for what they had in an earlier job, before anything else. */
void copies_claim(void);

/* ---- spread.c ---- */
int spread_start(void);
/* Lock held. A rank has come or gone: which are left to choose from. */
void spread_ranks_changed(void);
/* Lock held. The rank says so of its stores. */
void spread_rank_used(int rank, uint64_t capacity, uint64_t used);
/* Lock held. Should the next page placed by "spread" stay here? */
bool spread_stays(void);
/* Lock held. What the stuck pages wait for may have come: they are looked at again. */
void spread_unstick(void);
/* Not locked. Tells on_room what has changed. */
void spread_tell_room(void);

#endif
