/*
 * Messages between ranks. This is rank 0 of three; the other two send whatever the input says, and
 * answer this rank's requests with lies. MPI is a pair of queues here.
 *
 * peer*.c are included: what they remember of a rank that misbehaved must be forgotten between
 * inputs, and the progress thread would act in the midst of one.
 */
#include "dms/peer.h"
#include <pthread.h>
#include <unistd.h>

static int no_thread(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg)
{
    return 0;
}

static int poll_instead(useconds_t us)
{
    peer_poll();
    return 0;
}

#define pthread_create no_thread
#define usleep poll_instead
#include "dms/peer.c"
#include "dms/peer_job.c"
#include "dms/peer_progress.c"
#undef pthread_create
#undef usleep
#include "dms/copies_int.h"
#include "dms/holder.h"
#include "dms/store.h"
#include "fuzz.h"

#define RANKS 3
#define PAGES 16
#define STEPS 64
#define ASKED_MAX 256
#define SENT (-1) /* a request that is no receive */

/* ---- MPI: messages to us, and our requests that wait for an answer ---- */

struct message {
    int rank;
    size_t len;
    _Alignas(8) uint8_t data[RANK_MESSAGE_MAX];
};

static struct {
    pthread_mutex_t lock;
    bool honest; /* requests are answered at once, as a good rank does */
    struct message in, asked[ASKED_MAX];
    bool has_in;
    unsigned nasked;
    void *posted[RECEIVES_MAX];
    uint32_t slots;
} mpi = {.lock = PTHREAD_MUTEX_INITIALIZER, .honest = true};

int MPI_Init_thread(int *argc, char ***argv, int required, int *provided)
{
    *provided = required;
    return MPI_SUCCESS;
}

int MPI_Comm_set_errhandler(MPI_Comm comm, MPI_Errhandler handler)
{
    return MPI_SUCCESS;
}

int MPI_Comm_rank(MPI_Comm comm, int *rank)
{
    *rank = 0;
    return MPI_SUCCESS;
}

int MPI_Comm_size(MPI_Comm comm, int *size)
{
    *size = RANKS;
    return MPI_SUCCESS;
}

int MPI_Finalize(void)
{
    return MPI_SUCCESS;
}

int MPI_Irecv(void *buf, int count, MPI_Datatype type, int source, int tag, MPI_Comm comm,
              MPI_Request *request)
{
    for (int i = 0; i < RECEIVES_MAX; i++) {
        if (mpi.posted[i])
            continue;
        mpi.posted[i] = buf;
        *request = i;
        return MPI_SUCCESS;
    }
    return MPI_ERR_OTHER;
}

int MPI_Isend(const void *buf, int count, MPI_Datatype type, int dest, int tag, MPI_Comm comm,
              MPI_Request *request)
{
    const struct rank_head *h = buf;
    *request = SENT;
    FUZZ_CHECK(count > 0 && !rank_check(buf, (size_t)count)); /* what we say is always right */
    pthread_mutex_lock(&mpi.lock);
    if (!h->answer && mpi.nasked < ASKED_MAX) {
        struct message *m = &mpi.asked[mpi.nasked++];
        m->rank = dest;
        m->len = (size_t)count;
        memcpy(m->data, buf, m->len);
    }
    pthread_mutex_unlock(&mpi.lock);
    return MPI_SUCCESS;
}

