/*
 * One attached process: its descriptors, its tables, its threads, its budget.
 *
 * Everything below `lock` is protected by it. The lock is taken before events are read and held
 * until they are applied, so whoever holds it sees tables that match every event read so far. It is
 * never held across a wait for the instance, for disk or for a peer.
 * Lock order: parent instance, child instance, list of instances, copies, holder, store.
 */
#ifndef EDM_INSTANCE_H
#define EDM_INSTANCE_H

#include "copies.h"
#include "image.h"
#include "lspt.h"
#include "peer.h"
#include "prefetch.h"
#include "proto/proto.h"
#include "spt.h"
#include "stats.h"
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#define HANDLERS_MAX 8
#define FETCH_BATCH 256u
#define ARRIVED_STARVED 100u
#define MADE_MAX 4096u     /* chunks */
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

/* An operation of the hooks that keeps leases and evictions away from a range. */
struct held {
    uint64_t start, len;
    uint32_t slot;
};

/*
 * link.next of an EVICTING page: slot * EDM_CMD_PAGES + i is page i of a command of the instance's
 * own. With TAG_PARENT added, once for each generation, the command is an ancestor's; link.prev is
 * 1 if the page came to its address, 0 if it was made for the page.
 */
#define TAG_PARENT (EDM_CHAN_CMDS * EDM_CMD_PAGES)

static inline bool tag_is_own(uint32_t tag)
{
    return tag < TAG_PARENT;
}

/*
 * A child made by a raw clone while an eviction of the parent was under way: the kernel copied its
 * page tables before or after the move. Its entry stays EVICTING until the parent's outcome.
 */
struct follower {
    struct instance *child;
    uint32_t id;  /* of the page in the child, unless it has moved */
    uint32_t tag; /* of the command, as the parent has it */
    bool at;      /* it is the page that came to the command's address, not that it was made for */
};

/*
 * Which handlers poll. When one thread makes the faults, to wake the handler on its CPU alone may
 * cost less than to wake all of them, or more, as the CPUs are free or busy: what is cheaper now is
 * found out by turns. `leader` is read without the lock.
 */
#define TURNS_KEPT 5

/* What faults cost in the last windows of one way to serve them, ns; n ever. */
struct turns_cost {
    uint64_t ns[TURNS_KEPT];
    uint32_t n;
};

struct turns {
    bool placed; /* handler i is kept on cpu[i] */
    int cpu[HANDLERS_MAX], park_efd[HANDLERS_MAX];
    int timer_us[HANDLERS_MAX]; /* its poll ends after this; -1: only by a descriptor, or parked */
    atomic_int leader;          /* the only handler that polls; -1: all of them */
    uint32_t tid;               /* of the last faults */
    uint32_t same;              /* faults of that thread in a row */
    uint32_t looked;            /* `same` when its CPU was last asked for */
    uint64_t last_ns;           /* of the last fault */
    int stat_fd;                /* its /proc/PID/task/TID/stat, -1 = not open */
    bool leading;               /* this window is with a leader */
    uint64_t window_ns;
    uint32_t window_same;      /* `same` and time at its start */
    uint32_t trial;            /* windows left of a trial of the other way */
    uint32_t since, every;     /* windows since the last trial, and from one to the next */
    struct turns_cost cost[2]; /* without and with a leader */
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
    uint32_t emptied;    /* by so many: the target is 0 */
    uint64_t aside;      /* end of what a parked handler is copying; 0: nothing */
    struct aside *work;  /* its batch */
};

