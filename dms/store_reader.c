#include "store_reader.h"

#include "store_int.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DEPTH 64u /* reads under way at a time: more only wait in the device's queue */
#define BATCH 64u /* submitted at once */
#define EVENTS 32
#define WORKERS_WITH_AIO 2
#define REAPER_LOOK_NS 5000000 /* then a reaper sees whether it is still wanted */
#define KEEP_MOST 2u           /* pages that a thread keeps: a fault's; more are for many threads */
#define LOOK_NS 200000u        /* and looks for */
#define CROWDED_NS 30000u      /* away from the CPU: others need it */
#define SLOW_MOST 16u          /* reads that took longer in a row: it is not worth it, */
#define SLOW_TRY 64u           /* but now and then */

/* Pages that a job has room for, and jobs kept for reuse, by class. */
static const uint32_t class_pages[READER_CLASSES] = {1, 8, STORE_READ_RUN};
static const uint32_t class_spare[READER_CLASSES] = {256, 64, 16};

/* One read: pages in neighbouring blocks. */
struct read_job {
    struct read_job *next;
    unsigned char *data;
    store_read_done *done;
    void *arg;
    struct iocb cb;
    uint32_t block, n, class;
    uint64_t round; /* it is kept while this is the reader's; 0: by nobody */
    bool in_memory; /* not on disk after all */
    bool landed;    /* AIO has read it: */
    int64_t got;
    struct read_page {
        struct store_read page;
        uint64_t sum;
        bool stale; /* the slot holds another version */
    } pages[];
};

/* ---- jobs ---- */

static void list_push(struct read_list *l, struct read_job *j)
{
    j->next = NULL;
    if (l->first)
        l->last->next = j;
    else
        l->first = j;
    l->last = j;
}

static struct read_job *list_pop(struct read_list *l)
{
    struct read_job *j = l->first;
    if (j)
        l->first = j->next;
    return j;
}

static struct read_job *job_make(uint32_t class)
{
    size_t pages = class_pages[class];
    struct read_job *j = calloc(1, sizeof *j + pages * sizeof j->pages[0]);
    if (!j)
        return NULL;
    j->data = aligned_alloc(STORE_PAGE, pages * STORE_PAGE);
    if (!j->data) {
        free(j);
        return NULL;
    }
    j->class = class;
    return j;
}

static void job_free(struct read_job *j)
{
    free(j->data);
    free(j);
}

static struct read_job *job_get(struct store_reader *r, uint32_t n)
{
    uint32_t class = 0;
    while (class_pages[class] < n)
        class ++;
    pthread_mutex_lock(&r->lock);
    struct read_job *j = r->spare[class];
    if (j) {
        r->spare[class] = j->next;
        r->nspare[class]--;
    }
    pthread_mutex_unlock(&r->lock);
    return j ? j : job_make(class);
}

static void job_put(struct store_reader *r, struct read_job *j)
{
    pthread_mutex_lock(&r->lock);
    bool keep = r->nspare[j->class] < class_spare[j->class];
    if (keep) {
        j->next = r->spare[j->class];
        r->spare[j->class] = j;
        r->nspare[j->class]++;
    }
    pthread_mutex_unlock(&r->lock);
    if (!keep)
        job_free(j);
}

/* ---- the end of a read ---- */

/* Reads that ended together and are for the same caller: told in one go. */
struct ended {
    uint32_t n, njobs;
    struct store_read pages[STORE_READ_RUN];
    struct read_job *jobs[STORE_READ_RUN];
};

static int page_check(struct store *s, struct read_job *j, uint32_t i, bool whole)
{
    unsigned char *to = j->data + (size_t)i * STORE_PAGE;
    const struct read_page *p = &j->pages[i];
    if (j->in_memory)
        return store_read(p->page.handle, p->page.version, to);
    if (p->stale)
        return -EBADMSG;
    int rc = whole ? 0 : store_disk_read(&s->disk, j->block + i, 1, to);
    if (!rc && store_page_sum(to, p->page.version) != p->sum)
        rc = -EBADMSG;
    return rc;
}

static void ended_tell(struct store *s, struct ended *e)
{
    uint32_t on_disk = 0;
    if (!e->njobs)
        return;
    for (uint32_t i = 0; i < e->njobs; i++)
        on_disk += e->jobs[i]->in_memory ? 0 : e->jobs[i]->n;
    store_lock(s);
    s->read += on_disk;
    store_unlock(s);
    e->jobs[0]->done(e->jobs[0]->arg, e->pages, e->n);
    for (uint32_t i = 0; i < e->njobs; i++)
        job_put(&s->reader, e->jobs[i]);
    e->n = e->njobs = 0;
}

