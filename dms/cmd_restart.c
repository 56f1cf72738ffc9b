/*
 * edm restart: another server in place of the one that runs, or of what is left of it, while
 * programs run. Every rank that lives ends as if it were killed; its keeper has what it had, and
 * waits for the rank of the new job that listens on the same socket.
 */
#include "cmd_server.h"
#include "keeper.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ASK_LIMIT_S 20
#define END_LIMIT_MS 20000 /* for a rank to end that has said that it will */
#define LINE_MAX_BYTES (PATH_MAX * 4 + 512)

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* ---- on this host ---- */

static int connect_to(const struct edm_config *c, const char *socket)
{
    char err[CMD_ERR_MAX];

    return edm_client_connect(server_with_socket(c, socket), false, err, sizeof(err));
}

static int any_alive(const struct edm_config *c)
{
    char err[CMD_ERR_MAX];
    unsigned n;
    struct local_rank *ranks = server_find_ranks(c->socket, &n);
    bool any = false;

    for (unsigned i = 0; i < n; i++)
        any |= edm_client_runs(server_with_socket(c, ranks[i].socket), false, err, sizeof(err));
    free(ranks);
    return any ? 0 : CMD_FAILED;
}

/* To a keeper that has something: one that ends at once, for nobody needs it, says nothing first.
 */
static int keeper_connect(const struct edm_config *c, const char *socket)
{
    struct timeval limit = {5, 0};
    char path[EDM_CONFIG_PATH_MAX + 16], offer[64];
    ssize_t n;
    int fd;

    snprintf(path, sizeof(path), "%s" EDM_KEEPER_SUFFIX, socket);
    fd = connect_to(c, path);
    if (fd < 0)
        return fd;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    n = recv(fd, offer, sizeof(offer), 0);
    if (n > 0 || (n < 0 && errno == EAGAIN)) /* or it is busy with another */
        return fd;
    close(fd);
    return -ECONNRESET;
}

/* Does an instance wait for what this keeper has? */
static bool is_idle(int fd)
{
    char word = KEEPER_ASK;

    return send(fd, &word, 1, MSG_NOSIGNAL) == 1 && recv(fd, &word, 1, 0) == 1 && word == 1;
}

void restart_end_keepers(const struct edm_config *c, const struct local_rank *ranks, unsigned n)
{
    int *fds = calloc(n, sizeof(*fds));
    const char done = KEEPER_DONE;
    bool idle = fds != NULL;

    for (unsigned i = 0; fds && i < n; i++) { /* held until all have said */
        fds[i] = keeper_connect(c, ranks[i].socket);
        idle &= fds[i] < 0 || is_idle(fds[i]);
    }
    for (unsigned i = 0; fds && i < n; i++) {
        char end;

        if (fds[i] < 0)
            continue;
        if (idle && send(fds[i], &done, 1, MSG_NOSIGNAL) == 1)
            (void)!recv(fds[i], &end, 1, 0);
        close(fds[i]);
    }
    free(fds);
}

static int tell(const struct edm_config *c, struct local_rank *r)
{
    const struct edm_client_call call = {.type = EDM_MSG_HANDOVER};
    char err[CMD_ERR_MAX];
    int fd = connect_to(c, r->socket), rc;

    if (fd == -ENOENT || fd == -ECONNREFUSED)
        return 0;
    if (fd < 0)
        return cmd_fail("%s: cannot be reached: %s", r->socket, strerror(-fd));
    r->pid = edm_client_peer(fd);
    if (r->pid > 0)
        r->pidfd = (int)syscall(SYS_pidfd_open, r->pid, 0);
    rc = edm_client_call(fd, &call, NULL, err, sizeof(err));
    close(fd);
    if (rc == -ECONNRESET) /* it may be quicker than its answer */
        rc = 0;
    if (rc == -ETIMEDOUT && r->pidfd >= 0 && /* it hangs; its keeper has everything */
        syscall(SYS_pidfd_send_signal, r->pidfd, SIGKILL, NULL, 0) == 0)
        rc = 0;
    r->told = rc == 0;
    return rc ? cmd_fail("%s: %s", r->socket, err) : 0;
}

/* What a dead rank left, when it left no more than names. */
static void sweep(const struct edm_config *c, const char *socket)
{
    int fd = keeper_connect(c, socket);

    if (fd >= 0)
        close(fd);
    else
        server_sweep(socket);
}

