#include "peer_int.h"

#include "../config/log.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SPARE_MAX 256   /* buffers kept for reuse */
#define UNSENT_MAX 1024 /* answers that a rank has not taken: then it is bad */
#define TAG 1

struct peer_job peer_job = {.ranks = 1,
                            .wake_fd = -1,
                            .lock = PTHREAD_MUTEX_INITIALIZER,
                            .receive_lock = PTHREAD_MUTEX_INITIALIZER,
                            .send_lock = PTHREAD_MUTEX_INITIALIZER,
                            .spare_lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- buffers ---- */

struct peer_buf *peer_buf_get(void)
{
    pthread_mutex_lock(&peer_job.spare_lock);
    struct buf *b = peer_job.spare;
    if (b) {
        peer_job.spare = b->next;
        peer_job.nspare--;
    }
    pthread_mutex_unlock(&peer_job.spare_lock);
    if (!b && !(b = aligned_alloc(64, sizeof(*b))))
        return NULL;
    b->pub = (struct peer_buf){.head = (struct rank_head *)(void *)b->data};
    *b->pub.head = (struct rank_head){0};
    return &b->pub;
}

void peer_buf_put(struct peer_buf *p)
{
    struct buf *b = (struct buf *)p;
    pthread_mutex_lock(&peer_job.spare_lock);
    bool keep = peer_job.nspare < SPARE_MAX;
    if (keep) {
        b->next = peer_job.spare;
        peer_job.spare = b;
        peer_job.nspare++;
    }
    pthread_mutex_unlock(&peer_job.spare_lock);
    if (!keep)
        free(b);
}

/* ---- sending ---- */

/* Receive i has got the beginning of a message, at least. */
static bool receive_begun(unsigned i)
{
    return peer_job.receives[i] &&
           __atomic_load_n(&peer_job.receives[i]->pub.head->magic, __ATOMIC_RELAXED);
}

bool peer_message_waits(void)
{
    bool waits = false;
    if (pthread_mutex_trylock(&peer_job.receive_lock))
        return true; /* somebody looks, perhaps too early */
    for (unsigned i = 0; i < peer_job.nreceives && !waits; i++)
        waits = receive_begun(i);
    pthread_mutex_unlock(&peer_job.receive_lock);
    return waits;
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
        atomic_store(&peer_job.peers[rank].bad, true);
        peer_buf_put(&b->pub);
        return;
    }
    MPI_Test(&b->request, &sent, MPI_STATUS_IGNORE);
    peer_tell_thread();
    if (sent) {
        peer_buf_put(&b->pub);
        return;
    }
    b->pub.rank = rank;
    pthread_mutex_lock(&peer_job.send_lock);
    b->next = peer_job.sending;
    peer_job.sending = b;
    atomic_fetch_add(&peer_job.nsending, 1);
    if (++peer_job.peers[rank].unsent > UNSENT_MAX)
        atomic_store(&peer_job.peers[rank].bad, true);
    pthread_mutex_unlock(&peer_job.send_lock);
    peer_thread_wake();
}

void peer_sends_forget(int rank)
{
    pthread_mutex_lock(&peer_job.send_lock);
    for (struct buf **p = &peer_job.sending; *p;) {
        if ((*p)->pub.rank == rank) {
            *p = (*p)->next;
            peer_job.peers[rank].unsent--;
            atomic_fetch_sub(&peer_job.nsending, 1);
        } else {
            p = &(*p)->next;
        }
    }
    pthread_mutex_unlock(&peer_job.send_lock);
}