/* got: what the read returned. What it did not bring is read page by page: one bad block is one
 * bad page. */
static void ended_add(struct store *s, struct ended *e, struct read_job *j, int64_t got)
{
    bool whole = got == (int64_t)j->n * STORE_PAGE;
    if (e->njobs &&
        (e->n + j->n > STORE_READ_RUN || e->jobs[0]->arg != j->arg || e->jobs[0]->done != j->done))
        ended_tell(s, e);
    for (uint32_t i = 0; i < j->n; i++) {
        struct store_read *p = &e->pages[e->n++];
        *p = j->pages[i].page;
        p->err = page_check(s, j, i, whole);
        p->data = j->data + (size_t)i * STORE_PAGE;
    }
    e->jobs[e->njobs++] = j;
}

/* ---- AIO ---- */

static void aio_prepare(const struct store *s, struct read_job *j)
{
    j->cb = (struct iocb){.aio_data = (uintptr_t)j,
                          .aio_lio_opcode = IOCB_CMD_PREAD,
                          .aio_fildes = (uint32_t)s->disk.fd,
                          .aio_buf = (uintptr_t)j->data,
                          .aio_nbytes = (uint64_t)j->n * STORE_PAGE,
                          .aio_offset = (int64_t)j->block * STORE_PAGE,
                          .aio_rw_flags = RWF_NOWAIT}; /* the caller is not to wait */
}

/* Counts, with the lock. */
static void job_flies(struct store_reader *r, const struct read_job *j)
{
    bool kept = j->round == r->round;
    r->flying++;
    r->kept += kept;
    if (!kept && r->flying - r->kept == 1)
        pthread_cond_broadcast(&r->watch);
}

static void job_landed(struct store_reader *r, const struct read_job *j)
{
    r->flying--;
    r->kept -= j->round == r->round;
}

/* Takes what may be submitted now off the list. */
static uint32_t pending_take(struct store_reader *r, struct read_job **j)
{
    uint32_t n = 0;
    pthread_mutex_lock(&r->lock);
    while (n < BATCH && r->flying < DEPTH && r->pending.first) {
        j[n] = list_pop(&r->pending);
        job_flies(r, j[n++]);
    }
    pthread_mutex_unlock(&r->lock);
    return n;
}

static void blocking_push(struct store_reader *r, struct read_job *j, bool flew)
{
    pthread_mutex_lock(&r->lock);
    if (flew)
        job_landed(r, j);
    list_push(&r->blocking, j);
    pthread_mutex_unlock(&r->lock);
    pthread_cond_signal(&r->more);
}

static void pending_submit(struct store *s)
{
    struct store_reader *r = &s->reader;
    struct read_job *j[BATCH];
    struct iocb *cb[BATCH];
    uint32_t n;
    while ((n = pending_take(r, j)) > 0) {
        for (uint32_t i = 0; i < n; i++)
            cb[i] = &j[i]->cb;
        long took = syscall(SYS_io_submit, r->ctx, (long)n, cb);
        for (uint32_t i = took > 0 ? (uint32_t)took : 0; i < n; i++)
            blocking_push(r, j[i], true);
    }
}

/* Takes what is there, or waits for it until the time is over; mine: whose reads this thread may
 * finish (NULL: everybody's), the others are for the workers. False: the context is gone. */
static bool reap(struct store *s, struct ended *e, long least, struct timespec *limit,
                 const void *mine)
{
    struct store_reader *r = &s->reader;
    struct io_event ev[EVENTS];
    long n = syscall(SYS_io_getevents, r->ctx, least, (long)EVENTS, ev, limit);
    if (n <= 0)
        return n == 0 || errno == EINTR;
    pthread_mutex_lock(&r->lock); /* also orders what the submitter wrote before our reading */
    for (long i = 0; i < n; i++)
        job_landed(r, (struct read_job *)(uintptr_t)ev[i].data);
    bool more = r->pending.first != NULL;
    pthread_mutex_unlock(&r->lock);
    if (more)
        pending_submit(s);
    for (long i = 0; i < n; i++) {
        struct read_job *j = (struct read_job *)(uintptr_t)ev[i].data;
        j->landed = ev[i].res != -EAGAIN && ev[i].res != -EOPNOTSUPP;
        j->got = ev[i].res;
        if (!j->landed || (mine && j->arg != mine))
            blocking_push(r, j, false);
        else
            ended_add(s, e, j, ev[i].res);
    }
    ended_tell(s, e);
    return true;
}

