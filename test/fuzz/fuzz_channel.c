/*
 * What an instance can write into its channel: results of commands, operations of the hooks, the
 * words about forks. The instance, its LPET, its memory and the kernel's answers are this file; the
 * server's part is the production code on one thread, so that an input always does the same.
 */
#include "config/log.h"
#include "dms/holder.h"
#include "dms/homes.h"
#include "dms/instance.h"
#include "dms/keeper.h"
#include "fuzz.h"
#include "preload/uffd_abi.h"
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ARENA (1ull << 40)
#define CHUNKS 3u
#define ARENA_LEN (CHUNKS * EDM_CHUNK_SIZE)
#define PAGES (CHUNKS * EDM_CHUNK_PAGES)
#define STEPS 200
#define PATIENCE                                                                                   \
    300 /* pauses of one call; then the instance is ended, as when its process dies                \
         */
#define CHILDREN 4
#define LPET_TID 4242u

static struct {
    struct instance *in;
    bool present[PAGES];
    bool missing[CHUNKS]; /* registered for MISSING; else the kernel serves first touches */
    bool lpet_works;
    int events; /* our end of its userfaultfd */
    int error;  /* of the next calls to the kernel */
    int errors; /* so many */
    unsigned pauses;
    unsigned children;
    uint64_t ahead_ns; /* of the clock */
} world;

/* ---- the kernel ---- */

static bool page_number(uint64_t addr, uint64_t *page)
{
    *page = (addr - ARENA) >> EDM_PAGE_SHIFT;
    return addr - ARENA < ARENA_LEN;
}

static int pages_place(uint64_t dst, uint64_t len, int64_t *done)
{
    uint64_t page, n = 0;
    int err = 0;
    for (; n < len >> EDM_PAGE_SHIFT && !err; n += !err) {
        if (!page_number(dst + (n << EDM_PAGE_SHIFT), &page))
            err = ENOENT;
        else if (world.present[page])
            err = EEXIST;
        else
            world.present[page] = true;
    }
    *done = n ? (int64_t)(n << EDM_PAGE_SHIFT) : -err;
    return err;
}

static int chunks_register(const struct uffdio_register *r)
{
    for (uint64_t c = 0; c < CHUNKS; c++) {
        uint64_t start = ARENA + c * EDM_CHUNK_SIZE;
        if (r->range.start <= start && r->range.start + r->range.len >= start + EDM_CHUNK_SIZE)
            world.missing[c] = r->mode & UFFDIO_REGISTER_MODE_MISSING;
    }
    return 0;
}

static int pages_scan(struct pm_scan_arg *a)
{
    struct page_region *vec = (struct page_region *)(uintptr_t)a->vec;
    uint64_t n = 0, page, at = a->start;
    for (; at < a->end && n < a->vec_len; at += EDM_PAGE_SIZE)
        if (page_number(at, &page) && world.present[page])
            vec[n++] = (struct page_region){.start = at, .end = at + EDM_PAGE_SIZE};
    a->walk_end = at;
    return (int)n;
}

int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
    va_list ap;
    va_start(ap, request);
    void *arg = va_arg(ap, void *);
    va_end(ap);
    struct uffdio_copy *copy = arg;
    struct uffdio_zeropage *zero = arg;
    int err = 0;
    if (world.errors > 0) {
        world.errors--;
        err = world.error;
    } else if (request == UFFDIO_COPY) {
        err = pages_place(copy->dst, copy->len, (int64_t *)&copy->copy);
    } else if (request == UFFDIO_ZEROPAGE) {
        err = pages_place(zero->range.start, zero->range.len, (int64_t *)&zero->zeropage);
    } else if (request == UFFDIO_REGISTER) {
        err = chunks_register(arg);
    } else if (request == PAGEMAP_SCAN) {
        return pages_scan(arg);
    } else if (request == PROCMAP_QUERY) {
        err = ENOTTY;
    }
    errno = err;
    return err ? -1 : 0;
}

uint64_t __real_now_ns(void);
uint64_t __wrap_now_ns(void);
uint64_t __wrap_now_ns(void)
{
    return __real_now_ns() + world.ahead_ns;
}

static void lpet_work(unsigned max);

int __wrap_nanosleep(const struct timespec *ts, struct timespec *left);
int __wrap_nanosleep(const struct timespec *ts, struct timespec *left)
{
    world.ahead_ns += (uint64_t)ts->tv_nsec;
    if (world.lpet_works)
        lpet_work(2);
    if (++world.pauses > PATIENCE)
        atomic_store(&world.in->stop, true);
    return 0;
}