struct budget {
    uint64_t limit, high, low; /* pages */
    uint64_t resident;         /* pages in the LSPT */
    uint64_t evicting;
    uint64_t leases; /* chunks */
    uint64_t fetching;
    uint64_t pinned;   /* resident but never evicted: not charged */
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
    uint64_t memory, memory_group; /* of which its shares are shares: edm_memory_of */
    uint64_t arena_start, arena_len, identity;
    uint64_t features;
    int uffd, pagemap_fd, maps_fd, sock, comp_efd, wake_efd, chan_fd;
    int cmd_fd, cmd_peer; /* two ends of a socket, the second for the LPET; see evict_call */
    pthread_t handlers[HANDLERS_MAX], op_thread;
    unsigned nhandlers;
    struct turns turns;
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
    struct image *img;    /* what a successor of this server needs */
    struct track *tracks; /* in the image */
    int image_fd;
    uint32_t entry;  /* in the keeper's state; STATE_INSTANCES: none */
    uint64_t parent; /* number of the instance it was forked from, 0 = none */
    bool restored;   /* taken over from a dead server, its LPET has not come back yet */
    uint64_t restored_ns;
    struct follower *followers; /* children whose pages share the fate of our evictions */
    size_t nfollowers;
    uint64_t nghosts; /* made since there was none (ghost.c) */
    unsigned nat;     /* entries of tracks[].at in use */
    struct held held[EDM_CHAN_OPS];
    unsigned nheld;
    uint32_t made; /* chunks for memory that nobody had touched */
    int pin_all;   /* mlockall: nothing is evicted while > 0 */
    bool detached; /* everything is back and unregistered */
    uint32_t cmd_head, cmd_seen;
    bool in_batch;        /* a batch of events is being applied */
    uint64_t put_off_ns;  /* since when done commands wait for events to be read; 0: none does */
    uint32_t busy_streak; /* pages the LPET could not take since the last that it could */
    uint64_t busy_ns;
    uint64_t progress_ns; /* last time that a command was done or a page stored */
    struct waiter *waiters;
    size_t nwaiters, waiters_cap;
    unsigned again; /* waiters with WAIT_AGAIN at the last look */
    uint64_t again_since_ns;
    struct prefetcher prefetcher;
    struct instance_stats *stats; /* in the image: they never go down while the instance lives */
    uint64_t stored;              /* pages in state STORED */
    struct store_read reads[FETCH_BATCH]; /* to be asked for by fetch_flush */
    uint32_t nreads;
    struct remote_fetch *remote; /* pages to be asked for together; NULL: none */
    int remote_rank;
    atomic_uint nremote;     /* pages asked for, or to be, that have not come */
    atomic_bool spinning;    /* a handler waits for them without sleeping */
    struct peer_spin spin;   /* its */
    struct arrival *arrived; /* read from disk, and not placed yet: the kernel said EAGAIN */
    unsigned arrived_tries;

    struct instance *next; /* list of instances */
};

/* ---- instance.c, instance_attach.c: life ---- */
int instance_module_init(uint64_t store_bytes);
/* From HELLO. On success *out has one reference for the list and one for the caller. */
int instance_create(const struct edm_hello *hello, pid_t pid, uid_t uid, struct instance **out,
                    char *err, size_t errlen);
/* Makes the channel and what announces commands and completions: the WELCOME's descriptors. */
int instance_open_channel(struct instance *in);
/* The LPET at the other end of sock is that of instance `number`: it lost its server. The instance,
 * with a reference, or NULL. */
struct instance *instance_reattach(uint64_t number, pid_t pid, int sock);
/* Its LPET has lost its server, and will come to us. With the lock. */
void instance_await_lpet(struct instance *in);
/* Does that thread exist? */
bool instance_has_lpet(const struct instance *in);
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
/* A child's page whose fate is that of the parent's page with that tag: of the page that the
 * command was made for, or of that which came to its address (`at`). With the locks of both. */
void fork_page_follow(struct instance *parent, struct instance *child, struct chunk *c, uint32_t id,
                      uint32_t tag, bool at);
/* KERNEL.md 1: the instance's whole memory is in MISSING mode. */
void fork_register_all(struct instance *in);
/* What became of a parent's page; nobody can say when its LPET has gone. */
enum outcome_kind { OUTCOME_STAYED, OUTCOME_LEFT, OUTCOME_UNKNOWN };
/* The parent's outcome for what a child's page shared; when it left: contents, or NULL for zeros.
 */
void fork_follow(struct instance *parent, uint32_t tag, bool at, enum outcome_kind kind,
                 const void *contents);
