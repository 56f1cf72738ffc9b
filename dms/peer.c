#include "peer.h"
#include "../config/log.h"
#include "keep_off.h"
#include <dirent.h>
#include <errno.h>
#include <mpi.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define RECEIVES 32      /* posted for each other rank: one that stops in the midst of a message, */
#define RECEIVES_MAX 512 /* or of several, keeps those */
#define SPARE_MAX 256    /* buffers kept for reuse */
#define UNSENT_MAX 1024  /* answers that a rank has not taken: then it is bad */
#define SPIN_MIN_NS 4000ull
#define SPIN_NS 60000ull     /* without any message: then the progress thread sleeps */
#define SPIN_TRY 32          /* one in so many short ones is as long as the longest */
#define BUSY_NS 250000ull    /* between two messages: to spin for the next one may pay */
#define DEAF_NS 200000l      /* not woken by what another thread is there for */
#define SLEEP_MS 100         /* at most, while an answer is waited for */
#define IDLE_MS 500          /* at most, else */
#define CHECK_NS 10000000ull /* between two looks at the time limits */
#define START_SECONDS 20.0   /* for the others to come up */
#define REQUEST_LIMITS 8     /* a rank that talks, but not about this: so many time limits */
#define PATIENCE_MAX 9       /* 2^n ms */
#define EVENT_FDS 16
#define TAG 1

extern char **environ;

struct buf {
    struct peer_buf pub; /* first: the two are cast to each other */
    MPI_Request request;
    struct buf *next;
    _Alignas(64) unsigned char data[RANK_MESSAGE_MAX];
};

struct peer {
    atomic_bool alive, greeted;
    atomic_bool bad;          /* it broke the protocol, or cannot be reached: the progress thread
                                 ends it, and what still comes from it is not looked at */
    atomic_bool nonsense;     /* it broke the protocol */
    atomic_bool left;         /* it said BYE */
    uint32_t asked;           /* requests not answered */
    uint32_t unsent;          /* messages that MPI still has */
    uint64_t silent_since_ns; /* with requests not answered */
    uint64_t rtt_ns;
    struct rank_hello hello;
};

static struct {
    int rank, ranks;
    uint32_t machine;
    struct peer *peers;
    struct peer_ops ops;
    atomic_ullong timeout_ns;
    struct rank_hello self;
    pthread_t thread;
    int patience;          /* of the progress thread: it has looked in vain so many times */
    atomic_bool asleep;    /* the progress thread */
    atomic_uint spinners;  /* other threads that look for messages at this moment */
    atomic_ullong spun_ns; /* when the last of them found what it looked for; 0: it did not */
    atomic_bool deaf;      /* the progress thread sleeps, and leaves messages to them */
    int wake_fd, event_fds[EVENT_FDS];
    unsigned nevents;
    /* protects requests, and asked, silent_since_ns, left of the peers */
    pthread_mutex_t lock;
    struct requests requests;
    uint64_t checked_ns;
    /* protects what MPI has of ours: the posted receives; and the messages on their way */
    pthread_mutex_t receive_lock, send_lock;
    unsigned nreceives;
    struct buf *receives[RECEIVES_MAX];
    unsigned turn; /* the receive to be asked about next, whether it has begun or not */
    MPI_Request pending[RECEIVES_MAX];
    struct buf *sending;
    atomic_uint nsending;
    pthread_mutex_t spare_lock;
    struct buf *spare;
    unsigned nspare;
} job = {.ranks = 1,
         .wake_fd = -1,
         .lock = PTHREAD_MUTEX_INITIALIZER,
         .receive_lock = PTHREAD_MUTEX_INITIALIZER,
         .send_lock = PTHREAD_MUTEX_INITIALIZER,
         .spare_lock = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local struct keep_off *keeps_off; /* the progress thread's */

static uint64_t clock_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* ---- environment ---- */

/* A plain MPI_Init inside somebody's MPI job would join that job as a rank. */
static void forget_jobs(void)
{
    static const char *const prefixes[] = {"PMI_",  "PMIX_", "MPI",   "HYDRA_",
                                           "HYDI_", "OMPI_", "SLURM_"};
    for (char **e = environ; e && *e;) {
        const char *eq = strchr(*e, '=');
        char name[256];
        int hit = 0;
        for (size_t i = 0; i < sizeof(prefixes) / sizeof(*prefixes); i++)
            hit |= strncmp(*e, prefixes[i], strlen(prefixes[i])) == 0;
        if (!hit || !eq || (size_t)(eq - *e) >= sizeof(name)) {
            e++;
            continue;
        }
        memcpy(name, *e, (size_t)(eq - *e));
        name[eq - *e] = 0;
        unsetenv(name); /* moves the rest up: look at the same place again */
    }
}

void peer_environment(int alone, char **argv)
{
    static const char *const wanted[][2] = {{"UCX_HANDLE_ERRORS", "none"},
                                            {"UCX_MEM_EVENTS", "n"},
                                            {"UCX_TCP_KEEPIDLE", "inf"},
                                            {"UCX_TLS", "tcp,self"},
                                            {"UCX_WARN_UNUSED_ENV_VARS", "n"}};
    int again = getenv("LD_PRELOAD") != NULL;
    for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++) {
        const char *has = getenv(wanted[i][0]);
        if (has && strcmp(has, wanted[i][1]) == 0)
            continue;
        setenv(wanted[i][0], wanted[i][1], 1);
        again = 1;
    }
    if (alone)
        forget_jobs();
    unsetenv("LD_PRELOAD");
    if (again)
        execv("/proc/self/exe", argv); /* when that fails, go on: it works, with more noise */
}