/* One round of op_main: where it would wait for the bell it is told to end. */
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
    va_list ap;
    va_start(ap, number);
    (void)va_arg(ap, uint32_t *);
    int op = va_arg(ap, int);
    va_end(ap);
    if (number == SYS_futex && op == FUTEX_WAIT)
        atomic_store(&world.in->stop, true);
    return 0;
}

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg)
{
    return 0;
}

int __wrap_pthread_join(pthread_t t, void **result);
int __wrap_pthread_join(pthread_t t, void **result)
{
    return 0;
}

int __wrap_pthread_setname_np(pthread_t t, const char *name);
int __wrap_pthread_setname_np(pthread_t t, const char *name)
{
    return 0;
}

struct state *__wrap_keeper_state(void);
struct state *__wrap_keeper_state(void)
{
    static struct state state;
    return &state;
}

int __wrap_kill(pid_t pid, int sig);
int __wrap_kill(pid_t pid, int sig)
{
    return 0;
}

/* ---- the instance ---- */

/* The server steps with the instance's lock. */
static void step(struct instance *in)
{
    world.pauses = 0;
    pthread_mutex_lock(&in->lock);
    dm_handler_step(in);
    pthread_mutex_unlock(&in->lock);
}

static void send_event(const struct uffd_msg *m)
{
    (void)!send(world.events, m, sizeof(*m), MSG_DONTWAIT);
    step(world.in);
}

static void touch(uint64_t page, bool write, uint32_t tid)
{
    struct uffd_msg m = {.event = UFFD_EVENT_PAGEFAULT};
    if (world.present[page])
        return;
    if (!world.missing[page / EDM_CHUNK_PAGES]) {
        world.present[page] = true;
        return;
    }
    m.arg.pagefault.address = ARENA + (page << EDM_PAGE_SHIFT);
    m.arg.pagefault.flags = write ? UFFD_PAGEFAULT_FLAG_WRITE : 0;
    m.arg.pagefault.feat.ptid = tid;
    send_event(&m);
}

static void touch_many(struct input *in)
{
    uint64_t first = input_u16(in) % PAGES, n = input_u8(in), how = input_u8(in);
    for (uint64_t i = 0; i < n; i++)
        touch((first + i) % PAGES, how & 1, how & 2 ? LPET_TID : 1 + how % 3u);
}

/* As a good LPET does it. */
static void lpet_run(struct edm_cmd *cmd)
{
    uint8_t *ring = world.in->limbo.data;
    uint64_t page;
    for (uint32_t i = 0; i < cmd->npages && i < EDM_CMD_PAGES; i++) {
        uint64_t bit = 1ull << i;
        if (cmd->state == EDM_CMD_CANCELLED) {
            cmd->busy |= bit;
        } else if (!page_number(cmd->addr + i * EDM_PAGE_SIZE, &page) || !world.present[page]) {
            cmd->gone |= bit;
        } else if (page % 7 == 0) {
            cmd->zero |= bit;
            world.present[page] = false;
        } else {
            if (cmd->slot + i < world.in->limbo.pages)
                memset(ring + (cmd->slot + i) * EDM_PAGE_SIZE, (int)page, EDM_PAGE_SIZE);
            cmd->moved |= bit;
            world.present[page] = false;
        }
    }
}

static void lpet_work(unsigned max)
{
    struct edm_chan *chan = world.in->chan;
    while (max-- && chan->cmd_tail != chan->cmd_head)
        lpet_run(&chan->cmds[chan->cmd_tail++ % EDM_CHAN_CMDS]);
}

static void lpet_lie(struct input *in)
{
    struct edm_chan *chan = world.in->chan;
    struct edm_cmd *cmd = &chan->cmds[chan->cmd_tail % EDM_CHAN_CMDS];
    uint8_t what = input_u8(in);
    uint64_t *masks[] = {&cmd->moved, &cmd->zero, &cmd->busy, &cmd->gone, &cmd->refused};
    for (unsigned i = 0; i < 5; i++)
        if (what & 1 << i)
            *masks[i] = input_u8(in) * 0x0101010101010101ull;
    chan->cmd_tail += what & 128 ? input_u8(in) : 1;
}

static void write_anything(struct input *in)
{
    uint8_t *chan = (uint8_t *)world.in->chan;
    uint8_t bytes[64];
    size_t at = input_u16(in) % sizeof(struct edm_chan), room = sizeof(struct edm_chan) - at;
    size_t n = input_bytes(in, bytes, input_u8(in) % sizeof(bytes));
    memcpy(chan + at, bytes, n < room ? n : room);
}

/* An address or length: one of the arena mostly, or any. */
static uint64_t number(struct input *in, uint64_t base)
{
    uint8_t how = input_u8(in);
    if (how < 128)
        return base + (uint64_t)how * 8 * EDM_PAGE_SIZE + (how % 16 == 15);
    return how < 192 ? 1ull << how % 64 : how < 250 ? base + input_u16(in) : input_u64(in);
}

