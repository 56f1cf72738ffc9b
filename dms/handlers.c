/*
 * Which of an instance's handlers poll its userfaultfd. A fault wakes all that do. When one thread
 * makes the faults, the handler on that thread's CPU may lead and the others be parked: on a quiet
 * machine that saves wake-ups, on a busy one the fault waits for that CPU. So both ways are timed
 * over windows of faults, and the cheaper one is used; the other is tried now and then, less often
 * the longer it does not pay. A single window may be spoilt by anything: medians are compared. When
 * several threads fault, all poll.
 */
#include "instance.h"
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WINDOW 256    /* faults of one thread in a row */
#define WINDOW_FEW 16 /* and these, when they take long */
#define WINDOW_NS 2000000ull
#define WINDOW_TRIAL 32 /* and these, of the other way */
#define TRY_FIRST 16    /* windows after which that is tried, twice as many each time it failed, */
#define TRY_LAST 256    /* up to these */
#define LOOK_EVERY 1024 /* faults between two looks at the thread's CPU, */
#define LOOK_LATE 8     /* and when they come as slowly as from another CPU */
#define LATE_NS 30000u
#define NICE (-5)
#define STAT_CPU 39 /* field of /proc/PID/task/TID/stat, counted from 1 */

void handlers_init(struct turns *pl)
{
    atomic_init(&pl->leader, -1);
    pl->every = TRY_FIRST;
    pl->stat_fd = -1;
    for (int i = 0; i < HANDLERS_MAX; i++)
        pl->park_efd[i] = pl->cpu[i] = pl->timer_us[i] = -1;
}

void handlers_fini(struct turns *pl)
{
    for (int i = 0; i < HANDLERS_MAX; i++)
        if (pl->park_efd[i] >= 0)
            close(pl->park_efd[i]);
    if (pl->stat_fd >= 0)
        close(pl->stat_fd);
}

static void park_wake(struct turns *pl, int index)
{
    uint64_t one = 1;
    if (pl->park_efd[index] >= 0)
        (void)!write(pl->park_efd[index], &one, sizeof(one));
}

void handlers_wake(struct instance *in)
{
    for (int i = 0; i < HANDLERS_MAX; i++)
        park_wake(&in->turns, i);
}

static void lead(struct instance *in, int leader)
{
    struct turns *pl = &in->turns;
    if (atomic_exchange(&pl->leader, leader) == leader)
        return;
    if (leader < 0)
        handlers_wake(in);
    else
        park_wake(pl, leader);
}

/* The CPU that the thread was last on, -1 when that cannot be told. */
static int thread_cpu(int stat_fd)
{
    char buf[1024];
    ssize_t n = pread(stat_fd, buf, sizeof(buf) - 1, 0);
    if (n <= 0)
        return -1;
    buf[n] = 0;
    const char *s = strrchr(buf, ')'); /* ends field 2 */
    for (int field = 2; s && field < STAT_CPU; field++)
        s = strchr(s + 1, ' ');
    return s ? atoi(s + 1) : -1;
}

static uint64_t median(const struct turns_cost *c)
{
    uint64_t v[TURNS_KEPT];
    uint32_t n = c->n < TURNS_KEPT ? c->n : TURNS_KEPT;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = i;
        for (; j > 0 && v[j - 1] > c->ns[i]; j--)
            v[j] = v[j - 1];
        v[j] = c->ns[i];
    }
    return n ? v[n / 2] : 0;
}

static void trial_end(struct turns *pl)
{
    uint64_t with = median(&pl->cost[1]), without = median(&pl->cost[0]);
    bool before = !pl->leading;
    pl->leading = with + with / 16 < without;
    pl->since = 0;
    if (pl->leading != before)
        pl->every = TRY_FIRST;
    else
        pl->every = pl->every * 2 < TRY_LAST ? pl->every * 2 : TRY_LAST;
}

void handlers_measured(struct turns *pl, uint64_t ns)
{
    struct turns_cost *c = &pl->cost[pl->leading];
    const struct turns_cost *other = &pl->cost[!pl->leading];
    c->ns[c->n++ % TURNS_KEPT] = ns;
    if (pl->trial) {
        if (--pl->trial == 0)
            trial_end(pl);
        return;
    }
    pl->since++;
    bool worse = pl->since >= TURNS_KEPT && median(c) > median(other) * 3 / 2;
    if (other->n && !worse && pl->since < pl->every)
        return;
    pl->trial = TURNS_KEPT;
    pl->leading = !pl->leading;
}

