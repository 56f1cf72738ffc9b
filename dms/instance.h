/*
 * One attached process: its descriptors, its tables, its threads, its budget.
 *
 * Everything below `lock` is protected by it. The lock is taken before events are read and held
 * until they are applied, so whoever holds it sees tables that match every event read so far. It is
 * never held across a wait for the instance, for disk or for a peer.
 * Lock order: parent instance, child instance, list of instances, store.
 */
#ifndef EDM_INSTANCE_H
#define EDM_INSTANCE_H

#include "lspt.h"
#include "prefetch.h"
#include "proto/proto.h"
#include "spt.h"
#include "stats.h"
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#define HANDLERS_MAX 8
#define IN_FLIGHT_MAX 512u /* pages between instance and server */

enum wait_reason {
    WAIT_AGAIN,   /* the kernel said EAGAIN: an event is on its way */
    WAIT_OUTCOME, /* an eviction or a read from disk is under way */
    WAIT_ROOM,    /* the budget is spent */
};

/* A fault that was read and is not resolved yet. */
struct waiter {
    uint64_t addr, since_ns;
    uint64_t flags; /* UFFD_PAGEFAULT_FLAG_* */
    uint32_t tid;
    enum wait_reason why;
};

/* The server's own record of a command to the LPET. */
struct track {
    uint32_t id[EDM_CMD_PAGES]; /* whose outcome it is; follows a page through REMAP; or SPT_NONE */
    uint32_t at[EDM_CMD_PAGES]; /* the page at the command's address, where that is another one */
    uint32_t npages, slot, kind;
    uint64_t posted_ns;
};

/* An operation of the hooks that keeps leases and evictions away from a range. */
struct held {
    uint64_t start, len;
    uint32_t slot;
};

/*
 * A child made by a raw clone while an eviction of the parent was under way: the kernel copied its
 * page tables before or after the move. Its entry stays EVICTING until the parent's outcome.
 */
struct follower {
    struct instance *child;
    uint32_t id;  /* of the page in the child */
    uint32_t tag; /* of the parent's command */
};

#define RING_FREE UINT32_MAX
#define RING_PENDING (UINT32_MAX - 1)

/* The channel's ring pages: filled by the LPET in command order, emptied to the store in order. */
struct limbo {
    uint8_t *data;
    uint32_t *owner; /* page id, RING_FREE or RING_PENDING */
    uint32_t pages;
    uint64_t head, tail; /* ever taken, ever released */
    uint32_t used;       /* pages in state LIMBO */
    uint32_t target;     /* pages to keep */
};

struct budget {
    uint64_t limit, high, low; /* pages */
    uint64_t resident;         /* pages in the LSPT */
    uint64_t evicting;
    uint64_t leases; /* chunks */
    uint64_t fetching;
    uint64_t pinned;   /* resident but never evicted: not charged */
    uint64_t max;      /* highest charge seen */
    uint64_t forced;   /* pages that `edm evict` still wants out */
    unsigned fetchers; /* `edm fetch` at work */
    bool unlimited;    /* stores full, or nothing can be evicted */
};

struct instance {
    uint64_t number, nonce, run_token;
    pid_t pid; /* 0: a forked child that nobody claimed */
    uid_t uid;
    char command[64];
    struct edm_settings set;
    uint64_t arena_start, arena_len, identity;
    uint64_t features;
    int uffd, pagemap_fd, maps_fd, sock, cmd_efd, comp_efd, wake_efd, chan_fd;
    pthread_t handlers[HANDLERS_MAX], op_thread;
    unsigned nhandlers;
    bool has_op_thread;
    atomic_bool stop;
    atomic_int refs;

