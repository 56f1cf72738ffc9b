/*
 * What makes an instance of a process that came to the door: its channel, the arena registered and
 * what is in it counted, its threads; and a forked child's own second half.
 */
#include "instance_int.h"
#include "keeper.h"
#include "uffd.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- the channel ---- */

static int chan_memfd(size_t size)
{
    int fd = memfd_create("edm-channel", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)size) ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
        int err = -errno;
        close(fd);
        return err;
    }
    return fd;
}

/* What the LPET says there is not heard: what it may send would only pile up. */
static int call_open(struct instance *in)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair))
        return -errno;
    in->cmd_fd = pair[0];
    in->cmd_peer = pair[1];
    return shutdown(pair[0], SHUT_RD) ? -errno : 0;
}

int instance_open_channel(struct instance *in)
{
    uint64_t limit = budget_wanted(in) >> EDM_PAGE_SHIFT;
    uint64_t target = limit / 32 < LIMBO_MAX ? limit / 32 : LIMBO_MAX;
    uint64_t flight = limit / 4 < IN_FLIGHT_MAX ? limit / 4 : IN_FLIGHT_MAX;
    uint32_t pages = (uint32_t)(2 * target + 2 * flight + EDM_CMD_PAGES);
    size_t head = (sizeof(struct edm_chan) + EDM_PAGE_SIZE - 1) & ~(EDM_PAGE_SIZE - 1);
    in->chan_size = head + pages * EDM_PAGE_SIZE;
    in->chan_fd = chan_memfd(in->chan_size);
    if (in->chan_fd < 0)
        return in->chan_fd;
    if (call_open(in))
        return -ENOMEM;
    in->comp_efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    void *map = mmap(NULL, in->chan_size, PROT_READ | PROT_WRITE, MAP_SHARED, in->chan_fd, 0);
    in->limbo.owner = malloc(pages * sizeof(*in->limbo.owner));
    if (map == MAP_FAILED || in->comp_efd < 0 || !in->limbo.owner)
        return -ENOMEM;
    for (uint32_t i = 0; i < pages; i++)
        in->limbo.owner[i] = RING_FREE;
    in->chan = map;
    in->limbo.pages = pages;
    in->limbo.data = (uint8_t *)map + head;
    in->chan->magic = EDM_CHAN_MAGIC;
    in->chan->version = EDM_PROTO_VERSION;
    in->chan->size = in->chan_size;
    in->chan->instance = in->number;
    in->chan->data_offset = head;
    in->chan->ring_pages = pages;
    in->chan->cluster = in->set.cluster;
    in->chan->lpet_cpu = -1;
    in->chan->tampered = in->tampered;
    return 0;
}

int instance_adopt_channel(struct instance *in)
{
    size_t head = (sizeof(struct edm_chan) + EDM_PAGE_SIZE - 1) & ~(EDM_PAGE_SIZE - 1);
    in->chan_size = in->img->chan_size;
    void *map = mmap(NULL, in->chan_size, PROT_READ | PROT_WRITE, MAP_SHARED, in->chan_fd, 0);
    uint32_t pages = (uint32_t)((in->chan_size - head) / EDM_PAGE_SIZE);
    if (map == MAP_FAILED)
        return -errno;
    in->chan = map;
    in->limbo.owner = malloc(pages * sizeof(*in->limbo.owner));
    if (!in->limbo.owner)
        return -ENOMEM;
    for (uint32_t i = 0; i < pages; i++)
        in->limbo.owner[i] = RING_FREE;
    in->limbo.pages = pages;
    in->limbo.data = (uint8_t *)map + head;
    budget_set(in, in->budget.limit);
    return 0;
}

void instance_close_channel(struct instance *in)
{
    pthread_mutex_lock(&in->lock);
    if (in->chan && !in->claimed) {
        munmap(in->chan, in->chan_size);
        in->chan = NULL;
        free(in->limbo.owner);
        in->limbo = (struct limbo){.work = in->limbo.work};
        instance_close_fd(&in->chan_fd);
        instance_close_fd(&in->cmd_fd);
        instance_close_fd(&in->cmd_peer);
        instance_close_fd(&in->comp_efd);
    }
    pthread_mutex_unlock(&in->lock);
}

/* ---- registering and counting ---- */

