/*
 * How much local memory an instance may have: what counts against its budget, whether there is
 * room, how budgets that are shares of memory fit together, and what a full store does to all of
 * them.
 */
#include "../config/log.h"
#include "instance_int.h"
#include <stdlib.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define FULL_AGAIN_NS 3600000000000ull /* a store may be full many times: one warning an hour */
#define LIMIT_MIN 256u                 /* pages */

/* The rank's; bytes of memory that they may take. */
static struct {
    atomic_bool full;
    uint64_t bytes;
} stores;

void budget_init(uint64_t store_bytes)
{
    stores.bytes = store_bytes;
}

uint64_t budget_charge(const struct instance *in)
{
    const struct budget *b = &in->budget;
    return b->resident + b->evicting + b->fetching + b->leases * EDM_CHUNK_PAGES + in->limbo.used;
}

void budget_note(const struct instance *in)
{
    uint64_t charge = budget_charge(in);
    if (charge > in->stats->resident_max)
        in->stats->resident_max = charge;
}

bool budget_is_kept(const struct instance *in)
{
    return !in->budget.unlimited && !in->budget.fetchers && in->pin_all <= 0 &&
           !atomic_load(&stores.full);
}

bool budget_has_room(const struct instance *in, uint64_t pages)
{
    return budget_charge(in) + pages <= in->budget.limit || !budget_is_kept(in);
}

void budget_set(struct instance *in, uint64_t limit)
{
    struct budget *b = &in->budget;
    if (limit < LIMIT_MIN)
        limit = LIMIT_MIN;
    b->limit = limit;
    if (in->img)
        in->img->limit = limit;
    b->high = limit * in->set.high_permille / 1000;
    b->low = limit * in->set.low_permille / 1000;
    uint64_t target = limit / 32;
    if (target > LIMBO_MAX)
        target = LIMBO_MAX;
    if (in->limbo.pages && target > in->limbo.pages / 2)
        target = in->limbo.pages / 2;
    in->limbo.target = in->limbo.emptied ? 0 : (uint32_t)target;
    in->kick = true;
}

uint64_t budget_wanted(const struct instance *in)
{
    if (in->set.local_permille)
        return in->memory / 1000 * in->set.local_permille;
    return in->set.local_memory;
}

/* Memory that instances have in common: the machine's, or that of a cgroup with a limit. */
struct common {
    uint64_t group, memory, taken; /* group 0: all of them */
};

/* What is left of each share so that a tenth of it stays free: 0 to 1. */
static double common_scale(const struct common *c, struct instance **all, size_t n)
{
    uint64_t shares = 0, taken = c->taken, usable = c->memory / 10 * 9;
    for (size_t i = 0; i < n; i++) {
        if (c->group && all[i]->memory_group != c->group)
            continue;
        uint64_t w = budget_wanted(all[i]);
        w = w < c->memory ? w : c->memory; /* whatever one asks for, the sums stay sums */
        *(all[i]->set.local_permille ? &shares : &taken) += w;
    }
    uint64_t left = usable > taken ? usable - taken : c->memory / 20;
    return shares > left ? (double)left / (double)shares : 1;
}

/* Other ranks of this host plan with as much. */
static unsigned ranks_here(void)
{
    struct peer_info self, other;
    unsigned n = 0;
    peer_get_info(peer_rank(), &self);
    for (int r = 0; r < peer_ranks(); r++) {
        peer_get_info(r, &other);
        n += other.host == self.host && other.alive;
    }
    return n ? n : 1;
}

void instance_rebalance(void)
{
    size_t n;
    struct sysinfo si = {0};
    struct common machine = {.taken = stores.bytes}, own = {.taken = stores.bytes};
    own.memory = edm_memory_of(getpid(), &own.group);
    machine.memory = sysinfo(&si) ? own.memory : (uint64_t)si.totalram * si.mem_unit;
    unsigned ranks = ranks_here();
    machine.memory /= ranks;
    if (own.group)
        own.memory /= ranks;
    struct instance **all = instance_list(&n);
    double scale = common_scale(&machine, all, n);
    for (size_t i = 0; i < n; i++) {
        struct instance *in = all[i];
        if (in->set.local_permille) {
            struct common c = {.group = in->memory_group, .memory = in->memory};
            double tight = c.group == own.group && c.group ? common_scale(&own, all, n)
                           : c.group                       ? common_scale(&c, all, n)
                                                           : scale;
            double w = (double)budget_wanted(in) * (tight < scale ? tight : scale);
            pthread_mutex_lock(&in->lock);
            budget_set(in, (uint64_t)w >> EDM_PAGE_SHIFT);
            pthread_mutex_unlock(&in->lock);
            instance_wake(in);
        }
        instance_put(in);
    }
    free(all);
}

void instance_stores_full(bool full)
{
    size_t n;
    static _Atomic uint64_t said_ns;
    uint64_t now = now_ns(), last = atomic_load(&said_ns);
    if (full && (!last || now - last > FULL_AGAIN_NS) &&
        atomic_compare_exchange_strong(&said_ns, &last, now))
        edm_warn("memory store and disk store are full: programs keep their pages in local memory "
                 "beyond their budgets; enlarge memory_store or disk_store");
    atomic_store(&stores.full, full);
    struct instance **all = instance_list(&n);
    for (size_t i = 0; i < n; i++) {
        pthread_mutex_lock(&all[i]->lock);
        all[i]->store_refused = false;
        all[i]->kick = true;
        pthread_mutex_unlock(&all[i]->lock);
        instance_wake(all[i]);
        instance_put(all[i]);
    }
    free(all);
}
