/*
 * edm start, stop.
 *
 * One rank on this host is a process of its own (launch.c); several are an MPI job (job.c). Each
 * rank listens on a socket of its own host, and is stopped there: by `edm stop --here`, which
 * `edm stop` runs on every host. That needs neither mpiexec nor the other ranks.
 */
#include "cmd_server.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SWEEP_TRIES 100 /* of 20 ms */
#define STOP_LIMIT_MS 60000
#define ASK_LIMIT_S 20                           /* for every host to answer a question */
#define HOST_LIMIT_S (STOP_LIMIT_MS / 1000 + 20) /* for every host to have stopped */
#define RANKS_MAX 1024
#define LINE_MAX_BYTES (PATH_MAX * 4 + 512)

/* ---- options ---- */

static int parse_ranks(const struct cmd *self, const char *text, unsigned *ranks)
{
    char *end;
    long n = strtol(text, &end, 10);

    if (*end || end == text || n < 1 || n > RANKS_MAX)
        return cmd_misused(self, "-n %s: it must be a number of ranks from 1 to %d", text,
                           RANKS_MAX);
    *ranks = (unsigned)n;
    return 0;
}

int server_settle(struct server_args *a)
{
    char err[CMD_ERR_MAX];

    if (hosts_parse(&a->hosts, a->s.config.hosts, err, sizeof(err)))
        return cmd_fail("%s", err);
    if (!a->ranks)
        a->ranks = a->hosts.n ? a->hosts.n : 1;
    if (a->ranks < a->hosts.n)
        return cmd_fail("-n %u: %u hosts need a rank each: a larger -n, or fewer hosts", a->ranks,
                        a->hosts.n);
    return 0;
}

static char *hosts_option(const char *list)
{
    char *text = NULL;

    if (asprintf(&text, "hosts=%s", list) < 0)
        exit(cmd_fail("out of memory"));
    return text; /* lives as long as the settings: until the process ends */
}

static int parse(const struct cmd *self, const char *letters, const struct option *longs,
                 struct server_args *a, int argc, char **argv)
{
    int found, rc = 0;

    while (!rc && (found = getopt_long(argc, argv, letters, longs, NULL)) != -1) {
        switch (found) {
        case 'c':
            a->s.request.file = optarg;
            break;
        case 'n':
            rc = parse_ranks(self, optarg, &a->ranks);
            a->wants_ranks = true;
            break;
        case 'o':
            cmd_settings_add(&a->s, optarg);
            break;
        case 'h':
            cmd_settings_add(&a->s, hosts_option(optarg));
            break;
        case 'H':
            a->here = true;
            break;
        case 'A':
            a->mode = HERE_ASK;
            break;
        case 'L':
            a->mode = HERE_ALIVE;
            break;
        case 'O':
            a->mode = HERE_HAND_OVER;
            break;
        case 'S':
            a->mode = HERE_SPARE;
            a->first = (unsigned)strtoul(optarg, NULL, 10);
            break;
        default:
            return cmd_bad_option(self, found, argv);
        }
    }
    if (!rc && argv[optind])
        rc = cmd_misused(self, "\"%s\" is too much", argv[optind]);
    return rc ? rc : cmd_settings_load(&a->s);
}

int server_parse_start(const struct cmd *self, struct server_args *a, int argc, char **argv)
{
    static const struct option longs[] = {{"hosts", required_argument, NULL, 'h'}, {0}};

    return parse(self, "+:c:n:o:", longs, a, argc, argv);
}

