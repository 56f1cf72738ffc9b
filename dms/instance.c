#include "../config/log.h"
#include "instance_int.h"
#include "keeper.h"
#include "mutex.h"
#include "uffd.h"
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ARENA_MAX (1ull << 46)
/* never registered with us: ENOENT while the process lives */
#define PROBE_ADDRESS ((1ull << 47) - 2 * EDM_PAGE_SIZE)

static struct {
    pthread_mutex_t lock;
    struct instance *first;
    unsigned count;
    uint64_t numbers;
    uint64_t lease_limit;
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
    budget_init(store_bytes);
    return 0;
}

/* ---- list and references ---- */

struct instance *instance_get(struct instance *in)
{
    atomic_fetch_add(&in->refs, 1);
    return in;
}

void instance_close_fd(int *fd)
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
        instance_close_fd(fds[i]);
    instance_close_fd(&in->image_fd);
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
    in->memory = edm_memory_of(in->pid, &in->memory_group);
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
    in->memory = edm_memory_of(pid, &in->memory_group);
    in->arena_start = hello->arena_start;
    in->arena_len = hello->arena_len;
    in->identity = hello->identity;
    in->run_token = hello->run_token;
    memcpy(in->command, hello->command, sizeof(in->command));
    in->command[sizeof(in->command) - 1] = 0;
    *out = in;
    return 0;
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
