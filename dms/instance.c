#include "instance.h"
#include "../config/log.h"
#include "keeper.h"
#include "mutex.h"
#include "uffd.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ARENA_MAX (1ull << 46)
#define LIMBO_MAX 1024u
#define FULL_AGAIN_NS 3600000000000ull /* a store may be full many times: one warning an hour */
/* never registered with us: ENOENT while the process lives */
#define PROBE_ADDRESS ((1ull << 47) - 2 * EDM_PAGE_SIZE)
#define LIMIT_MIN 256u /* pages */

static struct {
    pthread_mutex_t lock;
    struct instance *first;
    unsigned count;
    uint64_t numbers;
    atomic_bool stores_full;
    uint64_t lease_limit;
    uint64_t store_bytes;
} list = {.lock = PTHREAD_MUTEX_INITIALIZER};

uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

int instance_module_init(uint64_t store_bytes)
{
    FILE *f = fopen("/proc/sys/vm/max_map_count", "re");
    unsigned long n = 65530;
    if (f) {
        if (fscanf(f, "%lu", &n) != 1)
            n = 65530;
        fclose(f);
    }
    list.lease_limit = n / 4; /* a lease may cost two mappings (KERNEL.md 24) */
    list.store_bytes = store_bytes;
    return 0;
}

/* ---- budget ---- */

uint64_t budget_charge(const struct instance *in)
{
    const struct budget *b = &in->budget;
    return b->resident + b->evicting + b->fetching + b->leases * EDM_CHUNK_PAGES + in->limbo.used;
}

bool budget_is_kept(const struct instance *in)
{
    return !in->budget.unlimited && !in->budget.fetchers && in->pin_all <= 0 &&
           !atomic_load(&list.stores_full);
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
    in->limbo.target = (uint32_t)target;
    in->kick = true;
}

static uint64_t budget_wanted(const struct instance *in, uint64_t memory)
{
    if (in->set.local_permille)
        return memory / 1000 * in->set.local_permille;
    return in->set.local_memory;
}

void instance_rebalance(void)
{
    size_t n;
    uint64_t memory = edm_memory_total(), shares = 0, fixed = 0;
    struct instance **all = instance_list(&n);
    for (size_t i = 0; i < n; i++) {
        uint64_t w = budget_wanted(all[i], memory);
        w = w < memory ? w : memory; /* whatever one asks for, the sums stay sums */
        *(all[i]->set.local_permille ? &shares : &fixed) += w;
    }
    uint64_t usable = memory / 10 * 9;
    uint64_t taken = fixed + list.store_bytes;
    uint64_t left = usable > taken ? usable - taken : memory / 20;
    for (size_t i = 0; i < n; i++) {
        struct instance *in = all[i];
        if (in->set.local_permille) {
            uint64_t w = budget_wanted(in, memory);
            if (shares > left)
                w = (uint64_t)((double)w * (double)left / (double)shares);
            pthread_mutex_lock(&in->lock);
            budget_set(in, w >> EDM_PAGE_SHIFT);
            pthread_mutex_unlock(&in->lock);
            instance_wake(in);
        }
        instance_put(in);
    }
    free(all);
}

/* ---- list and references ---- */