static int parse_stop(const struct cmd *self, struct server_args *a, int argc, char **argv)
{
    static const struct option longs[] = {
        {"here", no_argument, NULL, 'H'},        {"ask", no_argument, NULL, 'A'},
        {"alive", no_argument, NULL, 'L'},       {"hand-over", no_argument, NULL, 'O'},
        {"spare", required_argument, NULL, 'S'}, {0}};

    int rc = parse(self, "+:c:o:", longs, a, argc, argv);

    if (!rc && a->mode != HERE_STOP && !a->here)
        rc = cmd_misused(self, "this goes with --here only");
    return rc;
}

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int server_here_line(const char *socket, enum here_mode mode, unsigned first, char *buf, size_t len)
{
    static const char *const modes[] = {"", "--ask", "--alive", "--hand-over", "--spare"};
    char dms[PATH_MAX], edm[PATH_MAX + 8], option[EDM_CONFIG_PATH_MAX + 16], err[CMD_ERR_MAX];
    char number[16];

    if (edm_launch_find_dms(dms, sizeof(dms), err, sizeof(err)))
        return cmd_fail("%s", err);
    snprintf(edm, sizeof(edm), "%s/edm", dirname(dms));
    snprintf(option, sizeof(option), "socket=%s", socket);
    snprintf(number, sizeof(number), "%u", first);
    *buf = '\0';
    if (hosts_quote(buf, len, edm) || hosts_quote(buf, len, "stop") ||
        hosts_quote(buf, len, "--here") || (mode && hosts_quote(buf, len, modes[mode])) ||
        (mode == HERE_SPARE && hosts_quote(buf, len, number)) || hosts_quote(buf, len, "-o") ||
        hosts_quote(buf, len, option))
        return cmd_fail("socket: the path is too long");
    return 0;
}

/* ---- stop on this host ---- */

static bool wait_process(int pidfd, int64_t end)
{
    while (pidfd >= 0) {
        struct pollfd p = {.fd = pidfd, .events = POLLIN};
        int64_t left = end - now_ms();

        if (left <= 0)
            return false;
        if (poll(&p, 1, (int)left) > 0)
            break;
    }
    return true;
}

bool server_wait_gone(const struct edm_config *c, int pidfd, int64_t end)
{
    const struct timespec pause = {.tv_nsec = 20 * 1000000}; /* there is nothing to wait on */
    char err[CMD_ERR_MAX];
    int fd;

    if (!wait_process(pidfd, end))
        return false;
    while ((fd = edm_client_connect(c, false, err, sizeof(err))) >= 0) {
        close(fd);
        if (now_ms() >= end)
            return false;
        nanosleep(&pause, NULL);
    }
    return true;
}

struct edm_config *server_with_socket(const struct edm_config *c, const char *socket)
{
    static struct edm_config own;

    own = *c;
    snprintf(own.socket, sizeof(own.socket), "%.*s", (int)sizeof(own.socket) - 1, socket);
    return &own;
}

