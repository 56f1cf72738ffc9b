#include "peer_int.h"

#include "../config/log.h"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define START_SECONDS 20.0 /* for the others to come up */

extern char **environ;

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
    /* alone it listens to nobody */
    const char *const wanted[][2] = {{"UCX_HANDLE_ERRORS", "none"},
                                     {"UCX_MEM_EVENTS", "n"},
                                     {"UCX_TCP_KEEPIDLE", "inf"},
                                     {"UCX_TLS", alone ? "self" : "tcp,self"},
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

/* ---- start ---- */

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
            peer_job.event_fds[peer_job.nevents++] = now[i];
    }
}

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
    MPI_Comm_rank(MPI_COMM_WORLD, &peer_job.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &peer_job.ranks);
    forget_jobs(); /* nor does a child of this process belong to the job */
    keep_new(before, nbefore);
    if (peer_job.ranks > PEER_RANKS_MAX) {
        snprintf(err, errlen, "%d ranks: at most %d", peer_job.ranks, PEER_RANKS_MAX);
        return -E2BIG;
    }
    peer_job.peers = calloc((size_t)peer_job.ranks, sizeof(*peer_job.peers));
    peer_job.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!peer_job.peers || peer_job.wake_fd < 0) {
        snprintf(err, errlen, "out of memory or descriptors");
        return -ENOMEM;
    }
    for (int r = 0; r < peer_job.ranks; r++)
        atomic_store(&peer_job.peers[r].alive, true);
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
        peer_greeted_by(g->rank, answer);
    else if (err == -EPROTONOSUPPORT)
        peer_misbehaves(g->rank, "it refuses this version");
    atomic_fetch_sub(g->waiting, 1);
}

/* Everybody is greeted before anybody is used. */
static int greet(void)
{
    static atomic_int waiting;
    struct greeting *all =
        calloc((size_t)peer_job.ranks, sizeof(*all)); /* answers may be late: kept */
    if (!all)
        return -ENOMEM;
    for (int r = 0; r < peer_job.ranks; r++) {
        struct peer_buf *b = r == peer_job.rank ? NULL : peer_buf_get();
        if (!b)
            continue;
        all[r] = (struct greeting){r, &waiting};
        b->head->kind = RANK_HELLO;
        memcpy(b->head + 1, &peer_job.self, sizeof(peer_job.self));
        atomic_fetch_add(&waiting, 1);
        if (peer_request(r, b, sizeof(peer_job.self), greeting_answered, &all[r]))
            atomic_fetch_sub(&waiting, 1);
    }
    while (atomic_load(&waiting) > 0)
        usleep(1000);
    free(all);
    return 0;
}

int peer_start(const struct peer_ops *ops, struct rank_hello *self, double timeout)
{
    peer_job.ops = *ops;
    gethostname(self->host, sizeof(self->host) - 1);
    self->host[sizeof(self->host) - 1] = 0;
    for (char *c = self->host; *c; c++)
        *c = *c > ' ' && *c <= '~' && *c != '"' && *c != '\\' ? *c : '_';
    peer_job.self = *self;
    peer_job.machine = keep_off_machine();
    peer_job.peers[peer_job.rank].hello = *self;
    if (peer_job.ranks == 1)
        return 0;
    unsigned most = RECEIVES * (unsigned)(peer_job.ranks - 1);
    for (most = most < RECEIVES_MAX ? most : RECEIVES_MAX; peer_job.nreceives < most;
         peer_job.nreceives++)
        if (!peer_receive_post(peer_job.nreceives))
            return -ENOMEM;
    peer_job.timeout_ns = (uint64_t)(START_SECONDS * 1e9);
    peer_job.checked_ns = peer_clock_ns();
    int err = pthread_create(&peer_job.thread, NULL, peer_progress_main, NULL);
    if (err)
        return -err;
    err = greet();
    peer_job.timeout_ns = (uint64_t)(timeout * 1e9);
    return err;
}

int peer_rank(void)
{
    return peer_job.rank;
}

int peer_ranks(void)
{
    return peer_job.ranks;
}

bool peer_is_alive(int rank)
{
    return rank == peer_job.rank || atomic_load(&peer_job.peers[rank].alive);
}

void peer_get_info(int rank, struct peer_info *out)
{
    const struct peer *p = &peer_job.peers[rank];
    int host = 0;
    while (strcmp(peer_job.peers[host].hello.host, p->hello.host) != 0)
        host++;
    pthread_mutex_lock(&peer_job.lock);
    *out = (struct peer_info){.alive = peer_is_alive(rank),
                              .host = host,
                              .host_name = p->hello.host,
                              .identity = p->hello.identity,
                              .rtt_ns = p->rtt_ns,
                              .capacity = p->hello.capacity,
                              .used = p->hello.used};
    pthread_mutex_unlock(&peer_job.lock);
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
    pthread_mutex_lock(&peer_job.lock);
    for (int r = 0; r < peer_job.ranks; r++) {
        if (r == peer_job.rank || !atomic_load(&peer_job.peers[r].alive))
            continue;
        n += !peer_job.peers[r].left;
        *asked += peer_job.peers[r].asked;
    }
    pthread_mutex_unlock(&peer_job.lock);
    return n;
}

static void say_bye(void)
{
    for (int r = 0; r < peer_job.ranks; r++) {
        struct peer_buf *b = r == peer_job.rank ? NULL : peer_buf_get();
        if (!b)
            continue;
        b->head->kind = RANK_BYE;
        peer_request(r, b, 0, bye_answered, NULL);
    }
}

uint64_t peer_bye(uint64_t (*pages)(void), double seconds)
{
    const uint64_t limit = (uint64_t)(seconds * 1e9);
    uint64_t since = peer_clock_ns(), left = pages(), now_left;
    unsigned asked;
    say_bye();
    while ((now_left = pages(), still_here(&asked) && now_left) || asked ||
           atomic_load(&peer_job.nsending)) {
        if (now_left != left)
            since = peer_clock_ns();
        left = now_left;
        if (peer_clock_ns() - since > limit)
            return left;
        usleep(1000);
    }
    return 0;
}

void peer_fini(void)
{
    if (peer_job.ranks > 1)
        _exit(0);
    MPI_Finalize();
}