static struct edm_op *operation(struct input *in)
{
    struct edm_op *op = &world.in->chan->ops[input_u8(in) % EDM_CHAN_OPS];
    op->kind = input_u8(in);
    op->kind = op->kind & 128 ? op->kind & 127 : 16 + op->kind % 12;
    op->start = number(in, ARENA);
    op->len = number(in, 0);
    op->arg = number(in, 0);
    return op;
}

static void request(struct input *in)
{
    struct edm_op *op = operation(in);
    op->state = EDM_OP_REQUEST;
    world.in->chan->op_bell++;
    world.pauses = 0;
    op_main(world.in);
    atomic_store(&world.in->stop, false);
    if (input_u8(in) & 1)
        op->state = EDM_OP_FREE;
}

static void note(struct input *in)
{
    struct edm_op *op = operation(in);
    op->kind %= 4;
    op->state = EDM_OP_OPEN;
}

/* ---- its system calls, and what the kernel tells of them ---- */

static uint64_t page_range(struct input *in, uint64_t *len)
{
    uint64_t start = number(in, ARENA) % (1ull << 47) & ~(EDM_PAGE_SIZE - 1);
    *len = ((uint64_t)input_u8(in) + 1) * EDM_PAGE_SIZE;
    return start;
}

static void discard(uint64_t start, uint64_t len)
{
    uint64_t page;
    for (uint64_t a = start; a < start + len; a += EDM_PAGE_SIZE)
        if (page_number(a, &page))
            world.present[page] = false;
}

static void move(uint64_t from, uint64_t to, uint64_t len)
{
    uint64_t f, t;
    discard(to, len);
    for (uint64_t off = 0; off < len; off += EDM_PAGE_SIZE) {
        if (!page_number(from + off, &f))
            continue;
        if (page_number(to + off, &t))
            world.present[t] = world.present[f];
        world.present[f] = false;
    }
}

static void system_call(struct input *in)
{
    struct uffd_msg m = {0};
    uint64_t len, start = page_range(in, &len), to;
    switch (input_u8(in) % 4) {
    case 0:
        m.event = UFFD_EVENT_REMOVE;
        m.arg.remove.start = start;
        m.arg.remove.end = start + len;
        discard(start, len);
        break;
    case 1:
        m.event = UFFD_EVENT_UNMAP;
        m.arg.remove.start = start;
        m.arg.remove.end = start + len;
        discard(start, len);
        break;
    case 2:
        to = page_range(in, &len);
        if (to < start + len && start < to + len)
            return;
        m.event = UFFD_EVENT_REMAP;
        m.arg.remap.from = start;
        m.arg.remap.to = to;
        m.arg.remap.len = len;
        move(start, to, len);
        break;
    default:
        if (world.children++ >= CHILDREN)
            return;
        m.event = UFFD_EVENT_FORK;
        m.arg.fork.ufd = (uint32_t)dup(world.events);
    }
    send_event(&m);
}

/* ---- what others ask of the server ---- */

static void look_at(void)
{
    size_t len;
    char *text = NULL;
    FILE *f = open_memstream(&text, &len);
    FUZZ_CHECK(f != NULL);
    stats_instance_json(world.in, f);
    fclose(f);
    free(text);
    instance_rebalance();
}

static void others(struct input *in)
{
    struct instance *inst = world.in;
    uint8_t what = input_u8(in);
    pthread_mutex_lock(&inst->lock);
    if (what % 4 == 0)
        inst->budget.forced = input_u8(in);
    else if (what % 4 == 1)
        evict_abandon(inst);
    pthread_mutex_unlock(&inst->lock);
    if (what % 4 == 2)
        look_at();
    if (what % 16 == 3)
        instance_release(inst);
    if (what % 16 == 7)
        limbo_work(inst);
    world.pauses = 0;
    atomic_store(&inst->stop, false);
    if (what % 16 == 11)
        world.ahead_ns += (uint64_t)input_u8(in) * 20000000;
    step(inst);
}

static void errors(struct input *in)
{
    static const int some[] = {EAGAIN, EEXIST, ENOENT, ESRCH, ENOMEM, EINVAL, EBUSY, EPERM};
    uint8_t which = input_u8(in);
    world.error = some[which % 8];
    world.errors = which / 8 % 16;
}

/* ---- what must hold ---- */

struct sums {
    uint64_t listed, resident, limbo, stored, leases;
};

