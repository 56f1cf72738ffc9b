#include "placement.h"

static bool has_other_host(const struct placement_rank *ranks, int nranks, int self)
{
    for (int r = 0; r < nranks; r++)
        if (ranks[r].usable && ranks[r].host != ranks[self].host)
            return true;
    return false;
}

static bool allowed(const struct placement_rank *ranks, int r, int self,
                    enum edm_placement placement, bool other_host)
{
    if (!ranks[r].usable)
        return false;
    if (placement == EDM_PLACEMENT_REMOTE && other_host)
        return ranks[r].host != ranks[self].host;
    return r != self || placement == EDM_PLACEMENT_SPREAD;
}

/* 0: it has a copy; 1: a rank of its host has one; 2: its host has none. */
static int distance(const struct placement_rank *ranks, int r, const int *taken, int ntaken)
{
    int d = 2;
    for (int i = 0; i < ntaken; i++) {
        if (taken[i] == r)
            return 0;
        if (ranks[taken[i]].host == ranks[r].host)
            d = 1;
    }
    return d;
}

int placement_choose(const struct placement_rank *ranks, int nranks, int self,
                     enum edm_placement placement, const int *taken, int ntaken)
{
    bool other_host = has_other_host(ranks, nranks, self);
    int best = -1, best_distance = 0;
    for (int r = 0; r < nranks; r++) {
        int d = distance(ranks, r, taken, ntaken);
        if (!d || !ranks[r].free || !allowed(ranks, r, self, placement, other_host))
            continue;
        if (d > best_distance || (d == best_distance && ranks[r].free > ranks[best].free)) {
            best = r;
            best_distance = d;
        }
    }
    return best;
}

int placement_possible(const struct placement_rank *ranks, int nranks, int self,
                       enum edm_placement placement)
{
    bool other_host = has_other_host(ranks, nranks, self);
    int n = 0;
    for (int r = 0; r < nranks; r++)
        n += allowed(ranks, r, self, placement, other_host);
    return n;
}