/* What the kernel mapped in a chunk before anybody counted becomes resident. */
static int chunk_count(struct instance *in, uint64_t addr)
{
    uint64_t bits[EDM_CHUNK_PAGES / 64];
    int err = uffd_present(in->pagemap_fd, addr, EDM_CHUNK_PAGES, bits);
    struct chunk *c = NULL;
    for (uint32_t i = 0; i < EDM_CHUNK_PAGES && !err; i++) {
        if (!(bits[i / 64] >> (i % 64) & 1))
            continue;
        c = c ? c : spt_chunk(&in->spt, addr, true);
        if (!c)
            return -ENOMEM;
        in->stored -= c->pages[i].state == PAGE_STORED; /* a server died having placed it */
        if (c->pages[i].state == PAGE_NEW || c->pages[i].state == PAGE_STORED)
            page_make_resident(in, c, spt_id(c, i), false);
    }
    return err;
}

/* The part of the arena in use may be huge, with little in it. */
static int count_used(struct instance *in, const struct edm_hello *hello)
{
    uint64_t end = (hello->used_end + EDM_PAGE_SIZE - 1) & ~(EDM_PAGE_SIZE - 1);
    int err = 0;
    for (uint64_t a = hello->used_start & ~(EDM_CHUNK_SIZE - 1); a < end; a += EDM_CHUNK_SIZE) {
        err = uffd_next_present(in->pagemap_fd, &a, end);
        a &= ~(EDM_CHUNK_SIZE - 1);
        if (!err && a < end)
            err = chunk_count(in, a);
        if (err)
            break;
    }
    return err;
}

static int mark_foreign(struct instance *in, uint64_t start, uint64_t end)
{
    for (uint64_t a = start; a < end; a += EDM_PAGE_SIZE) {
        struct chunk *c = spt_chunk(&in->spt, a, true);
        if (!c)
            return -ENOMEM;
        spt_set(c, &c->pages[spt_index(a)], PAGE_FOREIGN);
        in->foreign = true;
    }
    return 0;
}

/* Registers the arena but for what the program has mapped over it (KERNEL.md 31). */
static int register_arena(struct instance *in)
{
    uint64_t end = in->arena_start + in->arena_len, run = in->arena_start, at = run;
    int err = 0;
    while (at < end && !err) {
        uint64_t from, to;
        bool anonymous;
        int e = uffd_next_mapping(in->maps_fd, at, &from, &to, &anonymous);
        if (e == -ENOTTY || e == -EINVAL)
            break; /* an older kernel: all of it at once */
        if (e || from >= end)
            from = to = end;
        from = from < at ? at : from;
        to = to < end ? to : end;
        if (from == at && anonymous && !e) {
            at = to;
            continue;
        }
        uint64_t gap = from == at ? to : from; /* a hole, or something else's mapping */
        if (at > run)
            err = uffd_register(in->uffd, run, at - run, UFFD_MISSING | UFFD_WP);
        if (!err && from == at && !e)
            err = mark_foreign(in, at, gap);
        run = at = gap;
    }
    if (!err && run < end)
        err = uffd_register(in->uffd, run, end - run, UFFD_MISSING | UFFD_WP);
    return err;
}

/* ---- its threads ---- */

/* Handler `index`, on that CPU (-1: wherever the server may be). */
static int start_handler(struct instance *in, unsigned index, int cpu)
{
    pthread_attr_t attr;
    cpu_set_t cpus;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 * 1024);
    bool known = true;
    if (cpu >= 0) {
        CPU_ZERO(&cpus);
        CPU_SET(cpu, &cpus);
    } else { /* not where the thread may be that calls this: another instance's handler, perhaps */
        known = sched_getaffinity(getpid(), sizeof(cpus), &cpus) == 0;
    }
    if (known)
        pthread_attr_setaffinity_np(&attr, sizeof(cpus), &cpus);
    in->turns.cpu[index] = cpu;
    int err = pthread_create(&in->handlers[index], &attr, dm_handler_main, in);
    pthread_attr_destroy(&attr);
    return -err;
}