static void chunk_sum(const struct chunk *c, struct sums *s)
{
    uint32_t touched = 0, foreign = 0, pinned = 0;
    for (uint32_t i = 0; i < EDM_CHUNK_PAGES; i++) {
        const struct page *p = &c->pages[i];
        touched += p->state != PAGE_NEW;
        foreign += p->state == PAGE_FOREIGN;
        pinned += p->pins > 0;
        s->listed += (p->flags & PF_LISTED) != 0;
        s->resident += p->state == PAGE_RESIDENT;
        s->limbo += p->state == PAGE_LIMBO;
        s->stored += p->state == PAGE_STORED;
    }
    s->leases += c->leased;
    FUZZ_CHECK(c->touched == touched && c->foreign == foreign && c->pinned == pinned);
}

/* The server's own counts agree with its table, whatever it was told. */
static void check(const struct instance *in)
{
    struct sums s = {0};
    for (uint32_t n = 0; n < in->spt.nchunks; n++)
        chunk_sum(&in->spt.chunks[n], &s);
    FUZZ_CHECK(s.listed == in->budget.resident && s.resident == s.listed + in->budget.pinned);
    FUZZ_CHECK(s.limbo == in->limbo.used && s.stored == in->stored);
    FUZZ_CHECK(s.leases == in->budget.leases);
    FUZZ_CHECK(in->budget.evicting <= EDM_CHAN_CMDS * EDM_CMD_PAGES && in->nheld <= EDM_CHAN_OPS);
}

/* ---- an input ---- */

static void start(void)
{
    char err[200];
    static uint64_t kept;
    struct store_options o = {.memory_bytes = 1024 * EDM_PAGE_SIZE};
    edm_log_init("fuzz", EDM_LOG_DEBUG, "/dev/null");
    FUZZ_CHECK(!instance_module_init(o.memory_bytes) && !copies_init(NULL, NULL));
    FUZZ_CHECK(!store_init(&o, err, sizeof(err)) && !homes_open(-1) && !copies_open(-1) &&
               !holder_open(-1, &kept) && !copies_start());
}

static void begin(struct input *in)
{
    char err[200];
    int pair[2];
    uint8_t how = input_u8(in);
    struct edm_hello hello = {.arena_start = ARENA, .arena_len = ARENA_LEN, .identity = ARENA / 2};
    hello.settings = (struct edm_settings){.local_memory = 1 << 20,
                                           .low_permille = 900,
                                           .high_permille = 950,
                                           .replicas = 1,
                                           .lease = how & 1,
                                           .prefetch = how >> 1 & 1,
                                           .prefetch_max = 64,
                                           .cluster = 16,
                                           .evict_method = how >> 2 & 3};
    if (hello.settings.evict_method > EDM_EVICT_COPY)
        hello.settings.evict_method = EDM_EVICT_AUTO;
    memset(&world, 0, sizeof(world));
    world.lpet_works = how & 16;
    memset(world.missing, 1, sizeof(world.missing));
    FUZZ_CHECK(!socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, pair));
    FUZZ_CHECK(!instance_create(&hello, getpid(), 0, &world.in, err, sizeof(err)));
    FUZZ_CHECK(!instance_open_channel(world.in));
    world.events = pair[1];
    world.in->uffd = pair[0];
    world.in->nhandlers = how & 32 ? 2 : 1; /* of these, one is parked */
    atomic_store(&world.in->turns.leader, how & 32 ? 0 : -1);
    world.in->claimed = true;
    world.in->chan->lpet_tid = LPET_TID;
    budget_set(world.in, hello.settings.local_memory >> EDM_PAGE_SHIFT);
    instance_publish(instance_get(world.in));
}

static void end(void)
{
    size_t n;
    struct store_stats s;
    struct instance **all = instance_list(&n);
    world.errors = 0;
    for (size_t i = 0; i < n; i++) {
        check(all[i]);
        instance_destroy(all[i]);
        instance_put(all[i]);
    }
    free(all);
    instance_put(world.in);
    close(world.events);
    store_get_stats(&s);
    FUZZ_CHECK(instance_count() == 0 && s.memory.pages == 0);
}

static void act(struct input *in)
{
    static void (*const deeds[])(struct input *) = {touch_many,     touch_many, lpet_lie, request,
                                                    write_anything, request,    note,     others,
                                                    system_call,    errors};
    uint8_t what = input_u8(in);
    if (what % 12 < 10)
        deeds[what % 12](in);
    else
        lpet_work(what % 12 == 10 ? 1 : 64);
    step(world.in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool started;
    struct input in = {data, size};
    if (!started)
        start();
    started = true;
    begin(&in);
    for (int i = 0; i < STEPS && in.left; i++) {
        act(&in);
        if (i % 8 == 7)
            check(world.in);
    }
    end();
    return 0;
}