/* Files of ours, and not what a user has under such names? */
static bool is_ours(const char *socket, int lock_fd)
{
    struct stat st;

    if (lstat(socket, &st) == 0 && !S_ISSOCK(st.st_mode))
        return false;
    return fstat(lock_fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == 0;
}

void server_sweep(const char *socket)
{
    const struct timespec pause = {.tv_nsec = 20 * 1000000};
    char lock[EDM_CONFIG_PATH_MAX + 16];
    int fd, busy;

    snprintf(lock, sizeof(lock), "%s.lock", socket);
    fd = open(lock, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return;
    if (!is_ours(socket, fd)) {
        close(fd);
        return;
    }
    busy = flock(fd, LOCK_EX | LOCK_NB);
    for (int i = 0; busy && i < SWEEP_TRIES; i++) {
        nanosleep(&pause, NULL);
        busy = flock(fd, LOCK_EX | LOCK_NB);
    }
    if (!busy) {
        unlink(socket);
        unlink(lock);
    }
    close(fd);
}

static int check_idle(int fd, char *err, size_t errlen)
{
    unsigned n = 0;
    int rc = cmd_server_size(fd, NULL, &n, err, errlen);

    if (rc || !n)
        return rc;
    snprintf(err, errlen, "%u instance%s still running: end %s first (edm stat lists them)", n,
             n == 1 ? " is" : "s are", n == 1 ? "it" : "them");
    return -EBUSY;
}

/* Tells one rank to stop, or asks it whether it would. 0 also when none is there: then not told. */
static int tell(const struct edm_config *c, struct local_rank *r, bool ask)
{
    const struct edm_client_call call = {.type = EDM_MSG_STOP};
    char err[CMD_ERR_MAX];
    int fd = edm_client_connect(c, false, err, sizeof(err)), rc;

    if (fd == -ENOENT || fd == -ECONNREFUSED) {
        if (!ask)
            server_sweep(c->socket);
        return 0;
    }
    if (fd < 0)
        return cmd_fail("%s", err);
    r->told = true;
    r->pid = edm_client_peer(fd);
    if (r->pid > 0)
        r->pidfd = (int)syscall(SYS_pidfd_open, r->pid, 0);
    rc =
        ask ? check_idle(fd, err, sizeof(err)) : edm_client_call(fd, &call, NULL, err, sizeof(err));
    close(fd);
    if (rc == -ECONNRESET) /* it may be quicker than its answer */
        rc = 0;
    return rc ? cmd_fail("%s", err) : 0;
}

/* Is it the socket of a rank: the one of the settings, or that with a number? */
static bool is_rank_socket(const char *path, size_t base)
{
    const char *p = path + base;

    return !*p || (*p == '.' && p[1] && !p[1 + strspn(p + 1, "0123456789")]);
}

struct local_rank *server_find_ranks(const char *socket, unsigned *n)
{
    char pattern[EDM_CONFIG_PATH_MAX + 8];
    struct local_rank *ranks;
    glob_t g = {0};

    snprintf(pattern, sizeof(pattern), "%s.[0-9]*", socket);
    if (glob(pattern, GLOB_NOSORT, NULL, &g))
        g.gl_pathc = 0;
    ranks = calloc(g.gl_pathc + 1, sizeof(*ranks));
    if (!ranks)
        exit(cmd_fail("out of memory"));
    *n = 1;
    snprintf(ranks[0].socket, sizeof(ranks[0].socket), "%s", socket);
    for (size_t i = 0; i < g.gl_pathc; i++)
        if (is_rank_socket(g.gl_pathv[i], strlen(socket)) &&
            strlen(g.gl_pathv[i]) < EDM_CONFIG_SOCKET_MAX)
            strcpy(ranks[(*n)++].socket, g.gl_pathv[i]);
    globfree(&g);
    for (unsigned i = 0; i < *n; i++)
        ranks[i].pidfd = -1;
    return ranks;
}

/* All are told before any is waited for: they agree on the end among themselves. */
static int stop_here(const struct edm_config *c, bool ask, bool *ran)
{
    int64_t end = now_ms() + STOP_LIMIT_MS;
    struct local_rank *ranks;
    unsigned n;
    int rc = 0;

    *ran = false;
    ranks = server_find_ranks(c->socket, &n);
    for (unsigned i = 0; i < n; i++) {
        rc |= tell(server_with_socket(c, ranks[i].socket), &ranks[i], ask);
        *ran |= ranks[i].told;
    }
    for (unsigned i = 0; i < n && !ask && !rc; i++)
        if (ranks[i].told &&
            !server_wait_gone(server_with_socket(c, ranks[i].socket), ranks[i].pidfd, end))
            rc = cmd_fail("the server (pid %d) did not end in %d s: see its log", (int)ranks[i].pid,
                          STOP_LIMIT_MS / 1000);
    if (!ask && !rc)
        restart_end_keepers(c, ranks, n);
    for (unsigned i = 0; i < n; i++)
        if (ranks[i].pidfd >= 0)
            close(ranks[i].pidfd);
    free(ranks);
    return rc;
}

/* ---- stop of a job ---- */

static bool is_gone(const struct hosts_result *r)
{
    return r->status == -EHOSTUNREACH || r->status == -ETIMEDOUT;
}

static void say_gone(const char *host, const struct hosts_result *r)
{
    cmd_fail("%s does not answer%s%s: its ranks are not stopped: `edm stop --here` there does it",
             host, *r->output ? ": " : "", r->output);
}

/* One line of stop on all hosts; the others' words about what went wrong are passed on. */
static int stop_on(const struct hosts *h, const char *socket, bool ask, struct hosts_result *res)
{
    char line[LINE_MAX_BYTES];
    int rc = server_here_line(socket, ask ? HERE_ASK : HERE_STOP, 0, line, sizeof(line));

    if (rc)
        return rc;
    hosts_run(h, line, ask ? ASK_LIMIT_S : HOST_LIMIT_S, res);
    for (unsigned i = 0; i < h->n; i++) {
        if (is_gone(&res[i]) || res[i].status == 0)
            continue;
        rc = cmd_fail("%s: %s", h->names[i],
                      strncmp(res[i].output, "edm: ", 5) ? res[i].output : res[i].output + 5);
    }
    return rc;
}

/* Everywhere or nowhere: all are asked first. A host that is gone holds nobody up. */
static int stop_hosts(const struct hosts *all, const char *socket)
{
    struct hosts_result *res = calloc(HOSTS_MAX, sizeof(*res));
    struct hosts alive = {.n = 0};
    int rc;

    if (!res)
        return cmd_fail("out of memory");
    rc = stop_on(all, socket, true, res);
    if (rc)
        goto out;
    for (unsigned i = 0; i < all->n; i++) {
        if (is_gone(&res[i])) {
            say_gone(all->names[i], &res[i]);
            rc = CMD_FAILED;
        } else {
            alive.names[alive.n++] = all->names[i];
        }
    }
    rc |= stop_on(&alive, socket, false, res);
    for (unsigned i = 0; i < alive.n; i++) {
        if (is_gone(&res[i])) {
            say_gone(alive.names[i], &res[i]);
            rc = CMD_FAILED;
        }
    }
out:
    free(res);
    return rc;
}

/* With hosts that are gone the job ends all the same; with ranks that go on, it stays known. */
static int stop_job(struct job *j, const struct edm_config *c, bool *ran)
{
    char err[CMD_ERR_MAX];
    bool any;
    int rc;

    *ran = true;
    rc = j->hosts.n ? stop_hosts(&j->hosts, c->socket) : stop_here(c, false, &any);
    if (rc && edm_client_runs(c, false, err, sizeof(err)) != 0)
        return rc;
    job_end_mpiexec(j);
    return rc;
}

bool server_is_part(const struct edm_config *c)
{
    char err[CMD_ERR_MAX];
    int fd = edm_client_connect(c, false, err, sizeof(err));
    unsigned ranks = 1;

    if (fd < 0)
        return false;
    if (cmd_server_size(fd, &ranks, NULL, err, sizeof(err)))
        ranks = 1;
    close(fd);
    return ranks > 1;
}

/* 0 also when none runs, with *ran saying which. */
static int stop_server(const struct server_args *a, bool *ran)
{
    const struct edm_config *c = &a->s.config;
    char err[CMD_ERR_MAX];
    struct job j;
    int rc;

    if (a->here)
        return stop_here(c, a->mode == HERE_ASK, ran);
    if (job_open(&j, c->socket, false, err, sizeof(err)))
        return cmd_fail("%s", err);
    if (job_is_known(&j)) {
        rc = stop_job(&j, c, ran);
    } else if (server_is_part(c)) {
        return cmd_fail("this rank belongs to a server that another host started: `edm stop` "
                        "there, or `edm stop --here` for the ranks of this host alone");
    } else {
        rc = stop_here(c, false, ran);
    }
    job_close(&j, !job_mpiexec_runs(&j));
    return rc;
}

static int stop_main(const struct cmd *self, int argc, char **argv)
{
    struct server_args a = {.ranks = 0};
    bool ran = false;
    int rc = parse_stop(self, &a, argc, argv);

    if (!rc && a.here && a.mode > HERE_ASK)
        rc = restart_here(&a.s.config, a.mode, a.first);
    else if (!rc)
        rc = stop_server(&a, &ran);
    if (!rc && a.mode == HERE_STOP)
        printf(ran ? "the server at %s stopped\n" : "no server runs at %s\n", a.s.config.socket);
    cmd_settings_fini(&a.s);
    return rc;
}

/* ---- start ---- */

/* Can every host be reached, and has it this EDM? Says what is wrong before mpiexec can muddle it.
 */
static int check_hosts(const struct hosts *h)
{
    struct hosts_result *res = calloc(HOSTS_MAX, sizeof(*res));
    char dms[PATH_MAX], line[LINE_MAX_BYTES] = "", err[CMD_ERR_MAX];
    int rc = 0;

    if (!res || edm_launch_find_dms(dms, sizeof(dms), err, sizeof(err)) ||
        hosts_quote(line, sizeof(line) - 16, dms)) {
        free(res);
        return cmd_fail("edm-dms is not found");
    }
    strcat(line, " --version");
    hosts_run(h, line, ASK_LIMIT_S, res);
    for (unsigned i = 0; i < h->n; i++) {
        if (cmd_host_verdict(&res[i], dms, err, sizeof(err)))
            rc = cmd_fail("%s: %s", h->names[i], err);
    }
    free(res);
    return rc;
}

static void say_rank(unsigned rank, const struct job_rank *r)
{
    printf("rank %u on %s serves at %s\n", rank, r->host, r->socket);
    fflush(stdout);
}

static int make_folder(const char *socket)
{
    char dir[EDM_CONFIG_PATH_MAX], *folder;

    snprintf(dir, sizeof(dir), "%s", socket);
    folder = dirname(dir);
    if (mkdir(folder, 0700) && errno != EEXIST)
        return cmd_fail("%s: cannot make the folder: %s: make it, or set `socket` to another path",
                        folder, strerror(errno));
    return 0;
}

static bool has_local(const struct hosts *h)
{
    for (unsigned i = 0; i < h->n; i++)
        if (hosts_is_local(h->names[i]))
            return true;
    return h->n == 0;
}

/* Also one that a program started, which would end with its last program. */
static void say_runs(const struct server_args *a)
{
    const struct edm_config *c = &a->s.config;
    const struct edm_client_call stay = {.type = EDM_MSG_STAY};
    char err[CMD_ERR_MAX];
    unsigned dead = 0;
    int fd = edm_client_connect(c, false, err, sizeof(err));

    if (fd >= 0) {
        edm_client_call(fd, &stay, NULL, err, sizeof(err)); /* another user's is not ours to rule */
        close(fd);
    }
    fd = edm_client_connect(c, false, err, sizeof(err));
    if (fd >= 0) {
        cmd_server_dead(fd, &dead, err, sizeof(err));
        close(fd);
    }
    printf("the server at %s already runs", c->socket);
    if (dead)
        printf(", but %u of its ranks died: `edm restart` brings %s back", dead,
               dead == 1 ? "it" : "them");
    else if (a->s.request.noptions || a->wants_ranks)
        printf(": with other options, perhaps: `edm restart` with these changes it");
    putchar('\n');
}

/* Says so and gives true when there is nothing to start; *rc is then the exit status. What a job
 * whose ranks have all died left is taken over by those that start. */
static bool runs_already(const struct server_args *a, struct job *j, int *rc)
{
    const struct edm_config *c = &a->s.config;
    char err[CMD_ERR_MAX];
    int runs = edm_client_runs(c, false, err, sizeof(err));

    *rc = 0;
    if (runs < 0) {
        *rc = cmd_fail("%s", err);
    } else if (runs > 0) {
        say_runs(a);
    } else if (!job_is_known(j)) {
        return false;
    } else if (job_mpiexec_runs(j) && !has_local(&j->hosts)) {
        printf("a server started here already runs, on other hosts\n");
    } else if (restart_nobody_lives(j, c)) {
        job_end_mpiexec(j);
        return false;
    } else {
        *rc = cmd_fail("a server of %u ranks was started here and not stopped, and lost ranks: "
                       "`edm restart` brings them back, `edm stop` ends the others",
                       j->ranks);
    }
    return true;
}

/* Ranks that served already are ended, as if killed: what they took over waits for the next start.
 * What went wrong is said; a host that does not answer now is no news. */
static void undo_start(const struct job *j, const struct edm_config *c)
{
    struct hosts_result *res = calloc(HOSTS_MAX, sizeof(*res));
    char line[LINE_MAX_BYTES];

    if (!j->hosts.n)
        restart_here(c, HERE_HAND_OVER, 0);
    else if (res && !server_here_line(c->socket, HERE_HAND_OVER, 0, line, sizeof(line)))
        hosts_run(&j->hosts, line, ASK_LIMIT_S, res);
    free(res);
}

static int start_ranks(const struct server_args *a, struct job *j)
{
    const struct edm_config *c = &a->s.config;
    int64_t since = now_ms();
    char err[CMD_ERR_MAX];
    int rc = check_hosts(&a->hosts);

    if (rc)
        return rc;
    j->ranks = a->ranks;
    hosts_copy(&j->hosts, &a->hosts);
    rc = job_start(j, c, isatty(1) ? say_rank : NULL, err, sizeof(err));
    if (!rc) {
        printf("the server serves at %s: %u rank%s on %u host%s, %.1f s\n", c->socket, j->ranks,
               j->ranks == 1 ? "" : "s", j->hosts.n ? j->hosts.n : 1, j->hosts.n > 1 ? "s" : "",
               (double)(now_ms() - since) / 1000);
        return 0;
    }
    cmd_fail("%s", err);
    undo_start(j, c);
    return CMD_FAILED;
}

/* The ranks of a host have sockets with numbers. */
static int check_socket(const struct server_args *a)
{
    unsigned hosts = a->hosts.n ? a->hosts.n : 1;

    if (a->ranks <= hosts || strlen(a->s.config.socket) + strlen(".1023") < EDM_CONFIG_SOCKET_MAX)
        return 0;
    return cmd_fail(
        "socket: \"%s\" is too long for several ranks on a host: at most %zu characters",
        a->s.config.socket, EDM_CONFIG_SOCKET_MAX - 1 - strlen(".1023"));
}

/* One rank here needs no job, but there may be one already. */
static int start_any(struct server_args *a, struct job *j)
{
    char err[CMD_ERR_MAX];
    int rc;

    if (runs_already(a, j, &rc))
        return rc;
    if (a->hosts.n || a->ranks > 1)
        return start_ranks(a, j);
    if (edm_launch(&a->s.request, false, err, sizeof(err)))
        return cmd_fail("%s", err);
    printf("the server serves at %s\n", a->s.config.socket);
    return 0;
}

int server_start(struct server_args *a)
{
    char err[CMD_ERR_MAX];
    struct job j;
    bool several, known;
    int rc = server_settle(a);

    if (!rc)
        rc = check_socket(a);
    several = a->hosts.n || a->ranks > 1;
    if (rc || (several && (rc = make_folder(a->s.config.socket))))
        return rc;
    if (job_open(&j, a->s.config.socket, several, err, sizeof(err)))
        return cmd_fail("%s", err);
    known = job_is_known(&j);
    rc = start_any(a, &j);
    job_close(&j, !known && (rc || !job_is_known(&j)));
    return rc;
}

static int start_main(const struct cmd *self, int argc, char **argv)
{
    struct server_args a = {.ranks = 0};
    int rc = server_parse_start(self, &a, argc, argv);

    if (!rc)
        rc = restart_keep_size(&a);
    if (!rc)
        rc = server_start(&a);
    cmd_settings_fini(&a.s);
    return rc;
}

const struct cmd cmd_start = {
    .name = "start",
    .run = start_main,
    .usage = " [-n RANKS] [--hosts H1,H2...] [-c FILE] [-o KEY=VALUE]...",
    .help = "start the server and return when it serves\n\n" SERVER_OPTIONS
            "\nRanks go to the hosts in turn, by ssh, which must ask for no password; EDM must be\n"
            "at the same path everywhere. Every rank gets the settings from here. The first rank\n"
            "of a host listens on `socket`, the next on `socket`.1 and so on.\n",
};

const struct cmd cmd_stop = {
    .name = "stop",
    .run = stop_main,
    .usage = " [--here [--ask]] [-c FILE] [-o KEY=VALUE]...",
    .help = "stop the server and return when it has ended\n\n"
            "  --here        only the ranks of this host, whoever started them\n"
            "  --ask         stop nothing: say whether they would\n"
            "  -c FILE       read settings from FILE and no other\n"
            "  -o KEY=VALUE  any setting; socket says which server\n"
            "\nOn the host where `edm start` was: stops the ranks of all hosts.\n",
};