/* Command `other` tells what became of the page that `tag` was made for. */
void fork_follow_other(struct instance *parent, uint32_t tag, uint32_t other);
/* A forked child has ended: it is kept by no outcome that may never come. */
void fork_forget(void);
/* Ends instances whose process is gone; from the front door's thread. */
void instance_reap(void);
/* An instance with nothing in it; one reference, for the list that instance_publish puts it in. */
struct instance *instance_new(const struct edm_settings *set, uid_t uid);
/* The same from what a dead server left; takes image_fd and img over on success. NULL: no memory.
 */
struct instance *instance_from_image(int image_fd, struct image *img);
/* Maps the channel that chan_fd already is. 0 or -errno. */
int instance_adopt_channel(struct instance *in);
/* Numbers up to `used` may have been given by an earlier server. */
void instance_numbers_from(uint64_t used);
int instance_start_op_thread(struct instance *in);
void instance_publish(struct instance *in);
/* Writes what has changed of its identity, rights and budget to the image. With the lock. */
void instance_save(struct instance *in);
/* On the CPUs of the process `like` (0: the server's). 0 or -errno. */
int instance_start_handlers(struct instance *in, pid_t like);
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

/* ---- handlers.c ---- */
void handlers_init(struct turns *pl);
void handlers_fini(struct turns *pl);
/* A window is over, in which a fault cost so many ns: decides whether the next has a leader. */
void handlers_measured(struct turns *pl, uint64_t ns);
/* A thread of the instance has faulted, at `now` (ns). With the lock. */
void handlers_fault(struct instance *in, uint32_t tid, uint64_t now);
/* Waits until handler `index` may poll. True: it is still parked, but limbo has work for it. */
bool handlers_wait(struct instance *in, unsigned index);
/* With the lock, by any thread: work is due in so many us (-1: none); sees to it that a handler
 * which polls comes back in time. */
void handlers_timer_ask(struct instance *in, int due_us);
/* Gives the calling handler its share of the CPU. */
void handlers_weigh(void);
/* Is there a parked handler? */
bool handlers_spare(const struct instance *in);
/* Wakes it for limbo. */
void handlers_spare_wake(struct instance *in);
/* Everybody looks again. */
void handlers_wake(struct instance *in);

/* ---- dm_handler.c: the fault flow ---- */
void *dm_handler_main(void *arg);
void dm_handler_wait(struct instance *in, const struct waiter *w, enum wait_reason why);
/* The waiters for the page at addr were woken by somebody who placed it. */
void dm_handler_served(struct instance *in, uint64_t addr);
/* A page came back from the store into place. */
void dm_handler_stored_is_resident(struct instance *in, uint32_t id);
void dm_handler_page_lost(struct instance *in, uint32_t id, int err);
/* One look at everything that is pending, under the lock, by any thread. */
void dm_handler_step(struct instance *in);
/* Handler `index` will not poll: another does what it would have come back for. Takes the lock. */
void dm_handler_parks(struct instance *in, unsigned index);

/* ---- ahead.c ---- */
/* A stored page that is on disk or on another rank: asked for by the next flush of fetch.c. */
void ahead_begin(struct instance *in, uint32_t id);
/* Fetches n pages ahead of their use, from page number `first` on, as far as there is room; those
 * not in memory come later. */
void ahead_pages(struct instance *in, uint64_t first, int64_t stride, uint32_t n);
/* What the stream that this fault belongs to will want. */
void ahead_of_fault(struct instance *in, uint64_t addr);

/* ---- budget.c ---- */
uint64_t budget_charge(const struct instance *in);
/* It has risen: is it the highest so far? */
void budget_note(const struct instance *in);
/* False while pages may pass the budget: stores full, or `edm fetch` at work. */
bool budget_is_kept(const struct instance *in);
bool budget_has_room(const struct instance *in, uint64_t pages);
void budget_set(struct instance *in, uint64_t limit_pages);
/* Scales budgets that are shares of memory so that all instances and the store fit. */
void instance_rebalance(void);
/* The rank's stores are full (or have room again): budgets give way rather than pages. */
void instance_stores_full(bool full);