/* ---- buffers ---- */

struct peer_buf *peer_buf_get(void)
{
    pthread_mutex_lock(&job.spare_lock);
    struct buf *b = job.spare;
    if (b) {
        job.spare = b->next;
        job.nspare--;
    }
    pthread_mutex_unlock(&job.spare_lock);
    if (!b && !(b = aligned_alloc(64, sizeof(*b))))
        return NULL;
    b->pub = (struct peer_buf){.head = (struct rank_head *)(void *)b->data};
    *b->pub.head = (struct rank_head){0};
    return &b->pub;
}

void peer_buf_put(struct peer_buf *p)
{
    struct buf *b = (struct buf *)p;
    pthread_mutex_lock(&job.spare_lock);
    bool keep = job.nspare < SPARE_MAX;
    if (keep) {
        b->next = job.spare;
        job.spare = b;
        job.nspare++;
    }
    pthread_mutex_unlock(&job.spare_lock);
    if (!keep)
        free(b);
}

/* ---- sending ---- */

static void thread_wake(void)
{
    uint64_t one = 1;
    if (atomic_load(&job.asleep))
        (void)!write(job.wake_fd, &one, sizeof(one));
}

/* Receive i has got the beginning of a message, at least. */
static bool receive_begun(unsigned i)
{
    return job.receives[i] && __atomic_load_n(&job.receives[i]->pub.head->magic, __ATOMIC_RELAXED);
}

/* A message may have come in, or begun to, that nobody has taken. */
static bool message_waits(void)
{
    bool waits = false;
    if (pthread_mutex_trylock(&job.receive_lock))
        return true; /* somebody looks, perhaps too early */
    for (unsigned i = 0; i < job.nreceives && !waits; i++)
        waits = receive_begun(i);
    pthread_mutex_unlock(&job.receive_lock);
    return waits;
}

/* A thread's call of MPI took in what came over the network, and the progress thread sleeps until
 * more comes. */
static void tell_thread(void)
{
    if (atomic_load(&job.asleep) && message_waits())
        thread_wake();
}