struct instance *instance_get(struct instance *in)
{
    atomic_fetch_add(&in->refs, 1);
    return in;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void instance_put(struct instance *in)
{
    if (!in || atomic_fetch_sub(&in->refs, 1) != 1)
        return;
    if (in->chan)
        munmap(in->chan, in->chan_size);
    int *fds[] = {&in->uffd,     &in->pagemap_fd, &in->maps_fd,  &in->cmd_fd,
                  &in->cmd_peer, &in->comp_efd,   &in->wake_efd, &in->chan_fd};
    for (size_t i = 0; i < sizeof(fds) / sizeof(*fds); i++)
        close_fd(fds[i]);
    close_fd(&in->image_fd);
    handlers_fini(&in->turns);
    fetch_forget(in);
    spt_fini(&in->spt);
    image_close(in->img);
    pthread_mutex_destroy(&in->lock);
    free(in->limbo.owner);
    free(in->limbo.work);
    free(in->waiters);
    free(in->followers);
    free(in);
}

/* Which of its descriptors is what, for the keeper and the next server. With the list's lock. */
static void entry_write(struct instance *in)
{
    struct state *s = keeper_state();
    uint32_t n = in->entry;
    if (!s)
        return;
    for (n = n < STATE_INSTANCES ? n : 0; n != in->entry && n < STATE_INSTANCES; n++)
        if (!s->instances[n].used)
            break;
    if (n == STATE_INSTANCES) {
        edm_warn("more than %u instances: pid %d will not outlive this server", n, in->pid);
        return;
    }
    struct state_instance *e = &s->instances[n];
    in->entry = n;
    e->fds[STATE_UFFD] = in->uffd;
    e->fds[STATE_IMAGE] = in->image_fd;
    e->fds[STATE_CHAN] = in->chan_fd;
    e->fds[STATE_CMD] = in->cmd_fd;
    e->fds[STATE_COMP] = in->comp_efd;
    e->fds[STATE_PAGEMAP] = in->pagemap_fd;
    e->fds[STATE_MAPS] = in->maps_fd;
    image_order();
    if (s->ninstances <= n)
        s->ninstances = n + 1;
    e->used = 1;
    image_order();
}

static void entry_erase(struct instance *in)
{
    struct state *s = keeper_state();
    if (s && in->entry < STATE_INSTANCES)
        s->instances[in->entry].used = 0;
    in->entry = STATE_INSTANCES;
}

void instance_save(struct instance *in)
{
    struct image *img = in->img;
    pthread_mutex_lock(&list.lock);
    entry_write(in); /* an entry whose image is not complete counts for nothing */
    pthread_mutex_unlock(&list.lock);
    img->number = in->number;
    img->nonce = in->nonce;
    img->run_token = in->run_token;
    img->parent = in->parent;
    img->pid = in->pid;
    img->uid = in->uid;
    memcpy(img->command, in->command, sizeof(img->command));
    img->set = in->set;
    img->arena_start = in->arena_start;
    img->arena_len = in->arena_len;
    img->identity = in->identity;
    img->features = in->features;
    img->chan_size = in->chan ? in->chan_size : 0;
    img->staging = in->staging;
    img->limit = in->budget.limit;
    img->partial = in->partial;
    img->claimed = in->claimed;
    img->tampered = in->tampered;
    img->pin_all = in->pin_all;
    image_order();
    img->complete = 1;
}

void instance_publish(struct instance *in)
{
    pthread_mutex_lock(&list.lock);
    in->next = list.first;
    list.first = in;
    list.count++;
    pthread_mutex_unlock(&list.lock);
}

unsigned instance_count(void)
{
    pthread_mutex_lock(&list.lock);
    unsigned n = list.count;
    pthread_mutex_unlock(&list.lock);
    return n;
}

struct instance **instance_list(size_t *n)
{
    pthread_mutex_lock(&list.lock);
    struct instance **all = calloc(list.count + 1, sizeof(*all));
    *n = 0;
    for (struct instance *in = list.first; all && in; in = in->next)
        all[(*n)++] = instance_get(in);
    pthread_mutex_unlock(&list.lock);
    return all;
}

struct instance *instance_find(pid_t pid)
{
    pthread_mutex_lock(&list.lock);
    struct instance *in = list.first;
    while (in && (in->pid != pid || in->dead))
        in = in->next;
    if (in)
        instance_get(in);
    pthread_mutex_unlock(&list.lock);
    return in;
}

struct instance *instance_find_nonce(uint64_t nonce)
{
    pthread_mutex_lock(&list.lock);
    struct instance *in = list.first;
    while (in && in->nonce != nonce)
        in = in->next;
    if (in)
        instance_get(in);
    pthread_mutex_unlock(&list.lock);
    return in;
}

struct instance *instance_reattach(uint64_t number, pid_t pid, int sock)
{
    pthread_mutex_lock(&list.lock);
    struct instance *in = list.first;
    while (in && in->number != number)
        in = in->next;
    if (in)
        instance_get(in);
    pthread_mutex_unlock(&list.lock);
    if (!in)
        return NULL;
    pthread_mutex_lock(&in->lock);
    bool ok = in->restored && in->pid == pid;
    if (ok) {
        in->restored = false;
        in->sock = sock;
    }
    pthread_mutex_unlock(&in->lock);
    if (ok)
        return in;
    instance_put(in);
    return NULL;
}

void instance_await_lpet(struct instance *in)
{
    in->restored = true;
    in->restored_ns = now_ns();
}

/* By its name: its thread id may be one of another pid namespace. */
bool instance_has_lpet(const struct instance *in)
{
    char path[300], name[16] = "";
    bool found = false;
    snprintf(path, sizeof(path), "/proc/%d/task", in->pid);
    DIR *dir = opendir(path);
    for (const struct dirent *e; dir && !found && (e = readdir(dir));) {
        snprintf(path, sizeof(path), "/proc/%d/task/%s/comm", in->pid, e->d_name);
        FILE *f = fopen(path, "re");
        found = f && fgets(name, sizeof(name), f) && strcmp(name, "edm-lpet\n") == 0;
        if (f)
            fclose(f);
    }
    if (dir)
        closedir(dir);
    return found;
}

/* ---- making ---- */

/* What every instance starts with; image_open or image_create and spt_init come next. */
static struct instance *instance_alloc(const struct edm_settings *set, uid_t uid)
{
    struct instance *in = calloc(1, sizeof(*in));
    if (!in)
        return NULL;
    in->uffd = in->pagemap_fd = in->maps_fd = in->sock = -1;
    in->cmd_fd = in->cmd_peer = in->comp_efd = in->chan_fd = in->image_fd = -1;
    in->entry = STATE_INSTANCES;
    in->wake_efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    in->limbo.work = limbo_aside_new();
    atomic_init(&in->refs, 1);
    edm_mutex_init(&in->lock);
    lspt_init(&in->lspt);
    handlers_init(&in->turns);
    in->set = *set;
    in->uid = uid;
    if (in->wake_efd < 0 || !in->limbo.work) {
        instance_put(in);
        return NULL;
    }
    return in;
}

struct instance *instance_new(const struct edm_settings *set, uid_t uid)
{
    struct instance *in = instance_alloc(set, uid);
    if (!in)
        return NULL;
    if (image_create(&in->image_fd, &in->img) || spt_init(&in->spt, in->img) ||
        getrandom(&in->nonce, sizeof(in->nonce), 0) != sizeof(in->nonce)) {
        instance_put(in);
        return NULL;
    }
    in->tracks = in->img->tracks;
    in->stats = &in->img->stats;
    in->stats->lease_limit = list.lease_limit;
    pthread_mutex_lock(&list.lock);
    in->number = ++list.numbers;
    if (keeper_state())
        keeper_state()->numbers = list.numbers;
    pthread_mutex_unlock(&list.lock);
    return in;
}

struct instance *instance_from_image(int image_fd, struct image *img)
{
    struct instance *in = instance_alloc(&img->set, img->uid);
    if (!in)
        return NULL;
    in->image_fd = image_fd;
    in->img = img;
    in->tracks = img->tracks;
    if (spt_init(&in->spt, img)) {
        in->image_fd = -1;
        in->img = NULL;
        instance_put(in);
        return NULL;
    }
    in->number = img->number;
    in->nonce = img->nonce;
    in->run_token = img->run_token;
    in->parent = img->parent;
    in->pid = img->pid;
    memcpy(in->command, img->command, sizeof(in->command));
    in->command[sizeof(in->command) - 1] = 0;
    in->arena_start = img->arena_start;
    in->arena_len = img->arena_len;
    in->identity = img->identity;
    in->features = img->features;
    in->staging = img->staging;
    in->partial = img->partial;
    in->claimed = img->claimed;
    in->tampered = img->tampered;
    in->detached = img->detached;
    in->pin_all = img->pin_all;
    in->cmd_head = img->cmd_head;
    in->cmd_seen = img->cmd_seen;
    in->stats = &img->stats;
    in->stats->lease_limit = list.lease_limit;
    budget_set(in, img->limit);
    return in;
}

void instance_numbers_from(uint64_t used)
{
    pthread_mutex_lock(&list.lock);
    list.numbers = keeper_state()->numbers = used;
    pthread_mutex_unlock(&list.lock);
}

static const char *hello_check(const struct edm_hello *h)
{
    const struct edm_settings *s = &h->settings;
    uint64_t end = h->arena_start + h->arena_len;
    if (h->arena_start % EDM_CHUNK_SIZE || h->arena_len % EDM_CHUNK_SIZE || !h->arena_len ||
        h->arena_len > ARENA_MAX || end < h->arena_start || end > 1ull << 47)
        return "impossible arena";
    if (h->identity % EDM_PAGE_SIZE || h->identity - h->arena_start < h->arena_len ||
        h->identity >= 1ull << 47)
        return "impossible identity page";
    if (h->used_start > h->used_end || h->used_end > end ||
        (h->used_start != h->used_end && h->used_start < h->arena_start))
        return "impossible range in use";
    if (s->high_permille > 1000 || s->low_permille >= s->high_permille ||
        s->local_permille > 1000 || (!s->local_memory && !s->local_permille) || !s->cluster ||
        s->cluster > EDM_CHUNK_PAGES || s->evict_method > EDM_EVICT_COPY || s->handlers > 64 ||
        s->placement > EDM_PLACEMENT_SPREAD || !s->replicas || s->replicas > COPIES_MAX)
        return "impossible settings";
    return NULL;
}

int instance_create(const struct edm_hello *hello, pid_t pid, uid_t uid, struct instance **out,
                    char *err, size_t errlen)
{
    const char *bad = hello_check(hello);
    if (bad) {
        snprintf(err, errlen, "%s: shim and server do not match", bad);
        return -EPROTO;
    }
    struct instance *in = instance_new(&hello->settings, uid);
    if (!in) {
        snprintf(err, errlen, "the server is out of memory or descriptors");
        return -ENOMEM;
    }
    in->pid = pid;
    in->arena_start = hello->arena_start;
    in->arena_len = hello->arena_len;
    in->identity = hello->identity;
    in->run_token = hello->run_token;
    memcpy(in->command, hello->command, sizeof(in->command));
    in->command[sizeof(in->command) - 1] = 0;
    *out = in;
    return 0;
}

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
    uint64_t limit = budget_wanted(in, edm_memory_total()) >> EDM_PAGE_SHIFT;
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
        close_fd(&in->chan_fd);
        close_fd(&in->cmd_fd);
        close_fd(&in->cmd_peer);
        close_fd(&in->comp_efd);
    }
    pthread_mutex_unlock(&in->lock);
}

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
        close_fd(&in->uffd);
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
    budget_set(in, budget_wanted(in, edm_memory_total()) >> EDM_PAGE_SHIFT);
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