static void *reaper_main(void *arg)
{
    struct store *s = arg;
    struct store_reader *r = &s->reader;
    struct ended e = {0};
    for (bool go = true; go;) {
        struct timespec limit = {0, REAPER_LOOK_NS};
        pthread_mutex_lock(&r->lock);
        while (r->flying == r->kept && !r->stop)
            pthread_cond_wait(&r->watch, &r->lock);
        go = !r->stop;
        pthread_mutex_unlock(&r->lock);
        go = go && reap(s, &e, 1, &limit, NULL);
    }
    return NULL;
}

/* ---- threads that look themselves ---- */

static uint64_t clock_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static _Thread_local enum { KEEPS_NONE, KEEPS_NEXT, KEEPS_SOME } keeps;
static _Thread_local const void *kept_for; /* the caller's arg */

void store_read_keep(void)
{
    struct store_reader *r = &store_self.reader;
    unsigned slow = atomic_load(&r->slow);
    if (r->aio && (slow < SLOW_MOST || slow % SLOW_TRY == 0))
        keeps = KEEPS_NEXT;
    else if (r->aio)
        atomic_fetch_add(&r->slow, 1);
}

/* Whatever is kept by anybody is the reapers' now. */
static void kept_leave(struct store_reader *r, uint64_t round, bool slow)
{
    pthread_mutex_lock(&r->lock);
    if (r->round != round) /* another has done so already */
        slow = false;
    else if (!r->kept)
        atomic_store(&r->slow, 0);
    if (r->kept && slow)
        atomic_fetch_add(&r->slow, 1);
    atomic_fetch_add(&r->round, 1);
    r->kept = 0;
    bool some = r->flying > 0;
    pthread_mutex_unlock(&r->lock);
    if (some)
        pthread_cond_broadcast(&r->watch);
}

void store_read_await(int fd)
{
    struct store *s = &store_self;
    struct store_reader *r = &s->reader;
    struct pollfd event = {.fd = fd, .events = POLLIN};
    struct ended e = {0};
    bool some = keeps == KEEPS_SOME, called = false;
    keeps = KEEPS_NONE;
    if (!some)
        return;
    uint64_t round = atomic_load(&r->round);
    uint64_t began = clock_ns(), last = began, now = began;
    while (atomic_load(&r->kept) && !called && now - began < LOOK_NS && now - last < CROWDED_NS) {
        struct timespec none = {0};
        reap(s, &e, 0, &none, kept_for);
        called = poll(&event, 1, 0) != 0;
        last = clock_ns();
        sched_yield(); /* whoever can use this CPU, has it: then the reapers do as well */
        now = clock_ns();
    }
    kept_leave(r, round, !called);
}

/* ---- threads that block ---- */

static void *worker_main(void *arg)
{
    struct store *s = arg;
    struct store_reader *r = &s->reader;
    struct ended e = {0};
    for (;;) {
        pthread_mutex_lock(&r->lock);
        while (!r->blocking.first && !r->stop)
            pthread_cond_wait(&r->more, &r->lock);
        struct read_job *j = list_pop(&r->blocking);
        pthread_mutex_unlock(&r->lock);
        if (!j)
            return NULL;
        int64_t got = j->landed ? j->got : (int64_t)j->n * STORE_PAGE;
        int rc = j->in_memory || j->landed ? 0 : store_disk_read(&s->disk, j->block, j->n, j->data);
        ended_add(s, &e, j, rc ? rc : got);
        ended_tell(s, &e);
    }
}

/* ---- asking ---- */

/* Where a page is, for sorting. */
struct found {
    uint32_t kind, block, index;
    uint64_t sum;
    bool stale;
};

static int by_place(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    if (x->kind != y->kind)
        return x->kind < y->kind ? -1 : 1;
    if (x->block != y->block)
        return x->block < y->block ? -1 : 1;
    return 0;
}

static void places_find(struct store *s, const struct store_read *p, uint32_t n, struct found *f)
{
    store_lock(s);
    for (uint32_t i = 0; i < n; i++) {
        const struct slot *sl = store_slot_of(s, p[i].handle);
        bool disk = sl->kind == SLOT_DISK;
        f[i] = (struct found){.kind = disk,
                              .block = disk ? sl->where : 0,
                              .index = i,
                              .sum = sl->sum,
                              .stale = sl->version != p[i].version};
    }
    pthread_mutex_unlock(&s->lock);
    qsort(f, n, sizeof *f, by_place);
}

