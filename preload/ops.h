/*
 * Calls that raise userfaultfd events (munmap, madvise, mremap) are made by one thread at a time
 * (KERNEL.md 15) and noted in the channel before and after. When the process is not attached
 * everything here is a cheap no-op.
 *
 *     struct ops_guard g;
 *     ops_enter(&g);                       blocks signals, takes the lock, waits while `starved`
 *     ops_note(&g, EDM_OP_REMOVE, start, len, 0);
 *     ... the system call ...
 *     ops_leave(&g);                       closes the note, releases, restores signals
 *
 * A thread may nest ops_enter (the inner one is a no-op). ops_request may be called inside or
 * outside; it blocks until the server has acted, never while holding the arena's lock is needed by
 * the server (the server needs nothing of the process).
 */
#ifndef EDM_OPS_H
#define EDM_OPS_H

#include "shim.h"

struct ops_guard {
    uint64_t sigmask;
    struct edm_op *note;
    bool entered; /* false: not attached, or nested */
};

void ops_enter(struct ops_guard *g);
void ops_note(struct ops_guard *g, enum edm_op_kind kind, uint64_t start, uint64_t len,
              uint64_t arg);
void ops_leave(struct ops_guard *g);
/* A request to the server; its result (0 or -errno), 0 when not attached. */
int ops_request(enum edm_op_kind kind, uint64_t start, uint64_t len, uint64_t arg);
/* As ops_request, but stays open until ops_close: for EDM_OP_UNLEASE. */
struct edm_op *ops_request_open(enum edm_op_kind kind, uint64_t start, uint64_t len, uint64_t arg);
void ops_close(struct edm_op *op);
/* Attached: from now on calls are noted. Detached: no more. */
void ops_publish(struct edm_chan *chan);
void ops_unpublish(void);
/* Held by fork's prepare handler so that no other thread is inside ops while it forks. */
void ops_lock_for_fork(void);
void ops_unlock_after_fork(void);

#endif