static void window_end(struct turns *pl, uint64_t now)
{
    bool led = pl->leading;
    handlers_measured(pl, (now - pl->window_ns) / (pl->same - pl->window_same));
    if (pl->leading && !led) /* from its first fault on, or it measures the other way */
        pl->looked = pl->same - LOOK_EVERY;
}

static void window_count(struct turns *pl, uint64_t now)
{
    uint32_t faults = pl->same - pl->window_same;
    bool over = faults >= (pl->trial ? WINDOW_TRIAL : WINDOW) ||
                (faults >= WINDOW_FEW && now - pl->window_ns > WINDOW_NS);
    if (pl->window_ns && !over)
        return;
    if (pl->window_ns)
        window_end(pl, now);
    pl->window_ns = now;
    pl->window_same = pl->same;
}

static void follow(struct instance *in)
{
    struct turns *pl = &in->turns;
    char path[64];
    if (pl->stat_fd < 0) {
        snprintf(path, sizeof(path), "/proc/%d/task/%u/stat", in->pid, pl->tid);
        pl->stat_fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    int cpu = pl->stat_fd < 0 ? -1 : thread_cpu(pl->stat_fd), leader = -1;
    for (unsigned i = 0; i < in->nhandlers && cpu >= 0; i++)
        if (pl->cpu[i] == cpu)
            leader = (int)i;
    lead(in, leader);
}

void handlers_fault(struct instance *in, uint32_t tid, uint64_t now)
{
    struct turns *pl = &in->turns;
    if (!pl->placed || in->nhandlers < 2)
        return;
    if (tid != pl->tid) {
        pl->tid = tid;
        pl->same = pl->looked = 0;
        if (pl->stat_fd >= 0)
            close(pl->stat_fd);
        pl->stat_fd = -1;
        pl->window_ns = 0;
        lead(in, -1);
        return;
    }
    pl->same++;
    window_count(pl, now);
    uint64_t every = now - pl->last_ns > LATE_NS ? LOOK_LATE : LOOK_EVERY;
    pl->last_ns = now;
    if (!pl->leading) {
        lead(in, -1);
    } else if (pl->same - pl->looked >= every) {
        pl->looked = pl->same;
        follow(in);
    }
}

/*
 * Of what a fault costs, the handler uses three quarters and the thread that it serves the rest, on
 * one CPU. With equal shares the scheduler thinks that it owes the thread time, takes it off its
 * queue when it faults, and at the wake-up moves it to another CPU that is idle, with cold caches
 * and a handler that must be told: 1000 times a second. With a share like the use it stays (50
 * times a second). Needs CAP_SYS_NICE; without it all works as well, a little slower.
 */
void handlers_weigh(void)
{
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE);
}

bool handlers_wait(struct instance *in, unsigned index)
{
    struct turns *pl = &in->turns;
    struct pollfd fd = {.fd = pl->park_efd[index], .events = POLLIN};
    for (;;) {
        int leader = atomic_load(&pl->leader);
        uint64_t value;
        if (leader < 0 || leader == (int)index || fd.fd < 0 || atomic_load(&in->stop))
            return false;
        if (limbo_work(in))
            return true;
        if (pl->timer_us[index] >= 0)
            dm_handler_parks(in, index);
        if (poll(&fd, 1, -1) > 0)
            (void)!read(fd.fd, &value, sizeof(value));
    }
}

/* Whoever leaves work behind that no descriptor announces is not always a handler that polls: a
 * reader of the disk, the hooks' thread, a handler that parks. One that polls must come back. */
void handlers_timer_ask(struct instance *in, int due_us)
{
    bool covered = due_us < 0;
    for (unsigned i = 0; i < in->nhandlers && !covered; i++)
        covered = in->turns.timer_us[i] >= 0 && in->turns.timer_us[i] <= due_us;
    if (!covered)
        instance_wake(in);
}

bool handlers_spare(const struct instance *in)
{
    return atomic_load(&in->turns.leader) >= 0 && in->nhandlers > 1;
}

void handlers_spare_wake(struct instance *in)
{
    park_wake(&in->turns, atomic_load(&in->turns.leader) == 0);
}
