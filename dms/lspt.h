/*
 * Local state page table: the pages of an instance that are in its local memory, in eviction
 * order, and its leases. Two queues (segmented FIFO): probation takes pages as they arrive,
 * protected takes those that came back from limbo, or soon after, and so proved to be in use.
 *
 * Protected by the instance's lock.
 */
#ifndef EDM_LSPT_H
#define EDM_LSPT_H

#include "spt.h"
#include <stdbool.h>

struct lspt_list {
    uint32_t head, tail;
    uint64_t count;
};

struct lspt {
    struct lspt_list probation, protect;
    uint64_t leases; /* nodes on probation that are chunks */
    uint32_t share;  /* of probation, in LSPT_WHOLE parts of all: it is to have no more */
};

#define LSPT_WHOLE 1024u

void lspt_init(struct lspt *l);
/* A page that became resident: last in the order (or first, to be evicted next). */
void lspt_push(struct lspt *l, struct spt *t, uint32_t id, bool first);
void lspt_remove(struct lspt *l, struct spt *t, uint32_t id);
/* A leased chunk, as one node of the probation queue. */
void lspt_push_lease(struct lspt *l, struct spt *t, struct chunk *c);
void lspt_remove_lease(struct lspt *l, struct spt *t, struct chunk *c);
/* Pages on probation, those of leases included. */
uint64_t lspt_on_probation(const struct lspt *l);
/*
 * The node to evict next (a page id, or SPT_CHUNK_BIT | chunk number), SPT_NONE when there is
 * none: the oldest on probation while that queue holds more than its share, else the oldest
 * protected one. It stays in its list.
 */
uint32_t lspt_victim(const struct lspt *l);
/*
 * A page came back from limbo: it should not have left. It had been protected, or on probation:
 * that queue's share grows. (Megiddo and Modha's ARC adapts in the same way.)
 */
void lspt_came_back(struct lspt *l, bool protected);
/* Does a page that comes back after so many evictions belong to the protected ones, with room for
 * `limit` pages? When less than a quarter of them had to make way, it left too early. */
bool lspt_left_early(uint32_t evictions, uint64_t limit);

#endif