/* How many of the n places from f on are one read. */
static uint32_t run_length(const struct found *f, uint32_t n)
{
    uint32_t k = 1;
    while (k < n && k < STORE_READ_RUN && f[0].kind && f[k].block == f[0].block + k)
        k++;
    return k;
}

static struct read_job *run_job(struct store_reader *r, const struct store_read *p,
                                const struct found *f, uint32_t n)
{
    struct read_job *j = job_get(r, n);
    if (!j)
        return NULL;
    j->block = f[0].block;
    j->n = n;
    j->in_memory = !f[0].kind;
    for (uint32_t i = 0; i < n; i++)
        j->pages[i] = (struct read_page){p[f[i].index], f[i].sum, f[i].stale};
    return j;
}

void store_read_many(struct store_read *p, uint32_t n, store_read_done *done, void *arg)
{
    struct store *s = &store_self;
    struct store_reader *r = &s->reader;
    struct found f[STORE_READ_MANY];
    bool keep = keeps != KEEPS_NONE && n <= KEEP_MOST;
    assert(n <= STORE_READ_MANY);
    if (keep) {
        keeps = KEEPS_SOME;
        kept_for = arg;
    }
    places_find(s, p, n, f);
    for (uint32_t i = 0, k; i < n; i += k) {
        k = run_length(f + i, n - i);
        struct read_job *j = run_job(r, p, f + i, k);
        for (uint32_t m = 0; m < k; m++)
            p[f[i + m].index].err = j ? 0 : -ENOMEM;
        if (!j)
            continue;
        j->done = done;
        j->arg = arg;
        j->landed = false;
        j->round = keep ? atomic_load(&r->round) : 0;
        if (!r->aio || j->in_memory || s->disk.fault == DISK_FAULT_READ) {
            blocking_push(r, j, false);
            continue;
        }
        aio_prepare(s, j);
        pthread_mutex_lock(&r->lock);
        list_push(&r->pending, j);
        pthread_mutex_unlock(&r->lock);
    }
    if (r->aio)
        pending_submit(s);
}

/* ---- start and end ---- */

static bool is_direct(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && flags & O_DIRECT;
}

static int threads_start(struct store *s)
{
    struct store_reader *r = &s->reader;
    unsigned workers = r->aio ? WORKERS_WITH_AIO : s->has_disk ? READER_WORKERS : 1;
    unsigned reapers = r->aio ? READER_REAPERS : 0;
    int rc = 0;
    for (; !rc && r->nworkers < workers; r->nworkers += rc == 0)
        rc = pthread_create(&r->workers[r->nworkers], NULL, worker_main, s);
    for (; !rc && r->nreapers < reapers; r->nreapers += rc == 0)
        rc = pthread_create(&r->reapers[r->nreapers], NULL, reaper_main, s);
    return -rc;
}

int store_reader_start(struct store *s)
{
    struct store_reader *r = &s->reader;
    sigset_t all, old;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->more, NULL);
    pthread_cond_init(&r->watch, NULL);
    r->round = 1;
    r->started = true;
    r->aio = s->has_disk && is_direct(s->disk.fd) && syscall(SYS_io_setup, 2 * DEPTH, &r->ctx) == 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = threads_start(s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc)
        store_reader_stop(s);
    return rc;
}

void store_reader_stop(struct store *s)
{
    struct store_reader *r = &s->reader;
    if (!r->started)
        return;
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_mutex_unlock(&r->lock);
    pthread_cond_broadcast(&r->more);
    pthread_cond_broadcast(&r->watch);
    if (r->aio)
        syscall(SYS_io_destroy, r->ctx); /* which makes io_getevents return */
    for (unsigned i = 0; i < r->nworkers; i++)
        pthread_join(r->workers[i], NULL);
    for (unsigned i = 0; i < r->nreapers; i++)
        pthread_join(r->reapers[i], NULL);
    for (uint32_t c = 0; c < READER_CLASSES; c++) {
        for (struct read_job *j = r->spare[c], *next; j; j = next) {
            next = j->next;
            job_free(j);
        }
    }
    pthread_cond_destroy(&r->more);
    pthread_cond_destroy(&r->watch);
    pthread_mutex_destroy(&r->lock);
    memset(r, 0, sizeof *r);
}