/* The message is MPI's until it says so; a lost rank may keep it for good. */
static void send_message(int rank, struct buf *b)
{
    int sent = 0;
    struct rank_head *h = b->pub.head;
    h->magic = RANK_MAGIC;
    h->version = RANK_VERSION;
    if (MPI_Isend(b->data, (int)b->pub.len, MPI_BYTE, rank, TAG, MPI_COMM_WORLD, &b->request) !=
        MPI_SUCCESS) {
        atomic_store(&job.peers[rank].bad, true);
        peer_buf_put(&b->pub);
        return;
    }
    MPI_Test(&b->request, &sent, MPI_STATUS_IGNORE);
    tell_thread();
    if (sent) {
        peer_buf_put(&b->pub);
        return;
    }
    b->pub.rank = rank;
    pthread_mutex_lock(&job.send_lock);
    bool alive = atomic_load(&job.peers[rank].alive);
    if (alive) { /* else it is forgotten, see sends_forget */
        b->next = job.sending;
        job.sending = b;
        atomic_fetch_add(&job.nsending, 1);
        if (++job.peers[rank].unsent > UNSENT_MAX)
            atomic_store(&job.peers[rank].bad, true);
    }
    pthread_mutex_unlock(&job.send_lock);
    if (alive)
        thread_wake();
}

/* The rank is lost: MPI may never be done with what was sent to it, and keeps that memory. */
static void sends_forget(int rank)
{
    pthread_mutex_lock(&job.send_lock);
    for (struct buf **p = &job.sending; *p;) {
        if ((*p)->pub.rank == rank) {
            *p = (*p)->next;
            atomic_fetch_sub(&job.nsending, 1);
        } else {
            p = &(*p)->next;
        }
    }
    pthread_mutex_unlock(&job.send_lock);
}

/* Takes back the messages that have gone. */
static bool sends_reap(void)
{
    struct buf *done = NULL;
    if (!atomic_load(&job.nsending) || pthread_mutex_trylock(&job.send_lock))
        return false;
    for (struct buf **p = &job.sending; *p;) {
        struct buf *b = *p;
        int sent = 0;
        if (MPI_Test(&b->request, &sent, MPI_STATUS_IGNORE) != MPI_SUCCESS || sent) {
            *p = b->next;
            b->next = done;
            done = b;
            job.peers[b->pub.rank].unsent--;
            atomic_fetch_sub(&job.nsending, 1);
        } else {
            p = &b->next;
        }
    }
    pthread_mutex_unlock(&job.send_lock);
    bool any = done != NULL;
    while (done) {
        struct buf *b = done;
        done = b->next;
        peer_buf_put(&b->pub);
    }
    return any;
}

int peer_request(int rank, struct peer_buf *b, size_t body, request_done *done, void *arg)
{
    struct peer *p = &job.peers[rank];
    struct rank_head *h = b->head;
    uint64_t now = clock_ns();
    pthread_mutex_lock(&job.lock);
    struct request_entry *e = atomic_load(&p->alive) ? requests_add(&job.requests) : NULL;
    if (e) {
        e->sent_ns = now;
        e->done = done;
        e->arg = arg;
        e->rank = rank;
        e->kind = h->kind;
        e->count = h->count;
        h->id = e->id;
        if (p->asked++ == 0)
            p->silent_since_ns = now;
    }
    pthread_mutex_unlock(&job.lock);
    if (!e) {
        peer_buf_put(b);
        return atomic_load(&p->alive) ? -EBUSY : -EHOSTDOWN;
    }
    h->answer = 0;
    h->code = 0;
    h->machine = job.machine;
    h->cpu = keep_off_cpu();
    b->len = (uint32_t)(sizeof(*h) + body);
    send_message(rank, (struct buf *)b);
    return 0;
}

void peer_answer(struct peer_buf *b, int code, size_t body)
{
    b->head->answer = 1;
    b->head->code = code;
    b->len = (uint32_t)(sizeof(*b->head) + (code ? 0 : body));
    send_message(b->rank, (struct buf *)b);
}

/* ---- what comes in ---- */

