/*
 * The pages that this rank keeps for others, in its own store: who owns which slot, and the
 * requests about them. Nothing that a rank says about a slot is believed: a slot is touched only
 * for the rank that it is kept for.
 *
 * The table outlives its process. A successor keeps every page until its owner, in the next job,
 * has said which it still needs (CLAIM) and that this was all (CLAIMED): the rest goes.
 *
 * Threads: any. Lock order: holder, then homes and store.
 */
#ifndef EDM_HOLDER_H
#define EDM_HOLDER_H

#include "peer.h"

/*
 * Makes the table of what is kept (fd < 0), or takes over that of a dead process, with all of it
 * that the store has: after store_reopen and homes_open, before store_reopen_end. *pages says from
 * then on how many pages are kept. 0 or -errno; the descriptor is the table's then.
 */
int holder_open(int fd, uint64_t *pages);
int holder_fd(void);
/* Starts the thread that answers what must be read from disk. 0 or -errno. */
int holder_init(void);
/* Serves STORE, FETCH, DROP, CLAIM, CLAIMED and STAT; takes the buffer. */
void holder_serve(struct peer_buf *b);
/* What this rank says of its stores; pages: those kept for `rank`. */
void holder_stat(int rank, struct rank_stat *out);
/* Pages kept for all ranks that are alive. */
uint64_t holder_pages(void);
/* Frees everything kept for a rank; how many pages that were. */
uint64_t holder_forget(int rank);
/* The same for ranks of an earlier job that are not in this one. */
uint64_t holder_forget_absent(void);

#endif
