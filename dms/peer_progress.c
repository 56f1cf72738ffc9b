#include "peer_int.h"

#include "../config/log.h"
#include <errno.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPIN_MIN_NS 4000ull
#define SPIN_NS 60000ull     /* without any message: then the progress thread sleeps */
#define SPIN_TRY 32          /* one in so many short ones is as long as the longest */
#define BUSY_NS 250000ull    /* between two messages: to spin for the next one may pay */
#define DEAF_NS 200000l      /* not woken by what another thread is there for */
#define SLEEP_MS 100         /* at most, while an answer is waited for */
#define IDLE_MS 500          /* at most, else */
#define CHECK_NS 10000000ull /* between two looks at the time limits */
#define REQUEST_LIMITS 8     /* a rank that talks, but not about this: so many time limits */
#define NICE (-5)
#define PATIENCE_MAX 9 /* 2^n ms */

_Thread_local struct keep_off *peer_keeps_off;

/* ---- who looks ---- */

void peer_thread_wake(void)
{
    uint64_t one = 1;
    if (atomic_load(&peer_job.asleep))
        (void)!write(peer_job.wake_fd, &one, sizeof(one));
}

void peer_tell_thread(void)
{
    if (atomic_load(&peer_job.asleep) && peer_message_waits())
        peer_thread_wake();
}

uint64_t peer_spin_ns(struct peer_spin *s)
{
    if (s->ns >= SPIN_MIN_NS)
        return s->ns;
    return ++s->tries % SPIN_TRY ? SPIN_MIN_NS : SPIN_NS;
}

void peer_spin_learn(struct peer_spin *s, bool came)
{
    s->ns = came ? SPIN_NS : s->ns / 2;
}

void peer_spin_begin(void)
{
    atomic_fetch_add(&peer_job.spinners, 1);
}

void peer_spin_end(bool came)
{
    atomic_store(&peer_job.spun_ns, came ? peer_clock_ns() : 0);
    atomic_fetch_sub(&peer_job.spinners, 1);
    if (!came && atomic_load(&peer_job.deaf))
        peer_thread_wake();
    else
        peer_tell_thread();
}

void peer_poll_end(void)
{
    peer_tell_thread();
}

/* Another thread looks for messages, or has just done so with success and will again. */
static bool others_look(void)
{
    return atomic_load(&peer_job.spinners) ||
           peer_clock_ns() - atomic_load(&peer_job.spun_ns) < DEAF_NS;
}

/* ---- time limits ---- */

static void fail_requests(int rank)
{
    struct request_entry e;
    for (;;) {
        pthread_mutex_lock(&peer_job.lock);
        bool any = requests_take_any(&peer_job.requests, rank, &e);
        if (any)
            peer_job.peers[rank].asked--;
        pthread_mutex_unlock(&peer_job.lock);
        if (!any)
            return;
        e.done(e.arg, -EHOSTDOWN, NULL);
    }
}

static bool time_is_over(struct peer *p, int rank, uint64_t now)
{
    pthread_mutex_lock(&peer_job.lock);
    bool over =
        p->asked && now > p->silent_since_ns && now - p->silent_since_ns > peer_job.timeout_ns;
    uint64_t longest = peer_job.timeout_ns * REQUEST_LIMITS;
    if (!over && p->asked && now > longest)
        over = requests_are_older(&peer_job.requests, rank, now - longest);
    pthread_mutex_unlock(&peer_job.lock);
    return over;
}

/* A rank that was stopped itself must not blame the others. */
static void forgive(uint64_t now)
{
    pthread_mutex_lock(&peer_job.lock);
    for (int r = 0; r < peer_job.ranks; r++)
        peer_job.peers[r].silent_since_ns = now;
    pthread_mutex_unlock(&peer_job.lock);
}