/* All are told before any is waited for, so that none misses the others for long. */
static int hand_over(const struct edm_config *c)
{
    int64_t end = now_ms() + END_LIMIT_MS;
    unsigned n;
    struct local_rank *ranks = server_find_ranks(c->socket, &n);
    int rc = 0;

    for (unsigned i = 0; i < n; i++)
        rc |= tell(c, &ranks[i]);
    for (unsigned i = 0; i < n; i++) {
        if (ranks[i].told &&
            !server_wait_gone(server_with_socket(c, ranks[i].socket), ranks[i].pidfd, end))
            rc = cmd_fail("%s: its rank (pid %d) does not end: see its log", ranks[i].socket,
                          (int)ranks[i].pid);
        else
            sweep(c, ranks[i].socket);
        if (ranks[i].pidfd >= 0)
            close(ranks[i].pidfd);
    }
    free(ranks);
    return rc;
}

/* Of a rank that answers. -ECONNRESET: it has just died. */
static int ask_needs(const struct edm_config *c, const char *socket, bool *needed)
{
    char err[CMD_ERR_MAX];
    unsigned instances = 0;
    uint64_t pages = 0;
    int fd = connect_to(c, socket), rc;

    if (fd < 0)
        return fd;
    rc = cmd_server_needs(fd, &instances, &pages, err, sizeof(err));
    close(fd);
    *needed = rc || instances || pages;
    if (rc == -ECONNRESET)
        return rc;
    if (rc)
        cmd_fail("%s: %s", socket, err);
    else if (*needed)
        cmd_fail("the rank at %s has %u running programs and keeps %lu pages of others: it cannot "
                 "be left out",
                 socket, instances, pages);
    return 0;
}

/* Has the rank on this socket, or its keeper, something that nobody else has? Says what. */
static bool is_needed(const struct edm_config *c, const char *socket)
{
    bool needed = false;
    int fd;

    if (ask_needs(c, socket, &needed) == 0)
        return needed;
    fd = keeper_connect(c, socket);
    if (fd < 0)
        return false;
    close(fd);
    cmd_fail("the rank at %s was killed, and what it had waits for another: it cannot be left out",
             socket);
    return true;
}

static unsigned number_of(const struct local_rank *r, const char *socket)
{
    const char *tail = r->socket + strlen(socket);

    return *tail == '.' ? (unsigned)strtoul(tail + 1, NULL, 10) : 0;
}

static int check_spare(const struct edm_config *c, unsigned first)
{
    unsigned n;
    struct local_rank *ranks = server_find_ranks(c->socket, &n);
    int rc = 0;

    for (unsigned i = 0; i < n; i++)
        if (number_of(&ranks[i], c->socket) >= first && is_needed(c, ranks[i].socket))
            rc = CMD_FAILED;
    free(ranks);
    return rc;
}

int restart_here(const struct edm_config *c, enum here_mode mode, unsigned first)
{
    switch (mode) {
    case HERE_ALIVE:
        return any_alive(c);
    case HERE_HAND_OVER:
        return hand_over(c);
    default:
        return check_spare(c, first);
    }
}

/* ---- on all hosts ---- */

static bool is_gone(const struct hosts_result *r)
{
    return r->status == -EHOSTUNREACH || r->status == -ETIMEDOUT;
}

/* Runs it on one host (NULL: this one); what was wrong there is said. */
static int run_on(const char *host, const struct edm_config *c, enum here_mode mode, unsigned first,
                  struct hosts_result *r)
{
    const struct hosts one = {.names = {host}, .n = 1};
    char line[LINE_MAX_BYTES];

    *r = (struct hosts_result){.status = 0};
    if (!host)
        return restart_here(c, mode, first);
    if (server_here_line(c->socket, mode, first, line, sizeof(line)))
        return CMD_FAILED;
    hosts_run(&one, line, ASK_LIMIT_S + END_LIMIT_MS / 1000, r);
    if (r->status && !is_gone(r) && mode != HERE_ALIVE)
        cmd_fail("%s: %s", host, strncmp(r->output, "edm: ", 5) ? r->output : r->output + 5);
    return r->status ? CMD_FAILED : 0;
}

static unsigned places(const struct hosts *h)
{
    return h->n ? h->n : 1;
}

static const char *place(const struct hosts *h, unsigned i)
{
    return h->n ? h->names[i] : NULL;
}

