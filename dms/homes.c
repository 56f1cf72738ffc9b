#include "homes.h"
#include "lasting.h"
#include "peer.h"
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/random.h>

#define MAGIC 0x656d6f68u
#define LAYOUT 1u

static struct {
    pthread_mutex_t lock;
    struct lasting table;
    uint64_t *identity;         /* by home; 0: none */
    bool used[HOMES_MAX];       /* by what lasts, or in this job */
    atomic_int rank[HOMES_MAX]; /* + 1 */
    atomic_uint of_rank[PEER_RANKS_MAX];
} homes = {.lock = PTHREAD_MUTEX_INITIALIZER};

int homes_open(int fd)
{
    static const struct lasting_kind kind = {"edm-homes", MAGIC, LAYOUT, sizeof(uint64_t),
                                             HOMES_MAX};
    int err = lasting_open(&homes.table, fd, &kind);
    if (err)
        return err;
    homes.identity = homes.table.items;
    while (!homes.identity[0])
        if (getrandom(homes.identity, sizeof(uint64_t), 0) != sizeof(uint64_t))
            return -EIO;
    return 0;
}

int homes_fd(void)
{
    return homes.table.fd;
}

uint64_t homes_identity(void)
{
    return homes.identity[0];
}

void homes_use(uint32_t home)
{
    homes.used[home] = true;
}

/* Lock held. */
static uint32_t find(uint64_t identity)
{
    uint32_t free = 0;
    for (uint32_t h = 1; h < HOMES_MAX; h++) {
        if (homes.identity[h] == identity)
            return h;
        if (!homes.identity[h] && !free)
            free = h;
    }
    if (free)
        homes.identity[free] = identity;
    return free;
}

uint32_t homes_of(int rank)
{
    struct peer_info info;
    uint32_t h = atomic_load(&homes.of_rank[rank]);
    if (h)
        return h;
    peer_get_info(rank, &info);
    if (!info.identity || info.identity == homes.identity[0])
        return 0;
    pthread_mutex_lock(&homes.lock);
    h = find(info.identity);
    int taken = atomic_load(&homes.rank[h]);
    if (taken && taken != rank + 1) /* another rank says that it is this one */
        h = 0;
    homes.used[h] = true;
    if (h) {
        atomic_store(&homes.rank[h], rank + 1);
        atomic_store(&homes.of_rank[rank], h);
    }
    pthread_mutex_unlock(&homes.lock);
    return h;
}

void homes_join(void)
{
    for (int r = 0; r < peer_ranks(); r++)
        if (r != peer_rank())
            homes_of(r);
    pthread_mutex_lock(&homes.lock);
    for (uint32_t h = 1; h < HOMES_MAX; h++)
        if (!homes.used[h])
            homes.identity[h] = 0;
    pthread_mutex_unlock(&homes.lock);
}

int homes_rank(uint32_t home)
{
    return atomic_load(&homes.rank[home]) - 1;
}