static void misbehaves(int rank, const char *what)
{
    atomic_store(&job.peers[rank].bad, true);
    if (!atomic_exchange(&job.peers[rank].nonsense, true))
        edm_error("rank %d sends nonsense (%s): it is not spoken to any more", rank, what);
}

static void answer_arrived(struct peer_buf *b)
{
    struct request_entry e;
    struct peer *p = &job.peers[b->rank];
    uint64_t now = clock_ns();
    pthread_mutex_lock(&job.lock);
    bool known = requests_take(&job.requests, b->rank, b->head, &e);
    if (known) {
        p->asked--;
        p->silent_since_ns = now;
        if (e.kind == RANK_STAT || e.kind == RANK_HELLO || (e.kind == RANK_FETCH && e.count == 1))
            p->rtt_ns = now - e.sent_ns;
    }
    pthread_mutex_unlock(&job.lock);
    if (known)
        e.done(e.arg, b->head->code, b->head);
    peer_buf_put(b);
}

/* What both the greeting and its answer say. */
static bool greeted_by(int rank, const struct rank_head *h)
{
    struct peer *p = &job.peers[rank];
    if (h->version != RANK_VERSION) {
        edm_error(
            "rank %d speaks version %u of the protocol, this rank %u: install the same EDM on "
            "all hosts",
            rank, h->version, RANK_VERSION);
        atomic_store(&p->bad, true);
        return false;
    }
    const struct rank_hello *said = (const void *)(h + 1);
    pthread_mutex_lock(&job.lock);
    bool first = !atomic_load(&p->greeted);
    bool same = said->identity == p->hello.identity && strcmp(said->host, p->hello.host) == 0;
    if (first) /* others look at it from then on: it does not change */
        memcpy(&p->hello, said, sizeof(p->hello));
    atomic_store(&p->greeted, true);
    pthread_mutex_unlock(&job.lock);
    if (!first && !same)
        misbehaves(rank, "two names");
    return first || same;
}

static void request_arrived(struct peer_buf *b)
{
    int rank = b->rank;
    struct peer *p = &job.peers[rank];
    switch (b->head->kind) {
    case RANK_HELLO:
        if (greeted_by(rank, b->head)) {
            memcpy(b->head + 1, &job.self, sizeof(job.self));
            peer_answer(b, 0, sizeof(job.self));
        } else {
            peer_answer(b, -EPROTONOSUPPORT, 0);
        }
        break;
    case RANK_BYE:
        pthread_mutex_lock(&job.lock);
        p->left = true;
        pthread_mutex_unlock(&job.lock);
        peer_answer(b, 0, 0);
        job.ops.bye(rank);
        break;
    default:
        if (atomic_load(&p->greeted)) {
            if (keeps_off && b->head->kind == RANK_FETCH)
                keep_off_asked(keeps_off, b->head->machine, b->head->cpu, clock_ns());
            job.ops.serve(b);
        } else {
            misbehaves(rank, "no greeting");
            peer_buf_put(b);
        }
    }
}

static void message_arrived(struct peer_buf *b)
{
    if (atomic_load(&job.peers[b->rank].bad)) {
        peer_buf_put(b);
        return;
    }
    const char *wrong = rank_check(b->head, b->len);
    if (wrong) {
        misbehaves(b->rank, wrong);
        peer_buf_put(b);
    } else if (b->head->answer) {
        answer_arrived(b);
    } else {
        request_arrived(b);
    }
}

static bool receive_post(unsigned i)
{
    struct buf *b = (struct buf *)peer_buf_get();
    job.receives[i] = NULL;
    if (!b)
        return false;
    if (MPI_Irecv(b->data, (int)sizeof(b->data), MPI_BYTE, MPI_ANY_SOURCE, TAG, MPI_COMM_WORLD,
                  &job.pending[i]) != MPI_SUCCESS) {
        peer_buf_put(&b->pub);
        return false;
    }
    job.receives[i] = b;
    return true;
}