/* The answer that a good rank would give, in place; its length. */
static size_t answer_make(struct message *m)
{
    struct rank_head *h = (void *)m->data;
    struct rank_hello hello = {.identity = 100 + (uint64_t)m->rank, .capacity = 1000};
    struct rank_stat stat = {.capacity = 1000};
    size_t results = h->count * sizeof(struct rank_result), body = 0;
    struct rank_result *r = (void *)(h + 1);
    h->answer = 1;
    if (h->kind == RANK_HELLO) {
        snprintf(hello.host, sizeof(hello.host), "host%d", m->rank);
        memcpy(h + 1, &hello, body = sizeof(hello));
    } else if (h->kind == RANK_STAT || h->kind == RANK_STORE) {
        memcpy(h + 1, &stat, body = sizeof(stat));
    }
    if (h->kind == RANK_STORE)
        r = (void *)((char *)(h + 1) + body);
    if (h->kind == RANK_STORE || h->kind == RANK_FETCH || h->kind == RANK_CLAIM) {
        for (uint32_t i = 0; i < h->count; i++)
            r[i] = (struct rank_result){0, h->kind == RANK_STORE ? ++mpi.slots : r[i].slot};
        body += results;
    }
    if (h->kind == RANK_FETCH) /* every page of this target is one byte, over and over */
        for (uint32_t i = 0; i < h->count; i++, body += RANK_PAGE)
            memset((char *)(h + 1) + body, 'a', RANK_PAGE);
    return sizeof(*h) + body;
}

/* With the lock. Takes request k out of those that wait; its answer is the next message. */
static void answer_next(unsigned k)
{
    mpi.in = mpi.asked[k];
    mpi.asked[k] = mpi.asked[--mpi.nasked];
    mpi.in.len = answer_make(&mpi.in);
    mpi.has_in = true;
}

static pthread_t harness;

/* Of a send it is over at once; of a receive when the next message has come. */
int MPI_Test(MPI_Request *request, int *flag, MPI_Status *status)
{
    *flag = *request == SENT;
    if (*flag || !pthread_equal(pthread_self(), harness))
        return MPI_SUCCESS;
    pthread_mutex_lock(&mpi.lock);
    if (!mpi.has_in && mpi.honest && mpi.nasked)
        answer_next(0);
    if (mpi.has_in && mpi.posted[*request]) {
        memcpy(mpi.posted[*request], mpi.in.data, mpi.in.len);
        mpi.posted[*request] = NULL;
        mpi.has_in = false;
        *flag = 1;
        status->MPI_SOURCE = mpi.in.rank;
        status->count_lo = (int)mpi.in.len;
    }
    pthread_mutex_unlock(&mpi.lock);
    return MPI_SUCCESS;
}

int MPI_Get_count(const MPI_Status *status, MPI_Datatype type, int *count)
{
    *count = status->count_lo;
    return MPI_SUCCESS;
}

/* ---- this rank ---- */

static uint64_t kept_pages;
static uint32_t version;
static struct copies_page page[PAGES];
static unsigned fetches;

static void room(void *arg, bool full)
{
}

static void *copies_main(void *started)
{
    FUZZ_CHECK(!copies_start());
    atomic_store((atomic_bool *)started, true);
    return NULL;
}

/* It waits for answers, which somebody else takes in. */
static int start_copies(void)
{
    atomic_bool started = false;
    pthread_t t;
    if (pthread_create(&t, NULL, copies_main, &started))
        return -EAGAIN;
    while (!atomic_load(&started))
        peer_poll();
    return pthread_join(t, NULL);
}

static void start(void)
{
    static const struct peer_ops ops = {holder_serve, copies_rank_lost, copies_rank_leaves};
    struct store_options o = {
        .memory_bytes = 256 * RANK_PAGE, .compression = EDM_COMPRESSION_NONE, .on_room = room};
    struct rank_hello self = {.capacity = 256};
    char err[200];
    harness = pthread_self();
    edm_log_init("fuzz", EDM_LOG_DEBUG, "/dev/null");
    FUZZ_CHECK(!peer_init(err, sizeof(err)) && !copies_init(room, NULL));
    FUZZ_CHECK(!store_init(&o, err, sizeof(err)) && !homes_open(-1) && !copies_open(-1) &&
               !holder_open(-1, &kept_pages) && !holder_init());
    self.identity = homes_identity();
    FUZZ_CHECK(!peer_start(&ops, &self, 1000) && !start_copies());
}

