#include "job.h"
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LOCK_LIMIT_MS 150000 /* a start or a stop that is under way */
#define END_LIMIT_MS 3000    /* for mpiexec to end by itself, then on SIGTERM */
#define ARGS_MAX 160

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void short_pause(void)
{
    const struct timespec t = {.tv_nsec = 20 * 1000000};

    nanosleep(&t, NULL);
}

/* ---- the file ---- */

static void read_file(struct job *j)
{
    char text[EDM_CONFIG_HOSTS_MAX + 256], hosts[EDM_CONFIG_HOSTS_MAX] = "", err[256];
    ssize_t n = pread(j->fd, text, sizeof(text) - 1, 0);
    int pid = 0;

    text[n > 0 ? n : 0] = '\0';
    if (sscanf(text, "ranks %u\nmpiexec %d %" SCNu64 "\nhosts %1023[^\n]", &j->ranks, &pid,
               &j->started, hosts) < 3 ||
        hosts_parse(&j->hosts, hosts, err, sizeof(err)))
        j->ranks = 0; /* cut off in the middle of writing: nothing was started then */
    j->mpiexec = pid;
}

int job_save(const struct job *j)
{
    char text[EDM_CONFIG_HOSTS_MAX + 256], list[EDM_CONFIG_HOSTS_MAX];
    int n;

    hosts_join(&j->hosts, list);
    n = snprintf(text, sizeof(text), "ranks %u\nmpiexec %d %" PRIu64 "\nhosts %s\n", j->ranks,
                 (int)j->mpiexec, j->started, list);
    if (ftruncate(j->fd, 0) || pwrite(j->fd, text, (size_t)n, 0) != n)
        return -EIO;
    return 0;
}

static bool same_file(int fd, const char *path)
{
    struct stat a, b;

    return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_ino == b.st_ino &&
           a.st_dev == b.st_dev;
}

int job_open(struct job *j, const char *socket, bool create, char *err, size_t errlen)
{
    int64_t end = now_ms() + LOCK_LIMIT_MS;

    *j = (struct job){.fd = -1};
    snprintf(j->path, sizeof(j->path), "%s.job", socket);
    while (now_ms() < end) {
        if (j->fd < 0)
            j->fd = open(j->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | (create ? O_CREAT : 0), 0600);
        if (j->fd < 0 && errno == ENOENT && !create)
            return 0;
        if (j->fd < 0) {
            int rc = -errno;
            snprintf(err, errlen, "%s: %s: the server must be yours: set `socket` to your own",
                     j->path, strerror(-rc));
            return rc;
        }
        if (flock(j->fd, LOCK_EX | LOCK_NB) == 0) {
            if (same_file(j->fd, j->path)) {
                read_file(j);
                return 0;
            }
            close(j->fd); /* its owner has just removed it */
            j->fd = -1;
            continue;
        }
        short_pause();
    }
    close(j->fd);
    j->fd = -1;
    snprintf(err, errlen, "%s: another edm start or stop is at it and does not end", j->path);
    return -EBUSY;
}

void job_close(struct job *j, bool forget)
{
    if (j->fd < 0)
        return;
    if (forget)
        unlink(j->path);
    close(j->fd);
    j->fd = -1;
}

bool job_is_known(const struct job *j)
{
    return j->fd >= 0 && j->ranks > 0;
}

/* ---- mpiexec as a process ---- */

/* Start time of a process in clock ticks since boot; 0 when there is none, or only its corpse. */
static uint64_t start_time(pid_t pid)
{
    char path[64], text[1024], *p;
    uint64_t t = 0;
    ssize_t n;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    n = read(fd, text, sizeof(text) - 1);
    close(fd);
    text[n > 0 ? n : 0] = '\0';
    p = strrchr(text, ')'); /* the name may have blanks */
    if (!p || p[1] != ' ' || p[2] == 'Z')
        return 0;
    for (int field = 2; field < 22 && p; field++)
        p = strchr(p + 1, ' ');
    if (p)
        sscanf(p, "%" SCNu64, &t);
    return t;
}

bool job_mpiexec_runs(const struct job *j)
{
    return j->mpiexec > 0 && j->started && start_time(j->mpiexec) == j->started;
}

static bool mpiexec_ended(const struct job *j, int limit_ms)
{
    int64_t end = now_ms() + limit_ms;

    while (job_mpiexec_runs(j)) {
        if (now_ms() >= end)
            return false;
        short_pause();
    }
    return true;
}

void job_end_mpiexec(struct job *j)
{
    if (mpiexec_ended(j, END_LIMIT_MS))
        return;
    kill(j->mpiexec, SIGTERM);
    if (mpiexec_ended(j, END_LIMIT_MS))
        return;
    kill(-j->mpiexec, SIGKILL); /* and its ssh's */
    mpiexec_ended(j, END_LIMIT_MS);
}