    pthread_mutex_t lock;
    bool partial;  /* out of memory at its fork: an unknown page is lost, not new */
    bool dead;     /* a system call said ESRCH */
    bool claimed;  /* has a channel and an LPET */
    bool tampered; /* raw system calls have unmapped parts of the arena, here or in the parent */
    bool store_refused; /* the store had no room at the last try */
    bool kick;          /* something changed: look at the waiters again */
    bool foreign;       /* some page is FOREIGN: register piecewise */
    struct edm_chan *chan;
    size_t chan_size;
    struct edm_staging staging;
    struct spt spt;
    struct lspt lspt;
    struct budget budget;
    struct limbo limbo;
    struct track tracks[EDM_CHAN_CMDS];
    struct follower *followers; /* children whose pages share the fate of our evictions */
    size_t nfollowers;
    unsigned nat; /* entries of tracks[].at in use */
    struct held held[EDM_CHAN_OPS];
    unsigned nheld;
    int pin_all;   /* mlockall: nothing is evicted while > 0 */
    bool detached; /* everything is back and unregistered */
    uint32_t cmd_head, cmd_seen;
    uint32_t cmd_limit; /* while a batch of events is applied: commands done before it was read */
    bool in_batch;
    uint32_t busy_streak; /* pages the LPET could not take since the last that it could */
    uint64_t busy_ns;
    uint64_t progress_ns; /* last time that a command was done or a page stored */
    struct waiter *waiters;
    size_t nwaiters, waiters_cap;
    unsigned again; /* waiters with WAIT_AGAIN at the last look */
    uint64_t again_since_ns;
    struct prefetcher prefetcher;
    struct instance_stats stats;
    uint64_t stored; /* pages in state STORED */

    struct instance *next; /* list of instances */
};

/* ---- instance.c: life ---- */
int instance_module_init(uint64_t store_bytes);
/* From HELLO. On success *out has one reference for the list and one for the caller. */
int instance_create(const struct edm_hello *hello, pid_t pid, uid_t uid, struct instance **out,
                    char *err, size_t errlen);
/* Makes the channel and its eventfds; the WELCOME's descriptors. */
int instance_open_channel(struct instance *in);
/* Undoes it when the handshake came to nothing. */
void instance_close_channel(struct instance *in);
/* UFFD arrived: takes the descriptors over, registers the arena, starts the handlers. */
int instance_attach(struct instance *in, int uffd, int pagemap_fd, int maps_fd,
                    const struct edm_hello *hello, const struct edm_staging *staging, char *err,
                    size_t errlen);
/* A forked child's own second half (CLAIM, UFFD). */
int instance_claim(struct instance *in, pid_t pid, int pagemap_fd, int maps_fd,
                   const struct edm_staging *staging, char *err, size_t errlen);
/* The child of a FORK event: its table starts as a copy. Called with the parent's lock. */
struct instance *instance_from_fork(struct instance *parent, int uffd);
/* The parent's outcome for what a child's page shared: contents, or NULL for zeros. */
void fork_follow(struct instance *parent, uint32_t tag, bool left, const void *contents);
/* Scales budgets that are shares of memory so that all instances and the store fit. */
void instance_rebalance(void);
/* The rank's stores are full (or have room again): budgets give way rather than pages. */
void instance_stores_full(bool full);
/* Ends instances whose process is gone; from the front door's thread. */
void instance_reap(void);
/* An instance with nothing in it; one reference, for the list that instance_publish puts it in. */
struct instance *instance_new(const struct edm_settings *set, uid_t uid);
void instance_publish(struct instance *in);
int instance_start_handlers(struct instance *in);
/* Everything back, unregistered, its LPET told to end: the process goes on without EDM. */
int instance_release(struct instance *in);
/* Ends its threads and frees its pages. Call when the process is gone. */
void instance_destroy(struct instance *in);
/* True when the kernel says that the address space no longer exists. */
bool instance_is_gone(struct instance *in);

struct instance *instance_get(struct instance *in);
void instance_put(struct instance *in);
struct instance *instance_find(pid_t pid);
struct instance *instance_find_nonce(uint64_t nonce);
/* All instances, each with a reference; *n of them; free() the array. */
struct instance **instance_list(size_t *n);
unsigned instance_count(void);
void instance_wake(struct instance *in);
/* Makes the hooks hold back calls that raise events, or lets them go on (KERNEL.md 15). */
void instance_starve(struct instance *in, bool starved);