/* The sender is another thread: it has a moment to ask what it has to. */
static void sender_time(unsigned before)
{
    const struct timespec ts = {0, 20000};
    for (int i = 0; i < 6; i++) {
        pthread_mutex_lock(&mpi.lock);
        bool more = mpi.nasked > before;
        pthread_mutex_unlock(&mpi.lock);
        if (more)
            return;
        nanosleep(&ts, NULL);
    }
}

static void page_put(struct input *in)
{
    struct copies_page *p = &page[input_u8(in) % PAGES];
    uint8_t wish = input_u8(in), contents[RANK_PAGE];
    struct copies_wish w = {(enum edm_placement)(wish % 3), 1 + wish / 3 % 3};
    unsigned before = mpi.nasked;
    if (p->handle)
        copies_unref(p->handle);
    memset(contents, 'a', sizeof(contents));
    *p = (struct copies_page){0, ++version};
    if (copies_put(contents, p->version, &w, wish & 128, &p->handle))
        p->handle = 0;
    else if (!copies_is_store(p->handle))
        sender_time(before);
}

static void page_came(void *arg, int err, unsigned n, const void *const *pages)
{
    for (unsigned i = 0; i < n; i++)
        for (unsigned k = 0; pages[i] && k < RANK_PAGE; k++)
            FUZZ_CHECK(((const char *)pages[i])[k] == 'a'); /* no lie passes for a page */
    fetches--;
}

static void page_fetch(struct input *in)
{
    struct copies_page some[COPIES_BATCH];
    unsigned n = 0, first = input_u8(in) % PAGES;
    int rank = page[first].handle ? copies_rank(page[first].handle) : -1;
    for (unsigned i = first; i < PAGES && n < COPIES_BATCH; i++)
        if (page[i].handle && !copies_is_store(page[i].handle))
            some[n++] = page[i];
    if (rank <= 0 || !n)
        return;
    fetches++;
    if (copies_fetch(rank, some, n, page_came, NULL))
        fetches--;
}

/* ---- what the others say ---- */

/* Changes a few bytes of the message at m, and perhaps its length. */
static void spoil(struct input *in, struct message *m)
{
    uint8_t how = input_u8(in);
    for (unsigned i = 0; i < how % 8u; i++) {
        uint16_t at = input_u16(in);
        m->data[at % (m->len ? m->len : 1)] = input_u8(in);
    }
    if (how & 128)
        m->len = input_u16(in) % (RANK_MESSAGE_MAX + 1);
}

static void say_answer(struct input *in)
{
    pthread_mutex_lock(&mpi.lock);
    if (mpi.nasked) {
        answer_next(input_u8(in) % mpi.nasked);
        spoil(in, &mpi.in);
    }
    pthread_mutex_unlock(&mpi.lock);
    while (peer_poll())
        ;
}

/* The body's length that fits kind and count, so that what is behind the checks is reached. */
static size_t request_body(const struct rank_head *h)
{
    size_t slots = h->count * sizeof(struct rank_slot);
    if (h->kind == RANK_HELLO)
        return sizeof(struct rank_hello);
    return h->kind == RANK_STORE ? slots + (size_t)h->count * RANK_PAGE : slots;
}

static void say_request(struct input *in)
{
    uint8_t given[64];
    struct message *m = &mpi.in;
    struct rank_head h = {RANK_MAGIC, RANK_VERSION, 0, 0, 1, 0, 0, 0, 0};
    m->rank = 1 + input_u8(in) % 2;
    h.kind = input_u8(in) % (RANK_KINDS + 1);
    h.count = input_u8(in);
    h.count = h.count & 128 ? (h.count & 127) * 16u : h.count;
    size_t n = input_bytes(in, given, input_u8(in) % sizeof(given));
    memcpy(m->data, &h, sizeof(h));
    for (size_t i = sizeof(h); i < sizeof(m->data) && n; i += n)
        memcpy(m->data + i, given, n < sizeof(m->data) - i ? n : sizeof(m->data) - i);
    size_t len = sizeof(h) + request_body(&h);
    m->len = len < sizeof(m->data) ? len : sizeof(m->data);
    spoil(in, m);
    mpi.has_in = true;
    while (peer_poll())
        ;
}