/* What a lost rank has begun to send stays begun. */
static void receives_add(void)
{
    pthread_mutex_lock(&job.receive_lock);
    for (int i = 0; i < RECEIVES && job.nreceives < RECEIVES_MAX; i++)
        if (receive_post(job.nreceives))
            job.nreceives++;
    pthread_mutex_unlock(&job.receive_lock);
}

/* Lock held. Is it here as a whole? When it is not, MPI looks at the network. */
static bool receive_is_over(unsigned i, MPI_Status *status, int *err)
{
    int there = 0;
    if (!job.receives[i] && !receive_post(i))
        return false;
    *err = MPI_Test(&job.pending[i], &there, status);
    return there;
}

/* Lock held. A receive that is over; nreceives: none. */
static unsigned receive_find(MPI_Status *status, int *err)
{
    unsigned any = job.turn++ % job.nreceives;
    for (int pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; i < job.nreceives; i++)
            if (receive_begun(i) && receive_is_over(i, status, err))
                return i;
        /* MPI_Testany would look at the network once for every eighth of them, and not again at
         * those before; whoever sends nothing at all is met in his turn */
        if (pass == 0 && receive_is_over(any, status, err))
            return any;
    }
    return job.nreceives;
}

/* A message that is here as a whole, or NULL. */
static struct peer_buf *receive_next(void)
{
    MPI_Status status = {.MPI_SOURCE = -1};
    int len = 0, err = MPI_SUCCESS;
    if (pthread_mutex_trylock(&job.receive_lock))
        return NULL;
    unsigned i = receive_find(&status, &err);
    if (i == job.nreceives) {
        pthread_mutex_unlock(&job.receive_lock);
        return NULL;
    }
    struct peer_buf *b = &job.receives[i]->pub;
    b->rank = status.MPI_SOURCE;
    MPI_Get_count(&status, MPI_BYTE, &len);
    if (!receive_post(i))
        edm_error("out of memory for messages of other ranks");
    pthread_mutex_unlock(&job.receive_lock);
    b->len = err == MPI_SUCCESS && len > 0 ? (uint32_t)len : 0; /* too long: nonsense */
    if (b->rank >= 0 && b->rank < job.ranks)
        return b;
    peer_buf_put(b); /* MPI failed, and cannot say for whom */
    return NULL;
}

bool peer_poll(void)
{
    if (job.ranks == 1)
        return false;
    bool any = sends_reap();
    struct peer_buf *b = receive_next();
    if (b)
        message_arrived(b);
    return any || b;
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
    atomic_fetch_add(&job.spinners, 1);
}

void peer_spin_end(bool came)
{
    atomic_store(&job.spun_ns, came ? clock_ns() : 0);
    atomic_fetch_sub(&job.spinners, 1);
    if (!came && atomic_load(&job.deaf))
        thread_wake();
    else
        tell_thread();
}

void peer_poll_end(void)
{
    tell_thread();
}

/* Another thread looks for messages, or has just done so with success and will again. */
static bool others_look(void)
{
    return atomic_load(&job.spinners) || clock_ns() - atomic_load(&job.spun_ns) < DEAF_NS;
}

/* ---- time limits ---- */

static void fail_requests(int rank)
{
    struct request_entry e;
    for (;;) {
        pthread_mutex_lock(&job.lock);
        bool any = requests_take_any(&job.requests, rank, &e);
        if (any)
            job.peers[rank].asked--;
        pthread_mutex_unlock(&job.lock);
        if (!any)
            return;
        e.done(e.arg, -EHOSTDOWN, NULL);
    }
}

static bool time_is_over(struct peer *p, int rank, uint64_t now)
{
    pthread_mutex_lock(&job.lock);
    bool over = p->asked && now > p->silent_since_ns && now - p->silent_since_ns > job.timeout_ns;
    uint64_t longest = job.timeout_ns * REQUEST_LIMITS;
    if (!over && p->asked && now > longest)
        over = requests_are_older(&job.requests, rank, now - longest);
    pthread_mutex_unlock(&job.lock);
    return over;
}

