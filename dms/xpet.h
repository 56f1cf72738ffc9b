/*
 * XPET: the store's background thread. Keeps backed memory ahead of need, compresses the coldest
 * raw pages as memory fills, moves the coldest pages to disk, says when there is room again.
 * It blocks on disk writes and on the store's owner in on_room, never with the store's lock held.
 */
#ifndef EDM_XPET_H
#define EDM_XPET_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct store;

enum xpet_work { XPET_IDLE, XPET_GROW, XPET_COMPRESS, XPET_WRITE };

/* What the choice of work depends on; in frames, pages and blocks. */
struct xpet_load {
    uint32_t limit, used; /* frames that puts may use; frames in use */
    uint32_t spare;       /* backed and free */
    uint32_t growable;    /* may still be backed */
    uint32_t raw, cold;   /* pages that may be compressed; the others in memory */
    uint32_t disk_room;   /* blocks */
    bool compress;        /* compression = "auto" */
    bool transit;         /* everything goes to disk at once */
};

/* Each kind of work, once begun, goes on to its lower mark. */
struct xpet_policy {
    bool growing, compressing, writing;
    bool wrote; /* last turn: the two take turns when memory is short */
};

/* What to do next. A pure function of its arguments. */
enum xpet_work xpet_decide(struct xpet_policy *p, const struct xpet_load *l);
/* Spare frames to keep backed. */
uint32_t xpet_ahead(const struct xpet_load *l);

struct xpet {
    pthread_t thread;
    struct xpet_policy policy;
    bool started, stop;
    bool idle;            /* asleep: a change that makes work must wake it */
    bool timed;           /* asleep for a while only, then trims */
    bool stuck;           /* what could be written is pinned: wait for a reader to end */
    unsigned char *batch; /* aligned, XPET_BATCH pages */
};

#define XPET_BATCH 64u

/* Starts the thread; 0 or -errno. */
int xpet_start(struct store *s);
void xpet_stop(struct store *s);
/* With the lock held: is there something that the sleeping thread would do? */
bool xpet_has_work(struct store *s);

#endif