/* ---- starting ---- */

struct arguments {
    char *v[ARGS_MAX];
    unsigned n;
};

static void add(struct arguments *a, const char *word)
{
    if (a->n < ARGS_MAX - 1)
        a->v[a->n++] = strdup(word);
}

/* Every setting goes along, so that all ranks have the same whatever files their hosts have. */
static void add_settings(struct arguments *a, const struct edm_config *c)
{
    char option[1400], value[1300];

    for (size_t i = 0; i < edm_options_count; i++) {
        if (edm_config_value(c, i, value, sizeof(value)))
            continue;
        snprintf(option, sizeof(option), "%s=%s", edm_options[i].key, value);
        add(a, "-o");
        add(a, option);
    }
}

static void add_hosts(struct arguments *a, const struct job *j, const char *own)
{
    char list[EDM_CONFIG_HOSTS_MAX];

    hosts_join(&j->hosts, list);
    add(a, "-launcher");
    add(a, "ssh");
    if (strcmp(hosts_launcher(), "ssh") != 0) {
        add(a, "-launcher-exec");
        add(a, hosts_launcher());
    }
    if (*own) {
        add(a, "-localhost");
        add(a, own);
    }
    add(a, "-hosts");
    add(a, list);
    add(a, "-ppn");
    add(a, "1");
}

static void run_mpiexec(const struct job *j, const struct edm_config *c, const char *dms,
                        const char *own, int log)
{
    struct arguments a = {.n = 0};
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    const char *ports = getenv("MPIEXEC_PORT_RANGE");
    char ranks[16];

    setsid();
    dup2(null, 0);
    dup2(log, 1);
    dup2(log, 2);
    snprintf(ranks, sizeof(ranks), "%u", j->ranks);
    add(&a, "mpiexec");
    add(&a, "-disable-auto-cleanup");
    if (j->hosts.n)
        add_hosts(&a, j, own);
    add(&a, "-wdir");
    add(&a, "/");
    add(&a, "-n");
    add(&a, ranks);
    add(&a, dms);
    add(&a, "--rank");
    add(&a, "-c"); /* no file: the settings are all there */
    add(&a, "/dev/null");
    add_settings(&a, c);
    ports = ports ? strdup(ports) : NULL;
    edm_launch_clean_environment();
    if (ports) /* the one thing of a user's that is about any mpiexec: what the firewall lets in */
        setenv("MPIEXEC_PORT_RANGE", ports, 1);
    setenv("HYDRA_LAUNCHER_EXTRA_ARGS", HOSTS_SSH_OPTIONS, 1);
    execvp("mpiexec", a.v);
    dprintf(2, "mpiexec: %s: install Debian's mpich\n", strerror(errno));
    _exit(125);
}

/* What ranks and mpiexec say, in SOCKET.mpiexec.log. */
static int open_log(const struct job *j, char *path, size_t len, char *err, size_t errlen)
{
    const size_t stem = strlen(j->path) - strlen(".job");
    int fd;

    memcpy(path, j->path, stem);
    snprintf(path + stem, len - stem, ".mpiexec.log");
    unlink(path);
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        snprintf(err, errlen, "%s: %s: `socket` must be where you may make files", path,
                 strerror(errno));
    return fd < 0 ? -errno : fd;
}

struct waiting {
    struct job *j;
    job_said said;
    struct job_rank *ranks;
    unsigned nready;
    FILE *log;
    char line[1024];
    size_t have;
    char failed[1024]; /* the first rank's reason */
    char noise[512];   /* the last line that was not a rank's */
};

static const char *host_of(const struct waiting *w, unsigned rank)
{
    return w->j->hosts.n ? w->j->hosts.names[rank % w->j->hosts.n] : "this host";
}

/* "@edm RANK HOST ready PID SOCKET", "@edm RANK HOST failed TEXT"; all else is somebody else's. */
static void take_line(struct waiting *w)
{
    struct job_rank r = {0};
    unsigned rank;
    int at = 0;

    if (sscanf(w->line, "@edm %u %63s ready %d %115[^\n]", &rank, r.host, &r.pid, r.socket) == 4) {
        if (rank >= w->j->ranks || w->ranks[rank].ready)
            return;
        r.ready = true;
        w->ranks[rank] = r;
        w->nready++;
        if (w->said)
            w->said(rank, &r);
    } else if (sscanf(w->line, "@edm %u %63s failed %n", &rank, r.host, &at) == 2 && at) {
        if (!*w->failed)
            snprintf(w->failed, sizeof(w->failed), "rank %u on %s: %s", rank, host_of(w, rank),
                     w->line + at);
    } else if (*w->line) {
        snprintf(w->noise, sizeof(w->noise), "%.500s", w->line);
    }
}