/* ---- dm_handler.c: the fault flow ---- */
void *dm_handler_main(void *arg);
void dm_handler_wait(struct instance *in, const struct waiter *w, enum wait_reason why);
/* Fetches the page at addr ahead of its use. False: no room, or not possible now. */
bool dm_handler_prefetch(struct instance *in, uint64_t addr);
/* The waiters for the page at addr were woken by somebody who placed it. */
void dm_handler_served(struct instance *in, uint64_t addr);
/* A page came back from the store into place. */
void dm_handler_stored_is_resident(struct instance *in, uint32_t id);
void dm_handler_page_lost(struct instance *in, uint32_t id, int err);
/* One look at everything that is pending, under the lock. */
void dm_handler_step(struct instance *in);

/* ---- budget (instance.c) ---- */
uint64_t budget_charge(const struct instance *in);
/* False while pages may pass the budget: stores full, or `edm fetch` at work. */
bool budget_is_kept(const struct instance *in);
bool budget_has_room(const struct instance *in, uint64_t pages);
void budget_set(struct instance *in, uint64_t limit_pages);

/* ---- page transitions (page.c) ---- */
void page_make_resident(struct instance *in, struct chunk *c, uint32_t id, bool first);
void page_unlist(struct instance *in, uint32_t id);
void page_drop_handle(struct page *p);
/* The program discarded it (PAGE_NEW) or its mapping went (PAGE_FOREIGN). */
void page_forget(struct instance *in, struct chunk *c, uint32_t id, enum page_state state);
uint32_t page_next_version(void);

/* ---- lease.c ---- */
/* 0: leased and its threads woken; -EAGAIN: look again; other: not possible, serve the page. */
int lease_take(struct instance *in, struct chunk *c, uint64_t addr);
/* Pages that are present become resident, the chunk is in MISSING mode. False: the kernel
 * refuses; the chunk stays as it was, for good. */
bool lease_break(struct instance *in, struct chunk *c, bool first);
/* False while pages of a chunk may be on their way out by a REMOVE that hit it when it was leased:
 * nothing may be evicted from it (KERNEL.md 3). */
bool lease_is_quiet(const struct instance *in, const struct chunk *c);
int lease_register(struct instance *in, struct chunk *c);

/* ---- evict.c ---- */
void evict_kick(struct instance *in);
bool evict_complete(struct instance *in);
/* Moves up to max of the oldest limbo pages to the store while that is called for; count moved. */
unsigned evict_drain(struct instance *in, unsigned max);
/* Everything in limbo to the store, whatever it costs (fork). */
void evict_drain_all(struct instance *in);
bool evict_stuck(const struct instance *in);
/* Ends what the LPET has not begun, for pages of [start, end). True when none is left running. */
bool evict_cancel(struct instance *in, uint64_t start, uint64_t end);

/* Is a command outstanding at this page's address that was made for another page? Nothing may be
 * served or evicted there (KERNEL.md 4). */
bool evict_targets(const struct instance *in, uint32_t id);
/* The LPET is gone: what it has not begun is undone, what it had half done is lost. */
void evict_abandon(struct instance *in);
/* Tells the LPET to end. */
void evict_post_exit(struct instance *in);

/* ---- event.c ---- */
void event_handle(struct instance *in, const struct uffd_msg *m);

/* ---- op.c ---- */
void *op_main(void *arg);
/* Is part of [start, end) inside an operation that forbids leases and evictions there? */
bool op_covers(const struct instance *in, uint64_t start, uint64_t end);
/* Forgets operations that the instance has closed. */
void op_prune(struct instance *in);
bool op_note_covers(const struct instance *in, uint64_t start, uint64_t end);

/* ---- fetch.c ---- */
int fetch_module_init(void);
void fetch_module_fini(void);
/* Queues a read of a STORED page from disk; sets PF_FETCHING. 0 or -errno. */
int fetch_start(struct instance *in, uint32_t id);
/*
 * Brings every page back, whatever the budget says. Called with the lock, which it releases from
 * time to time; progress (may be NULL) is called without it. 0 or -errno.
 */
typedef void fetch_progress(void *arg, uint64_t done, uint64_t total);
int fetch_all(struct instance *in, fetch_progress *progress, void *arg);

uint64_t now_ns(void);

#endif