int instance_start_handlers(struct instance *in, pid_t like)
{
    cpu_set_t cpus;
    unsigned want = in->set.handlers;
    bool place = want == 0;
    if (sched_getaffinity(like ? like : getpid(), sizeof(cpus), &cpus) &&
        sched_getaffinity(getpid(), sizeof(cpus), &cpus))
        CPU_ZERO(&cpus);
    if (place)
        want = (unsigned)CPU_COUNT(&cpus);
    want = want < 1 ? 1 : want > HANDLERS_MAX ? HANDLERS_MAX : want;
    int cpu = -1;
    for (unsigned i = 0; i < want; i++) {
        while (place && CPU_COUNT(&cpus) && !CPU_ISSET(++cpu, &cpus))
            ;
        in->turns.park_efd[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        int err = start_handler(in, i, cpu);
        if (err && place) /* that CPU is not ours: anywhere, then */
            err = start_handler(in, i, -1);
        if (err)
            return i ? 0 : err;
        in->nhandlers++;
    }
    in->turns.placed = place;
    return 0;
}

int instance_start_op_thread(struct instance *in)
{
    int err = pthread_create(&in->op_thread, NULL, op_main, in);
    in->has_op_thread = err == 0;
    return -err;
}

/* ---- attaching and claiming ---- */

/* The half that attach and claim share: the instance has a channel, an LPET, descriptors. */
static int take_over(struct instance *in, int pagemap_fd, int maps_fd,
                     const struct edm_staging *staging)
{
    bool right = staging->len == EDM_STAGING_PAGES * EDM_PAGE_SIZE &&
                 staging->start % EDM_PAGE_SIZE == 0 && uffd_is_of_proc(pagemap_fd) &&
                 uffd_is_of_proc(maps_fd);
    if (!right || atomic_load(&in->stop)) { /* or it ended meanwhile */
        close(pagemap_fd);
        close(maps_fd);
        return right ? -ESRCH : -EPROTO;
    }
    in->pagemap_fd = pagemap_fd;
    in->maps_fd = maps_fd;
    in->staging = *staging;
    if (!(staging->methods & 1) && in->set.evict_method == EDM_EVICT_AUTO)
        in->set.evict_method = EDM_EVICT_COPY;
    return 0;
}

int instance_attach(struct instance *in, int uffd, int pagemap_fd, int maps_fd,
                    const struct edm_hello *hello, const struct edm_staging *staging, char *err,
                    size_t errlen)
{
    pthread_mutex_lock(&in->lock);
    in->uffd = uffd;
    if (!uffd_is_one(uffd)) /* nothing is asked of it */
        instance_close_fd(&in->uffd);
    keeper_state()->attaching = in->uffd;
    image_order();
    int e = take_over(in, pagemap_fd, maps_fd, staging);
    if (!e && (in->uffd < 0 || !(fcntl(uffd, F_GETFL) & O_NONBLOCK)))
        e = -EPROTO; /* reading it would block the server */
    if (!e)
        e = uffd_api(uffd, &in->features);
    if (!e)
        e = register_arena(in);
    if (!e)
        e = uffd_register(uffd, in->identity, EDM_PAGE_SIZE, UFFD_MISSING);
    budget_set(in, budget_wanted(in) >> EDM_PAGE_SHIFT);
    if (!e)
        e = count_used(in, hello);
    if (!e)
        e = instance_start_op_thread(in);
    if (!e)
        e = instance_start_handlers(in, in->pid);
    in->claimed = e == 0;
    if (!e)
        instance_save(in);
    image_order();
    keeper_state()->attaching = -1;
    pthread_mutex_unlock(&in->lock);
    if (e == -EPERM)
        snprintf(err, errlen,
                 "the server may not follow forks: run edm-dms with CAP_SYS_PTRACE (as root)");
    else if (e)
        snprintf(err, errlen, "taking over the memory failed: %s", strerror(-e));
    return e;
}

int instance_claim(struct instance *in, pid_t pid, int pagemap_fd, int maps_fd,
                   const struct edm_staging *staging, char *err, size_t errlen)
{
    pthread_mutex_lock(&in->lock);
    int e = take_over(in, pagemap_fd, maps_fd, staging);
    in->pid = pid;
    budget_set(in, in->budget.limit);
    for (uint32_t n = 0; n < in->spt.nchunks && !e; n++) {
        if (in->spt.chunks[n].unknown)
            e = chunk_count(in, in->spt.chunks[n].addr);
        in->spt.chunks[n].unknown = 0;
    }
    if (!e)
        e = instance_start_op_thread(in);
    in->claimed = e == 0;
    in->kick = true;
    instance_save(in);
    pthread_mutex_unlock(&in->lock);
    instance_wake(in);
    if (e)
        snprintf(err, errlen, "taking over a forked child failed: %s", strerror(-e));
    return e;
}