static void say_bytes(struct input *in)
{
    struct message *m = &mpi.in;
    m->rank = 1 + input_u8(in) % 2;
    m->len = input_bytes(in, m->data, input_u8(in));
    mpi.has_in = true;
    while (peer_poll())
        ;
}

/* What the progress thread does with a rank that broke the protocol. */
static void end_bad(void)
{
    for (int r = 1; r < RANKS; r++) {
        if (!peer_job.peers[r].bad || !peer_job.peers[r].alive)
            continue;
        atomic_store(&peer_job.peers[r].alive, false);
        fail_requests(r);
        peer_job.ops.lost(r);
    }
}

/* Pages for which no rank had room: the sender looks at them again. */
static void unstick(void)
{
    pthread_mutex_lock(&copies.lock);
    for (uint32_t i; (i = entry_pop(&copies.stuck));)
        entry_push(&copies.send, i, QUEUE_SEND);
    pthread_cond_signal(&copies.work);
    pthread_mutex_unlock(&copies.lock);
}

/* Nothing is left of the pages, here or in what is known of the others. */
static void check_empty(void)
{
    const struct timespec ts = {0, 50000};
    struct store_stats s;
    bool empty = false;
    for (int i = 0; i < 20000 && !empty; i++) { /* the sender may have some in its hands */
        pthread_mutex_lock(&copies.lock);
        empty = !copies.entries && !copies.flights && !copies.transit;
        pthread_mutex_unlock(&copies.lock);
        store_get_stats(&s);
        empty &= s.memory.pages == 0;
        if (!empty) {
            unstick();
            nanosleep(&ts, NULL);
        }
    }
    FUZZ_CHECK(empty && fetches == 0 && kept_pages == 0);
    for (int r = 1; r < RANKS; r++)
        FUZZ_CHECK(copies.ranks[r].pages == 0 && peer_job.peers[r].asked == 0);
}

/* The ranks as they were at first. */
static void ranks_restore(void)
{
    for (int r = 1; r < RANKS; r++) {
        struct peer *p = &peer_job.peers[r];
        FUZZ_CHECK(p->hello.identity == 100 + (uint64_t)r); /* as it said at first */
        p->left = false;
        p->bad = p->nonsense = false;
        p->alive = true;
    }
    pthread_mutex_lock(&copies.lock);
    for (int r = 1; r < RANKS; r++) {
        copies.ndrops -= copies.ranks[r].ndrops;
        copies.ranks[r].ndrops = 0;
        copies.ranks[r].leaving = false;
        copies.ranks[r].lost_ns = 0;
        spread_rank_used(r, 1000, 0);
    }
    spread_ranks_changed();
    pthread_mutex_unlock(&copies.lock);
}

static void reset(void)
{
    for (int r = 1; r < RANKS; r++) {
        atomic_store(&peer_job.peers[r].alive, false);
        fail_requests(r);
        holder_forget(r);
    }
    for (int i = 0; i < PAGES; i++)
        if (page[i].handle)
            copies_unref(page[i].handle);
    memset(page, 0, sizeof(page));
    check_empty();
    pthread_mutex_lock(&mpi.lock);
    mpi.nasked = 0;
    pthread_mutex_unlock(&mpi.lock);
    ranks_restore();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    if (mpi.honest)
        start();
    mpi.honest = false;
    for (int i = 0; i < STEPS && in.left; i++) {
        switch (input_u8(&in) % 6) {
        case 0:
            say_bytes(&in);
            break;
        case 1:
        case 2:
            say_request(&in);
            break;
        case 3:
            say_answer(&in);
            break;
        case 4:
            page_put(&in);
            break;
        default:
            page_fetch(&in);
        }
        end_bad();
    }
    reset();
    return 0;
}