/* ---- wake-ups ---- */

void instance_wake(struct instance *in)
{
    uint64_t one = 1;
    (void)!write(in->wake_efd, &one, sizeof(one));
}

void instance_starve(struct instance *in, bool starved)
{
    __atomic_store_n(&in->chan->starved, starved, __ATOMIC_RELEASE);
    if (!starved)
        syscall(SYS_futex, &in->chan->starved, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
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
    atomic_store(&list.stores_full, full);
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

/* ---- the end ---- */

bool instance_is_gone(struct instance *in)
{
    return in->uffd >= 0 && uffd_zero(in->uffd, PROBE_ADDRESS, 1) == -ESRCH;
}

static void free_pages(struct instance *in)
{
    store_handle handles[EDM_CHUNK_PAGES];
    for (uint32_t n = 0; n < in->spt.nchunks; n++) {
        struct chunk *c = &in->spt.chunks[n];
        for (uint32_t i = 0; i < EDM_CHUNK_PAGES; i++) {
            handles[i] = c->pages[i].handle;
            c->pages[i].handle = 0;
            c->pages[i].state = PAGE_NEW;
        }
        copies_unref_many(handles, EDM_CHUNK_PAGES);
    }
    in->stored = 0;
}

/* False: somebody else has taken it off the list. */
static bool unpublish(struct instance *in)
{
    bool found = false;
    pthread_mutex_lock(&list.lock);
    for (struct instance **p = &list.first; *p; p = &(*p)->next)
        if (*p == in) {
            *p = in->next;
            list.count--;
            entry_erase(in);
            found = true;
            break;
        }
    pthread_mutex_unlock(&list.lock);
    return found;
}

void instance_destroy(struct instance *in)
{
    if (!unpublish(in))
        return;
    pthread_mutex_lock(&in->lock);
    atomic_store(&in->stop, true);
    pthread_mutex_unlock(&in->lock);
    instance_wake(in);
    handlers_wake(in);
    for (unsigned i = 0; i < in->nhandlers; i++)
        pthread_join(in->handlers[i], NULL);
    if (in->has_op_thread) {
        __atomic_fetch_add(&in->chan->op_bell, 1, __ATOMIC_ACQ_REL);
        syscall(SYS_futex, &in->chan->op_bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
        pthread_join(in->op_thread, NULL);
    }
    pthread_mutex_lock(&in->lock);
    evict_complete(in, true);
    limbo_work(in); /* a batch that nobody has begun: its copies go with the pages */
    limbo_collect(in);
    for (uint32_t n = in->cmd_seen; n != in->cmd_head && in->nfollowers; n++)
        for (uint32_t i = 0; i < EDM_CMD_PAGES; i++)
            for (int at = 0; at < 2; at++)
                fork_follow(in, n % EDM_CHAN_CMDS * EDM_CMD_PAGES + i, at, OUTCOME_UNKNOWN, NULL);
    free_pages(in);
    in->nwaiters = 0;
    bool forked = in->parent != 0;
    pthread_mutex_unlock(&in->lock);
    if (forked)
        fork_forget();
    instance_put(in);
}