/* Takes back the messages that have gone. */
static bool sends_reap(void)
{
    struct buf *done = NULL;
    if (!atomic_load(&peer_job.nsending) || pthread_mutex_trylock(&peer_job.send_lock))
        return false;
    for (struct buf **p = &peer_job.sending; *p;) {
        struct buf *b = *p;
        int sent = 0;
        if (MPI_Test(&b->request, &sent, MPI_STATUS_IGNORE) != MPI_SUCCESS || sent) {
            *p = b->next;
            b->next = done;
            done = b;
            peer_job.peers[b->pub.rank].unsent--;
            atomic_fetch_sub(&peer_job.nsending, 1);
        } else {
            p = &b->next;
        }
    }
    pthread_mutex_unlock(&peer_job.send_lock);
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
    struct peer *p = &peer_job.peers[rank];
    struct rank_head *h = b->head;
    uint64_t now = peer_clock_ns();
    pthread_mutex_lock(&peer_job.lock);
    struct request_entry *e = atomic_load(&p->alive) ? requests_add(&peer_job.requests) : NULL;
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
    pthread_mutex_unlock(&peer_job.lock);
    if (!e) {
        peer_buf_put(b);
        return atomic_load(&p->alive) ? -EBUSY : -EHOSTDOWN;
    }
    h->answer = 0;
    h->code = 0;
    h->machine = peer_job.machine;
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

void peer_misbehaves(int rank, const char *what)
{
    atomic_store(&peer_job.peers[rank].bad, true);
    if (!atomic_exchange(&peer_job.peers[rank].nonsense, true))
        edm_error("rank %d sends nonsense (%s): it is not spoken to any more", rank, what);
}

static void answer_arrived(struct peer_buf *b)
{
    struct request_entry e;
    struct peer *p = &peer_job.peers[b->rank];
    uint64_t now = peer_clock_ns();
    pthread_mutex_lock(&peer_job.lock);
    bool known = requests_take(&peer_job.requests, b->rank, b->head, &e);
    if (known) {
        p->asked--;
        p->silent_since_ns = now;
        if (e.kind == RANK_STAT || e.kind == RANK_HELLO || (e.kind == RANK_FETCH && e.count == 1))
            p->rtt_ns = now - e.sent_ns;
    }
    pthread_mutex_unlock(&peer_job.lock);
    if (known)
        e.done(e.arg, b->head->code, b->head);
    peer_buf_put(b);
}

bool peer_greeted_by(int rank, const struct rank_head *h)
{
    struct peer *p = &peer_job.peers[rank];
    if (h->version != RANK_VERSION) {
        edm_error(
            "rank %d speaks version %u of the protocol, this rank %u: install the same EDM on "
            "all hosts",
            rank, h->version, RANK_VERSION);
        atomic_store(&p->bad, true);
        return false;
    }
    const struct rank_hello *said = (const void *)(h + 1);
    pthread_mutex_lock(&peer_job.lock);
    bool first = !atomic_load(&p->greeted);
    bool same = said->identity == p->hello.identity && strcmp(said->host, p->hello.host) == 0;
    if (first) /* others look at it from then on: it does not change */
        memcpy(&p->hello, said, sizeof(p->hello));
    atomic_store(&p->greeted, true);
    pthread_mutex_unlock(&peer_job.lock);
    if (!first && !same)
        peer_misbehaves(rank, "two names");
    return first || same;
}

static void request_arrived(struct peer_buf *b)
{
    int rank = b->rank;
    struct peer *p = &peer_job.peers[rank];
    switch (b->head->kind) {
    case RANK_HELLO:
        if (peer_greeted_by(rank, b->head)) {
            memcpy(b->head + 1, &peer_job.self, sizeof(peer_job.self));
            peer_answer(b, 0, sizeof(peer_job.self));
        } else {
            peer_answer(b, -EPROTONOSUPPORT, 0);
        }
        break;
    case RANK_BYE:
        pthread_mutex_lock(&peer_job.lock);
        p->left = true;
        pthread_mutex_unlock(&peer_job.lock);
        peer_answer(b, 0, 0);
        peer_job.ops.bye(rank);
        break;
    default:
        if (atomic_load(&p->greeted)) {
            if (peer_keeps_off && b->head->kind == RANK_FETCH)
                keep_off_asked(peer_keeps_off, b->head->machine, b->head->cpu, peer_clock_ns());
            peer_job.ops.serve(b);
        } else {
            peer_misbehaves(rank, "no greeting");
            peer_buf_put(b);
        }
    }
}

static void message_arrived(struct peer_buf *b)
{
    if (atomic_load(&peer_job.peers[b->rank].bad)) {
        peer_buf_put(b);
        return;
    }
    const char *wrong = rank_check(b->head, b->len);
    if (wrong) {
        peer_misbehaves(b->rank, wrong);
        peer_buf_put(b);
    } else if (b->head->answer) {
        answer_arrived(b);
    } else {
        request_arrived(b);
    }
}

bool peer_receive_post(unsigned i)
{
    struct buf *b = (struct buf *)peer_buf_get();
    peer_job.receives[i] = NULL;
    if (!b)
        return false;
    if (MPI_Irecv(b->data, (int)sizeof(b->data), MPI_BYTE, MPI_ANY_SOURCE, TAG, MPI_COMM_WORLD,
                  &peer_job.pending[i]) != MPI_SUCCESS) {
        peer_buf_put(&b->pub);
        return false;
    }
    peer_job.receives[i] = b;
    return true;
}

void peer_receives_add(void)
{
    pthread_mutex_lock(&peer_job.receive_lock);
    for (int i = 0; i < RECEIVES && peer_job.nreceives < RECEIVES_MAX; i++)
        if (peer_receive_post(peer_job.nreceives))
            peer_job.nreceives++;
    pthread_mutex_unlock(&peer_job.receive_lock);
}

/* Lock held. Is it here as a whole? When it is not, MPI looks at the network. */
static bool receive_is_over(unsigned i, MPI_Status *status, int *err)
{
    int there = 0;
    if (!peer_job.receives[i] && !peer_receive_post(i))
        return false;
    *err = MPI_Test(&peer_job.pending[i], &there, status);
    return there;
}

/* Lock held. A receive that is over; nreceives: none. */
static unsigned receive_find(MPI_Status *status, int *err)
{
    unsigned any = peer_job.turn++ % peer_job.nreceives;
    for (int pass = 0; pass < 2; pass++) {
        for (unsigned k = 0; k < peer_job.nreceives; k++) {
            unsigned i = (peer_job.last + 1 + k) % peer_job.nreceives;
            if (receive_begun(i) && receive_is_over(i, status, err))
                return i;
        }
        /* MPI_Testany would look at the network once for every eighth of them, and not again at
         * those before; whoever sends nothing at all is met in his turn */
        if (pass == 0 && receive_is_over(any, status, err))
            return any;
    }
    return peer_job.nreceives;
}

/* A message that is here as a whole, or NULL. */
static struct peer_buf *receive_next(void)
{
    MPI_Status status = {.MPI_SOURCE = -1};
    int len = 0, err = MPI_SUCCESS;
    if (pthread_mutex_trylock(&peer_job.receive_lock))
        return NULL;
    unsigned i = receive_find(&status, &err);
    if (i == peer_job.nreceives) {
        pthread_mutex_unlock(&peer_job.receive_lock);
        return NULL;
    }
    struct peer_buf *b = &peer_job.receives[i]->pub;
    peer_job.last = i;
    b->rank = status.MPI_SOURCE;
    MPI_Get_count(&status, MPI_BYTE, &len);
    if (!peer_receive_post(i))
        edm_error("out of memory for messages of other ranks");
    pthread_mutex_unlock(&peer_job.receive_lock);
    b->len = err == MPI_SUCCESS && len > 0 ? (uint32_t)len : 0; /* too long: nonsense */
    if (b->rank >= 0 && b->rank < peer_job.ranks)
        return b;
    peer_buf_put(b); /* MPI failed, and cannot say for whom */
    return NULL;
}

bool peer_poll(void)
{
    if (peer_job.ranks == 1)
        return false;
    bool any = sends_reap();
    struct peer_buf *b = receive_next();
    if (b)
        message_arrived(b);
    return any || b;
}
