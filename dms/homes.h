/*
 * Who a rank is from one job to the next. A new job may number the ranks differently, and may have
 * others: what lasts names a rank by its home, an index into a lasting table of the identities that
 * ranks have for as long as their stores live. Home 0 is this rank.
 *
 * Threads: homes_open before any other; the rest from any thread, at any time after. Lock order:
 * after copies.c and holder.c, before peer.c.
 */
#ifndef EDM_HOMES_H
#define EDM_HOMES_H

#include <stdbool.h>
#include <stdint.h>

#define HOMES_MAX 4096u

/* Makes the table with a new identity (fd < 0), or takes over what a dead process had. 0 or
 * -errno; the descriptor is the table's then. */
int homes_open(int fd);
int homes_fd(void);
uint64_t homes_identity(void);
/* What lasts names this home. Before homes_join, which forgets all others. */
void homes_use(uint32_t home);
/* The ranks of the job have greeted each other. */
void homes_join(void);
/* The rank whose home it is, in this job; -1: it is not in it. */
int homes_rank(uint32_t home);
/* The home of a rank that has greeted; 0: the table is full, or another rank has its identity. */
uint32_t homes_of(int rank);

#endif