/* ---- page transitions (page.c) ---- */
void page_make_resident(struct instance *in, struct chunk *c, uint32_t id, bool first);
void page_unlist(struct instance *in, uint32_t id);
void page_drop_handle(struct page *p);
/* The program discarded it (PAGE_NEW) or its mapping went (PAGE_FOREIGN). */
void page_forget(struct instance *in, struct chunk *c, uint32_t id, enum page_state state);
uint32_t page_next_version(void);
/* Versions up to `used` may have been given by an earlier server. */
void page_versions_from(uint32_t used);
/* What the instance wants for its stored pages. */
struct copies_wish page_wish(const struct instance *in);

/* The page's chunk, made when missing; NULL: out of memory. Outside of the arena nothing is ours
 * (PAGE_FOREIGN) until an event or a fault says so. */
struct chunk *page_chunk(struct instance *in, uint64_t addr);

/* ---- ghost.c: what was at an address before another page came there unannounced ---- */
bool ghost_at(struct instance *in, uint64_t addr);
/* Is an event that addr is unmapped (to = 0) or moved older than the page that is there now? Then
 * it is about the ghost. */
bool ghost_is_meant(struct instance *in, uint64_t addr, uint64_t to);
/* Where the ghost of addr goes; the caller moves the page there. NULL: out of memory. */
struct chunk *ghost_make(struct instance *in, uint64_t addr);
void ghost_drop(struct instance *in, uint64_t addr);
/* Once no event is under way, none can be late: no ghost is waited for any more. */
void ghost_expire(struct instance *in);

/* ---- advice.c: pins and flags of pages that have a chunk and of those that have none ---- */
/* 0, or -ENOMEM: so many ranges cannot be kept, and nothing has changed. for_good: until the
 * mapping goes, else as many unpins as pins free it. */
int advice_pin(struct instance *in, uint64_t start, uint64_t len, bool for_good);
int advice_unpin(struct instance *in, uint64_t start, uint64_t len);
int advice_flag(struct instance *in, uint64_t start, uint64_t len, uint8_t flag, bool on);
/* A fresh mapping: nothing has been said of it. */
int advice_forget(struct instance *in, uint64_t start, uint64_t len);
/* The rest is of pages without a chunk: flags go, are those of a page, move as by mremap. */
int advice_unmapped(struct instance *in, uint64_t start, uint64_t end);
uint8_t advice_flags(const struct instance *in, uint64_t addr);
int advice_moved(struct instance *in, uint64_t from, uint64_t to, uint64_t len);
/* … and of pages with one, too: a mapping has grown. */
int advice_grown(struct instance *in, uint64_t start, uint64_t end, uint8_t flags);

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
/* Wakes the LPET. By a socket, for of an eventfd the instance could make us wait: it would have the
 * same description, with O_NONBLOCK and the count in it. */
void evict_call(const struct instance *in);
/* Looks at what the LPET has done, unless that must wait for events that are under way, which the
 * caller can force; never while events are applied. Was there something? */
bool evict_complete(struct instance *in, bool force);
bool evict_stuck(const struct instance *in);
/* Ends what the LPET has not begun, for pages of [start, end). True when none is left running. */
bool evict_cancel(struct instance *in, uint64_t start, uint64_t end);

/* Is a command outstanding at this page's address that was made for another page? Nothing may be
 * served or evicted there (KERNEL.md 4). */
bool evict_targets(const struct instance *in, uint32_t id);
/* Its tag; SPT_NONE: there is none. */
uint32_t evict_target_tag(const struct instance *in, uint32_t id);
/* The LPET is gone: what it has not begun is undone, what it had half done is lost. */
void evict_abandon(struct instance *in);
/* Tells the LPET to end. */
void evict_post_exit(struct instance *in);

/* ---- limbo.c ---- */
/* n neighbouring ring pages, marked pending; -1 when there are none now. */
int64_t limbo_take(struct limbo *l, uint32_t n);
/* Gives the oldest ring pages back that are free. */
void limbo_release(struct limbo *l);
/* From `owner` alone, at a restart. */
void limbo_restore(struct limbo *l);
/* Moves up to max of the oldest pages to the store; `late`: only what cannot wait for a parked
 * handler. The count. */