/* A rank that was stopped itself must not blame the others. */
static void forgive(uint64_t now)
{
    pthread_mutex_lock(&job.lock);
    for (int r = 0; r < job.ranks; r++)
        job.peers[r].silent_since_ns = now;
    pthread_mutex_unlock(&job.lock);
}

static void check_limits(void)
{
    uint64_t now = clock_ns();
    if (now - job.checked_ns < CHECK_NS)
        return;
    if (now - job.checked_ns > job.timeout_ns / 2)
        forgive(now);
    for (unsigned i = 0; i < job.nreceives && peer_poll(); i++)
        ; /* what is here is not late */
    job.checked_ns = now;
    keep_off_tick(keeps_off, now);
    for (int r = 0; r < job.ranks; r++) {
        struct peer *p = &job.peers[r];
        if (r == job.rank || !atomic_load(&p->alive))
            continue;
        bool bad = atomic_load(&p->bad);
        if (!bad && !time_is_over(p, r, now))
            continue;
        if (!p->left && !atomic_load(&p->nonsense))
            edm_error("rank %d on %s %s: taken for dead", r,
                      p->hello.host[0] ? p->hello.host : "an unknown host",
                      bad ? "cannot be reached any more" : "does not answer");
        atomic_store(&p->alive, false);
        sends_forget(r);
        receives_add();
        fail_requests(r);
        job.ops.lost(r);
    }
}

/* ---- the progress thread ---- */

/* Epoll descriptors of this process, by their names in /proc/self/fd. */
static unsigned find_epolls(int *out, unsigned max)
{
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    if (!d)
        return 0;
    for (struct dirent *e; (e = readdir(d)) && n < max;) {
        char path[300], to[64];
        snprintf(path, sizeof(path), "/proc/self/fd/%s", e->d_name);
        ssize_t len = readlink(path, to, sizeof(to) - 1);
        to[len > 0 ? len : 0] = 0;
        if (strcmp(to, "anon_inode:[eventpoll]") == 0)
            out[n++] = atoi(e->d_name);
    }
    closedir(d);
    return n;
}

/* What UCX waits with: the epoll descriptors that came with MPI_Init. */
static void keep_new(const int *before, unsigned nbefore)
{
    int now[EVENT_FDS];
    unsigned n = find_epolls(now, EVENT_FDS);
    for (unsigned i = 0; i < n; i++) {
        unsigned j = 0;
        while (j < nbefore && before[j] != now[i])
            j++;
        if (j == nbefore)
            job.event_fds[job.nevents++] = now[i];
    }
}

/* How long nobody needs to look. MPI has something that is not finished: it may take one more call,
 * or the network to come back. */
static int sleep_ms(void)
{
    int quarter = (int)(job.timeout_ns / 4000000);
    pthread_mutex_lock(&job.lock);
    int most = job.requests.used ? SLEEP_MS : IDLE_MS;
    pthread_mutex_unlock(&job.lock);
    most = quarter < most ? quarter : most;
    if (!atomic_load(&job.nsending) && !message_waits())
        return most;
    int soon = 1 << job.patience;
    job.patience += job.patience < PATIENCE_MAX;
    return soon < most ? soon : most;
}

/* Not woken by messages, which others look for. */
static void thread_rest(void)
{
    struct pollfd fd = {.fd = job.wake_fd, .events = POLLIN};
    const struct timespec rest = {0, DEAF_NS};
    uint64_t value;
    atomic_store(&job.deaf, true);
    atomic_store(&job.asleep, true);
    if (others_look() && ppoll(&fd, 1, &rest, NULL) > 0)
        (void)!read(job.wake_fd, &value, sizeof(value));
    atomic_store(&job.asleep, false);
    atomic_store(&job.deaf, false);
}

