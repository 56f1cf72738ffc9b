/* Which rank a page's next copy goes to. Pure: no locks, no clock. */
#ifndef EDM_PLACEMENT_H
#define EDM_PLACEMENT_H

#include "../config/config.h"
#include <stdbool.h>
#include <stdint.h>

struct placement_rank {
    bool usable;   /* alive and not about to end */
    int host;      /* ranks of one host have the same number */
    uint64_t free; /* pages */
};

/*
 * The rank for one more copy of pages of an instance on rank `self`, of which the ranks taken[0..n)
 * have a copy already; -1: none has room. On a host that has no copy yet where there is one, and
 * there where most is free. With EDM_PLACEMENT_REMOTE never on self's host, unless all ranks are
 * on it: then never on self. `self` comes into question with EDM_PLACEMENT_SPREAD only.
 */
int placement_choose(const struct placement_rank *ranks, int nranks, int self,
                     enum edm_placement placement, const int *taken, int ntaken);

/* How many ranks could have a copy, were there room everywhere. */
int placement_possible(const struct placement_rank *ranks, int nranks, int self,
                       enum edm_placement placement);

#endif