bool restart_nobody_lives(const struct job *j, const struct edm_config *c)
{
    struct hosts_result r;

    for (unsigned i = 0; i < places(&j->hosts); i++)
        if (!run_on(place(&j->hosts, i), c, HERE_ALIVE, 0, &r) || is_gone(&r))
            return false;
    return true;
}

/* Ranks that the new server has on a host of the old one; they go to the hosts in turn. */
static unsigned ranks_on(const struct server_args *a, const char *host)
{
    unsigned n = 0;

    for (unsigned r = 0; r < a->ranks; r++) {
        const char *name = place(&a->hosts, r % places(&a->hosts));
        n += (!name && !host) || (name && host && strcmp(name, host) == 0) ||
             (!name && host && hosts_is_local(host)) || (name && !host && hosts_is_local(name));
    }
    return n;
}

/* No rank that is needed may be left out. Of a host that does not answer nothing can be had. */
static int check_size(const struct server_args *a, const struct job *j)
{
    struct hosts_result r;
    int rc = 0;

    for (unsigned i = 0; i < places(&j->hosts); i++) {
        const char *host = place(&j->hosts, i);
        unsigned before = j->ranks / places(&j->hosts) + (i < j->ranks % places(&j->hosts));

        if (ranks_on(a, host) >= before ||
            !run_on(host, &a->s.config, HERE_SPARE, ranks_on(a, host), &r))
            continue;
        if (is_gone(&r))
            fprintf(stderr, "edm: %s does not answer: what only its ranks have is lost\n", host);
        else
            rc = CMD_FAILED;
    }
    return rc;
}

static int keep_size(struct server_args *a, const struct job *j)
{
    if (!job_is_known(j))
        return 0;
    if (!a->ranks && !*a->s.config.hosts) {
        a->ranks = j->ranks;
        hosts_join(&j->hosts, a->s.config.hosts);
    }
    int rc = server_settle(a);
    return rc ? rc : check_size(a, j);
}

int restart_keep_size(struct server_args *a)
{
    char err[CMD_ERR_MAX];
    struct job j;
    int rc;

    if (job_open(&j, a->s.config.socket, false, err, sizeof(err)))
        return cmd_fail("%s", err);
    rc = keep_size(a, &j);
    job_close(&j, false);
    return rc;
}

static int hand_over_all(const struct edm_config *c, struct job *j)
{
    struct hosts_result r;
    int rc = 0;

    for (unsigned i = 0; i < places(&j->hosts); i++) {
        const char *host = place(&j->hosts, i);

        if (!run_on(host, c, HERE_HAND_OVER, 0, &r))
            continue;
        if (is_gone(&r))
            fprintf(stderr, "edm: %s does not answer\n", host);
        else
            rc = CMD_FAILED;
    }
    return rc;
}

/* Ends what runs; its keepers have it all. */
static int end_server(const struct edm_config *c)
{
    char err[CMD_ERR_MAX];
    struct job j;
    int rc;

    if (job_open(&j, c->socket, false, err, sizeof(err)))
        return cmd_fail("%s", err);
    if (!job_is_known(&j) && server_is_part(c))
        rc = cmd_fail("this rank belongs to a server that another host started: `edm restart` "
                      "there");
    else
        rc = hand_over_all(c, &j);
    if (!rc)
        job_end_mpiexec(&j);
    job_close(&j, false);
    return rc;
}

static int restart_main(const struct cmd *self, int argc, char **argv)
{
    struct server_args a = {.ranks = 0};
    int rc = server_parse_start(self, &a, argc, argv);

    if (!rc)
        rc = restart_keep_size(&a);
    if (!rc)
        rc = end_server(&a.s.config);
    if (!rc)
        rc = server_start(&a);
    cmd_settings_fini(&a.s);
    return rc;
}

const struct cmd cmd_restart = {
    .name = "restart",
    .run = restart_main,
    .usage = " [-n RANKS] [--hosts H1,H2...] [-c FILE] [-o KEY=VALUE]...",
    .help =
        "put another server in place of the one that runs, or was killed\n\n" SERVER_OPTIONS
        "\nPrograms that the server has memory of go on: they wait until it is there again.\n"
        "Without -n and hosts it gets those that it had. With fewer, it is refused when a rank\n"
        "that would be left out has programs or keeps pages of others.\n",
};