/* Reads what has come; a line may come in pieces. */
static void take_log(struct waiting *w)
{
    int c;

    clearerr(w->log);
    while ((c = getc(w->log)) != EOF) {
        if (c != '\n') {
            if (w->have < sizeof(w->line) - 1)
                w->line[w->have++] = (char)c;
            continue;
        }
        w->line[w->have] = '\0';
        w->have = 0;
        take_line(w);
    }
}

/* Who is missing, for a person. */
static void say_missing(struct waiting *w, const char *what, char *err, size_t errlen)
{
    char who[300] = "";
    unsigned missing = 0;

    for (unsigned i = 0; i < w->j->ranks; i++) {
        size_t at = strlen(who);

        if (w->ranks[i].ready)
            continue;
        if (missing++ < 6)
            snprintf(who + at, sizeof(who) - at, "%srank %u on %s", at ? ", " : "", i,
                     host_of(w, i));
    }
    snprintf(err, errlen, "%s: %s%s did not serve%s%s", what, who, missing > 6 ? " and others" : "",
             *w->noise ? "; last words: " : "", w->noise);
}

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
    interrupted = sig;
}

/* Tests do not wait as long. */
static int start_limit_s(void)
{
    const char *test = getenv("EDM_TEST_START_SECONDS");
    int s = test ? atoi(test) : 0;

    return s > 0 && s < JOB_START_LIMIT_S ? s : JOB_START_LIMIT_S;
}

static int wait_ranks(struct waiting *w, char *err, size_t errlen)
{
    const int limit_s = start_limit_s();
    int64_t end = now_ms() + limit_s * 1000;
    char what[80];

    for (;;) {
        int status;
        bool ended = waitpid(w->j->mpiexec, &status, WNOHANG) > 0;

        take_log(w);
        if (*w->failed) {
            snprintf(err, errlen, "%s", w->failed);
            return -ECHILD;
        }
        if (w->nready == w->j->ranks && !ended)
            return 0;
        if (ended) {
            snprintf(what, sizeof(what), "mpiexec ended (status %d)",
                     WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
            say_missing(w, what, err, errlen);
            return -ECHILD;
        }
        if (interrupted) {
            snprintf(err, errlen, "interrupted: what was started is ended again");
            return -EINTR;
        }
        if (now_ms() >= end) {
            snprintf(what, sizeof(what), "after %d s", limit_s);
            say_missing(w, what, err, errlen);
            return -ETIMEDOUT;
        }
        short_pause();
    }
}

/* The address that remote ranks can reach mpiexec at; "" when all are here. */
static int address_for(const struct hosts *h, char *buf, size_t len, char *err, size_t errlen)
{
    *buf = '\0';
    for (unsigned i = 0; i < h->n; i++)
        if (!hosts_is_local(h->names[i]))
            return hosts_own_address(h->names[i], buf, len, err, errlen);
    return 0;
}

/* Ends what did not come up: no rank that does not serve yet outlives its mpiexec. */
static void give_up(struct job *j)
{
    if (job_mpiexec_runs(j))
        kill(j->mpiexec, SIGTERM);
    job_end_mpiexec(j);
    waitpid(j->mpiexec, NULL, WNOHANG);
}

int job_start(struct job *j, const struct edm_config *c, job_said said, char *err, size_t errlen)
{
    static const int ends[] = {SIGINT, SIGTERM, SIGHUP};
    struct waiting w = {.j = j, .said = said};
    char dms[PATH_MAX], own[64], path[EDM_CONFIG_PATH_MAX + 32];
    int rc = edm_launch_find_dms(dms, sizeof(dms), err, errlen), fd;

    if (rc || (rc = address_for(&j->hosts, own, sizeof(own), err, errlen)))
        return rc;
    fd = open_log(j, path, sizeof(path), err, errlen);
    if (fd < 0)
        return fd;
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++)
        signal(ends[i], on_signal);
    w.log = fopen(path, "re");
    w.ranks = calloc(j->ranks, sizeof(*w.ranks));
    j->mpiexec = w.log && w.ranks ? fork() : -1;
    if (j->mpiexec == 0)
        run_mpiexec(j, c, dms, own, fd);
    if (j->mpiexec < 0) {
        rc = -EAGAIN;
        snprintf(err, errlen, "no process for mpiexec: %s", strerror(errno));
    } else {
        j->started = start_time(j->mpiexec);
        rc = job_save(j);
        if (rc)
            snprintf(err, errlen, "%s: cannot be written", j->path);
        else
            rc = wait_ranks(&w, err, errlen);
        if (rc)
            give_up(j);
    }
    if (w.log)
        fclose(w.log);
    free(w.ranks);
    close(fd);
    return rc;
}