/* Nothing has come for a while: sleeps until something does. UCX takes in what has arrived at the
 * sockets only when asked, and needs to be asked several times before it may be waited for. */
static bool thread_sleep(void)
{
    struct pollfd fds[EVENT_FDS + 1] = {{.fd = job.wake_fd, .events = POLLIN}};
    uint64_t value;
    for (unsigned i = 0; i < job.nevents; i++)
        fds[1 + i] = (struct pollfd){.fd = job.event_fds[i], .events = POLLIN};
    atomic_store(&job.asleep, true);
    bool any = false;
    for (int i = 0; i < 4 && !any; i++)
        any = peer_poll();
    int n = any ? 0 : poll(fds, 1 + job.nevents, sleep_ms());
    atomic_store(&job.asleep, false);
    if (n > 0 && fds[0].revents)
        (void)!read(job.wake_fd, &value, sizeof(value));
    return any;
}

static void *progress_main(void *arg)
{
    struct peer_spin spin = {0};
    struct keep_off off;
    uint64_t last_ns = 0, end_ns = 0;
    bool spins = false;
    pthread_setname_np(pthread_self(), "edm-ranks");
    keep_off_init(&off);
    keeps_off = &off;
    for (;;) {
        bool any = peer_poll();
        check_limits();
        if (!any && others_look()) {
            thread_rest();
        } else if (any) {
            uint64_t now = clock_ns();
            if (now - last_ns < BUSY_NS)
                peer_spin_learn(&spin, true);
            last_ns = now;
            job.patience = 0;
            end_ns = now + peer_spin_ns(&spin);
            spins = true;
        } else if (clock_ns() > end_ns) {
            if (spins)
                peer_spin_learn(&spin, false);
            spins = thread_sleep();
            end_ns = clock_ns() + (spins ? peer_spin_ns(&spin) : 0);
        }
    }
    return NULL;
}

/* ---- start ---- */

int peer_init(char *err, size_t errlen)
{
    int given, before[EVENT_FDS];
    unsigned nbefore = find_epolls(before, EVENT_FDS);
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &given) != MPI_SUCCESS ||
        given != MPI_THREAD_MULTIPLE) {
        snprintf(err, errlen, "MPI cannot be started with threads: install Debian's mpich");
        return -ENOTSUP;
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &job.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &job.ranks);
    forget_jobs(); /* nor does a child of this process belong to the job */
    keep_new(before, nbefore);
    if (job.ranks > PEER_RANKS_MAX) {
        snprintf(err, errlen, "%d ranks: at most %d", job.ranks, PEER_RANKS_MAX);
        return -E2BIG;
    }
    job.peers = calloc((size_t)job.ranks, sizeof(*job.peers));
    job.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!job.peers || job.wake_fd < 0) {
        snprintf(err, errlen, "out of memory or descriptors");
        return -ENOMEM;
    }
    for (int r = 0; r < job.ranks; r++)
        atomic_store(&job.peers[r].alive, true);
    return 0;
}

struct greeting {
    int rank;
    atomic_int *waiting;
};

static void greeting_answered(void *arg, int err, struct rank_head *answer)
{
    struct greeting *g = arg;
    if (!err)
        greeted_by(g->rank, answer);
    else if (err == -EPROTONOSUPPORT)
        misbehaves(g->rank, "it refuses this version");
    atomic_fetch_sub(g->waiting, 1);
}

/* Everybody is greeted before anybody is used. */
static int greet(void)
{
    static atomic_int waiting;
    struct greeting *all = calloc((size_t)job.ranks, sizeof(*all)); /* answers may be late: kept */
    if (!all)
        return -ENOMEM;
    for (int r = 0; r < job.ranks; r++) {
        struct peer_buf *b = r == job.rank ? NULL : peer_buf_get();
        if (!b)
            continue;
        all[r] = (struct greeting){r, &waiting};
        b->head->kind = RANK_HELLO;
        memcpy(b->head + 1, &job.self, sizeof(job.self));
        atomic_fetch_add(&waiting, 1);
        if (peer_request(r, b, sizeof(job.self), greeting_answered, &all[r]))
            atomic_fetch_sub(&waiting, 1);
    }
    while (atomic_load(&waiting) > 0)
        usleep(1000);
    free(all);
    return 0;
}