unsigned limbo_drain(struct instance *in, unsigned max, bool late);
/* Everything to the store, whatever it costs (fork). */
void limbo_drain_all(struct instance *in);
/* Are there pages to be moved, and nobody at it? */
bool limbo_is_due(const struct instance *in);
/* With the lock: makes a batch for a parked handler. False: not worth it, or it has one. */
bool limbo_post(struct instance *in);
/* Without the lock, by the parked handler: does the batch. False: there is none. */
bool limbo_work(struct instance *in);
/* Is it done and not collected? With or without the lock. */
bool limbo_is_done(const struct instance *in);
/* With the lock: what is done takes effect. Did pages leave? */
bool limbo_collect(struct instance *in);
/* NULL: out of memory. */
struct aside *limbo_aside_new(void);

/* ---- event.c ---- */
/*
 * Reads a batch of messages into the image and applies its events; the faults, which the kernel
 * gives before older events, are left for the caller. How many messages, 0 when there are none.
 */
int events_read(struct instance *in);
/* Has a call begun of which not all events are read and answered? (ghost.c) */
bool events_wait(const struct instance *in);
/* Applies what is left of the first n messages of the batch. */
void events_apply(struct instance *in, uint32_t n);
/* Messages of the batch that a dead server had read, applied or not. */
uint32_t events_left(const struct instance *in);

/* After a change of server: the ring as the table and the commands under way have it. */
void evict_restore(struct instance *in);

/* ---- recover.c ---- */
/* Takes over every instance that the last server of this socket left, and its store. 0, also when
 * there is none, or -errno with a line in err. Before peer_start. */
int recover_all(const char *socket, const struct store_options *store, char *err, size_t errlen);
/* Serves these instances; after copies_start. */
void recover_go_on(void);

/* ---- op.c ---- */
void *op_main(void *arg);
/* Is part of [start, end) inside an operation that forbids leases and evictions there? */
bool op_covers(const struct instance *in, uint64_t start, uint64_t end);
/* Forgets operations that the instance has closed. */
void op_prune(struct instance *in);
/* After a change of server: the operations that are open. */
void op_restore(struct instance *in);
bool op_note_covers(const struct instance *in, uint64_t start, uint64_t end);
/* Is a hook doing just now what an event says: an unmapping (to = 0), or a move? */
bool op_note_says(const struct instance *in, uint64_t start, uint64_t len, uint64_t to);

/* ---- fetch.c ---- */
/* A STORED page is to be read from disk: sets PF_FETCHING. With the next fetch_flush, at latest
 * before the lock is released, the read begins. */
void fetch_start(struct instance *in, uint32_t id);
void fetch_flush(struct instance *in);
/* Places what was read while the kernel said EAGAIN, if it lets us now. */
void fetch_settle(struct instance *in);
/* Drops it: the instance ends. */
void fetch_forget(struct instance *in);
/*
 * Brings every page back, whatever the budget says. Called with the lock, which it releases from
 * time to time; progress (may be NULL) is called without it. 0 or -errno.
 */
typedef void fetch_progress(void *arg, uint64_t done, uint64_t total);
int fetch_all(struct instance *in, fetch_progress *progress, void *arg);

/* ---- fetch_slow.c ---- */
int fetch_slow_init(void);
/* From now on no page waits for a rank to come back. */
void fetch_slow_hurry(void);
void fetch_slow_fini(void);
/* Queues a STORED page, from wherever a copy is, for a thread that may wait; sets PF_FETCHING. */
void fetch_slow(struct instance *in, uint32_t id);

/* ---- fetch_remote.c ---- */
/* Asks `rank` for a STORED page, together with others until the next flush; sets PF_FETCHING. 0 or
 * -errno. */
int fetch_remote(struct instance *in, uint32_t id, int rank);
void fetch_remote_flush(struct instance *in);
/* Without the lock: while pages are under way from other ranks, waits for them for a short while,
 * rather than sleeping and being woken. */
void fetch_remote_spin(struct instance *in);

uint64_t now_ns(void);

#endif