static void check_limits(void)
{
    uint64_t now = peer_clock_ns();
    if (now - peer_job.checked_ns < CHECK_NS)
        return;
    if (now - peer_job.checked_ns > peer_job.timeout_ns / 2)
        forgive(now);
    for (unsigned i = 0; i < peer_job.nreceives && peer_poll(); i++)
        ; /* what is here is not late */
    peer_job.checked_ns = now;
    keep_off_tick(peer_keeps_off, peer_clock_ns());
    for (int r = 0; r < peer_job.ranks; r++) {
        struct peer *p = &peer_job.peers[r];
        if (r == peer_job.rank || !atomic_load(&p->alive))
            continue;
        bool bad = atomic_load(&p->bad);
        if (!bad && !time_is_over(p, r, now))
            continue;
        if (!p->left && !atomic_load(&p->nonsense))
            edm_error("rank %d on %s %s: taken for dead", r,
                      p->hello.host[0] ? p->hello.host : "an unknown host",
                      bad ? "cannot be reached any more" : "does not answer");
        atomic_store(&p->alive, false);
        peer_sends_forget(r);
        peer_receives_add();
        fail_requests(r);
        peer_job.ops.lost(r);
    }
}

/* ---- the progress thread ---- */

/* How long nobody needs to look. MPI has something that is not finished: it may take one more call,
 * or the network to come back. */
static int sleep_ms(void)
{
    int quarter = (int)(peer_job.timeout_ns / 4000000);
    pthread_mutex_lock(&peer_job.lock);
    int most = peer_job.requests.used ? SLEEP_MS : IDLE_MS;
    pthread_mutex_unlock(&peer_job.lock);
    most = quarter < most ? quarter : most;
    if (!atomic_load(&peer_job.nsending) && !peer_message_waits())
        return most;
    int soon = 1 << peer_job.patience;
    peer_job.patience += peer_job.patience < PATIENCE_MAX;
    return soon < most ? soon : most;
}

/* Not woken by messages, which others look for. */
static void thread_rest(void)
{
    struct pollfd fd = {.fd = peer_job.wake_fd, .events = POLLIN};
    const struct timespec rest = {0, DEAF_NS};
    uint64_t value;
    atomic_store(&peer_job.deaf, true);
    atomic_store(&peer_job.asleep, true);
    if (others_look() && ppoll(&fd, 1, &rest, NULL) > 0)
        (void)!read(peer_job.wake_fd, &value, sizeof(value));
    atomic_store(&peer_job.asleep, false);
    atomic_store(&peer_job.deaf, false);
}

/* Nothing has come for a while: sleeps until something does. UCX takes in what has arrived at the
 * sockets only when asked, and needs to be asked several times before it may be waited for. */
static bool thread_sleep(void)
{
    struct pollfd fds[EVENT_FDS + 1] = {{.fd = peer_job.wake_fd, .events = POLLIN}};
    uint64_t value;
    for (unsigned i = 0; i < peer_job.nevents; i++)
        fds[1 + i] = (struct pollfd){.fd = peer_job.event_fds[i], .events = POLLIN};
    atomic_store(&peer_job.asleep, true);
    bool any = false;
    for (int i = 0; i < 4 && !any; i++)
        any = peer_poll();
    int n = any ? 0 : poll(fds, 1 + peer_job.nevents, sleep_ms());
    atomic_store(&peer_job.asleep, false);
    if (n > 0 && fds[0].revents)
        (void)!read(peer_job.wake_fd, &value, sizeof(value));
    return any;
}

void *peer_progress_main(void *arg)
{
    struct peer_spin spin = {0};
    struct keep_off off;
    uint64_t last_ns = 0, end_ns = 0;
    bool spins = false;
    pthread_setname_np(pthread_self(), "edm-ranks");
    /* without the right to: on a busy machine it answers late, and others may take it for dead */
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE);
    keep_off_init(&off);
    peer_keeps_off = &off;
    for (;;) {
        bool any = peer_poll();
        check_limits();
        if (!any && others_look()) {
            thread_rest();
        } else if (any) {
            uint64_t now = peer_clock_ns();
            if (now - last_ns < BUSY_NS)
                peer_spin_learn(&spin, true);
            last_ns = now;
            peer_job.patience = 0;
            end_ns = now + peer_spin_ns(&spin);
            spins = true;
        } else if (peer_clock_ns() > end_ns) {
            if (spins)
                peer_spin_learn(&spin, false);
            spins = thread_sleep();
            if (spins)
                peer_job.patience = 0;
            end_ns = peer_clock_ns() + (spins ? peer_spin_ns(&spin) : 0);
        }
    }
    return NULL;
}