int peer_start(const struct peer_ops *ops, struct rank_hello *self, double timeout)
{
    job.ops = *ops;
    gethostname(self->host, sizeof(self->host) - 1);
    self->host[sizeof(self->host) - 1] = 0;
    for (char *c = self->host; *c; c++)
        *c = *c > ' ' && *c <= '~' && *c != '"' && *c != '\\' ? *c : '_';
    job.self = *self;
    job.machine = keep_off_machine();
    job.peers[job.rank].hello = *self;
    if (job.ranks == 1)
        return 0;
    unsigned most = RECEIVES * (unsigned)(job.ranks - 1);
    for (most = most < RECEIVES_MAX ? most : RECEIVES_MAX; job.nreceives < most; job.nreceives++)
        if (!receive_post(job.nreceives))
            return -ENOMEM;
    job.timeout_ns = (uint64_t)(START_SECONDS * 1e9);
    job.checked_ns = clock_ns();
    int err = pthread_create(&job.thread, NULL, progress_main, NULL);
    if (err)
        return -err;
    err = greet();
    job.timeout_ns = (uint64_t)(timeout * 1e9);
    return err;
}

int peer_rank(void)
{
    return job.rank;
}

int peer_ranks(void)
{
    return job.ranks;
}

bool peer_is_alive(int rank)
{
    return rank == job.rank || atomic_load(&job.peers[rank].alive);
}

void peer_get_info(int rank, struct peer_info *out)
{
    const struct peer *p = &job.peers[rank];
    int host = 0;
    while (strcmp(job.peers[host].hello.host, p->hello.host) != 0)
        host++;
    pthread_mutex_lock(&job.lock);
    *out = (struct peer_info){.alive = peer_is_alive(rank),
                              .host = host,
                              .host_name = p->hello.host,
                              .identity = p->hello.identity,
                              .rtt_ns = p->rtt_ns,
                              .capacity = p->hello.capacity,
                              .used = p->hello.used};
    pthread_mutex_unlock(&job.lock);
}

/* ---- end ---- */

static void bye_answered(void *arg, int err, struct rank_head *answer)
{
}

/* Ranks that may still want something of this one; *asked: requests to them that are open. */
static unsigned still_here(unsigned *asked)
{
    unsigned n = 0;
    *asked = 0;
    pthread_mutex_lock(&job.lock);
    for (int r = 0; r < job.ranks; r++) {
        if (r == job.rank || !atomic_load(&job.peers[r].alive))
            continue;
        n += !job.peers[r].left;
        *asked += job.peers[r].asked;
    }
    pthread_mutex_unlock(&job.lock);
    return n;
}

static void say_bye(void)
{
    for (int r = 0; r < job.ranks; r++) {
        struct peer_buf *b = r == job.rank ? NULL : peer_buf_get();
        if (!b)
            continue;
        b->head->kind = RANK_BYE;
        peer_request(r, b, 0, bye_answered, NULL);
    }
}

uint64_t peer_bye(uint64_t (*pages)(void), double seconds)
{
    const uint64_t limit = (uint64_t)(seconds * 1e9);
    uint64_t since = clock_ns(), left = pages(), now_left;
    unsigned asked;
    say_bye();
    while ((now_left = pages(), still_here(&asked) && now_left) || asked ||
           atomic_load(&job.nsending)) {
        if (now_left != left)
            since = clock_ns();
        left = now_left;
        if (clock_ns() - since > limit)
            return left;
        usleep(1000);
    }
    return 0;
}

void peer_fini(void)
{
    if (job.ranks > 1)
        _exit(0);
    MPI_Finalize();
}
