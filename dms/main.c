/* edm-dms: one rank of the distributed memory server. */
#include "../config/config.h"
#include "../config/log.h"
#include "copies.h"
#include "die.h"
#include "holder.h"
#include "homes.h"
#include "instance.h"
#include "job.h"
#include "keeper.h"
#include "peer.h"
#include "server.h"
#include "store.h"
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <libgen.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXIT_EDM 125
#define OPTIONS_MAX 64
/* For MPI_Init, which waits for ranks that will never come; who waits for us all gives up first. */
#define RANK_START_LIMIT_S (JOB_START_LIMIT_S + 10)
#define BYE_SECONDS 10.0 /* without any page going: then a rank that ends waits no longer */

struct arguments {
    const char *file, *socket;
    const char *options[OPTIONS_MAX];
    char socket_option[EDM_CONFIG_PATH_MAX + 16];
    size_t noptions;
    bool daemon, is_auto, is_rank;
};

static int ready_fd = -1;   /* to the process that started the daemon */
static int announcing = -1; /* this rank's number, while `edm start` listens to its output */

static const char usage[] =
    "usage: edm-dms [-c FILE] [-o KEY=VALUE]... [--socket PATH] [--daemon] [--auto]\n"
    "One rank of the distributed memory server; `edm start` starts it for you.\n"
    "  -c, --config FILE   settings from FILE\n"
    "  -o KEY=VALUE        one setting (edm config lists them)\n"
    "  --socket PATH       short for -o socket=PATH\n"
    "  --daemon            go to the background; returns when it serves\n"
    "  --auto              end some seconds after the last program\n"
    "  --rank              be one rank of those that mpiexec starts\n"
    "  --help, --version\n";

/* One line to `edm start` (job.c reads it), through mpiexec. */
static void announce(const char *word, const char *text)
{
    char line[2300], host[64] = "";
    gethostname(host, sizeof(host) - 1);
    int n = snprintf(line, sizeof(line), "@edm %d %s %s %s\n", announcing, host, word, text);
    (void)!write(1, line, (size_t)n);
}

/* Says what is wrong where the user sees it, and ends. */
static void fail(const char *text)
{
    char line[2048];
    int n = snprintf(line, sizeof(line), "edm: %s\n", text);
    if (announcing >= 0) {
        announce("failed", text);
        edm_error("%s", text);
    } else if (ready_fd >= 0) {
        (void)!write(ready_fd, line, (size_t)n);
        edm_error("%s", text);
    } else {
        (void)!write(2, line, (size_t)n);
    }
    _exit(EXIT_EDM);
}

static void parse(int argc, char **argv, struct arguments *a)
{
    static const struct option longs[] = {
        {"config", required_argument, NULL, 'c'}, {"socket", required_argument, NULL, 's'},
        {"daemon", no_argument, NULL, 'd'},       {"auto", no_argument, NULL, 'a'},
        {"rank", no_argument, NULL, 'r'},         {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'v'},      {NULL, 0, NULL, 0}};
    int c;
    while ((c = getopt_long(argc, argv, "c:o:h", longs, NULL)) != -1) {
        if ((c == 'o' || c == 's') && a->noptions == OPTIONS_MAX - 1)
            fail("too many -o options: use a file");
        if (c == 'c') {
            a->file = optarg;
        } else if (c == 'o') {
            a->options[a->noptions++] = optarg;
        } else if (c == 's') {
            snprintf(a->socket_option, sizeof(a->socket_option), "socket=%s", optarg);
            a->options[a->noptions++] = a->socket_option;
        } else if (c == 'd') {
            a->daemon = true;
        } else if (c == 'a') {
            a->is_auto = true;
        } else if (c == 'r') {
            a->is_rank = true;
        } else if (c == 'v') {
            printf("edm-dms %s\n", EDM_VERSION);
            exit(0);
        } else {
            fputs(usage, c == 'h' ? stdout : stderr);
            exit(c == 'h' ? 0 : EXIT_EDM);
        }
    }
    if (optind < argc)
        fail("no arguments besides options: edm-dms --help");
}

/* Is somebody answering on the socket? Waits up to 10 s for a server that is just starting. */
static bool somebody_serves(const char *path)
{
    for (int i = 0; i < 200; i++) {
        if (server_answers(path, 1000))
            return true;
        usleep(50000);
    }
    return false;
}

/* The process that the user started: waits for the daemon's word. */
static void wait_ready(int fd, pid_t child)
{
    char buf[2048];
    ssize_t n, have = 0;
    int status;
    while (have < (ssize_t)sizeof(buf) &&
           (n = read(fd, buf + have, sizeof(buf) - (size_t)have)) != 0) {
        if (n < 0 && errno != EINTR)
            break;
        have += n > 0 ? n : 0;
    }
    waitpid(child, &status, 0);
    if (have == 1 && buf[0] == 0)
        _exit(0);
    if (have > 0)
        (void)!write(2, buf, (size_t)have);
    else
        (void)!write(2, "edm: the server ended at its start: see its log\n", 48);
    _exit(EXIT_EDM);
}

static bool own_log; /* opened when server_open has seen whose folder it is */

/* A server without a terminal logs beside its socket. */
static void default_log(struct edm_config *c, int k)
{
    char dir[EDM_CONFIG_PATH_MAX], number[16] = "";
    if (c->log_file[0])
        return;
    own_log = true;
    snprintf(dir, sizeof(dir), "%s", c->socket);
    if (k)
        snprintf(number, sizeof(number), ".%d", k);
    snprintf(c->log_file, sizeof(c->log_file), "%s/dms.log%s", dirname(dir), number);
}

/* From 3 on; fd may be none of them. */
static void close_all_but(int fd)
{
    if (fd > 3)
        close_range(3, (unsigned)fd - 1, 0);
    close_range(fd < 3 ? 3 : (unsigned)fd + 1, ~0u, 0);
}

/* Nobody's child, own session, no streams; log in a file beside the socket. */
static void daemonize(struct edm_config *c)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC))
        fail("out of descriptors");
    pid_t pid = fork();
    if (pid < 0)
        fail("cannot fork");
    if (pid > 0) {
        close(fds[1]);
        wait_ready(fds[0], pid);
    }
    close(fds[0]);
    setsid();
    pid = fork();
    if (pid != 0)
        _exit(0);
    ready_fd = fcntl(fds[1], F_DUPFD_CLOEXEC, 3);
    int null = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3; i++)
        dup2(null, i);
    close_all_but(ready_fd);
    if (chdir("/"))
        fail("cannot change to /");
    default_log(c, 0);
}

static int number_from(const char *variable, int otherwise)
{
    const char *text = getenv(variable);
    return text ? atoi(text) : otherwise;
}

/* Of the descriptors that hydra leaves open MPI needs one; the others are its connections, which
 * must not outlive it here. No child needs any. */
static void drop_inherited(void)
{
    int pmi = number_from("PMI_FD", -1);
    close_all_but(pmi);
    if (pmi > 2)
        fcntl(pmi, F_SETFD, FD_CLOEXEC);
}

/*
 * What hydra does to its children must not reach a rank: SIGUSR1 when another rank died, SIGKILL
 * when mpiexec or the way to it is gone. So its child is this process, which only waits for the
 * rank, and the rank has a session of its own. A rank that does not serve yet does go with it.
 */
static void become_rank(void)
{
    int status = 0;
    signal(SIGUSR1, SIG_IGN);
    drop_inherited();
    pid_t parent = getpid(), pid = fork();
    if (pid < 0)
        fail("cannot fork");
    if (pid > 0) {
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
        if (WIFSIGNALED(status)) /* else it has said why; nobody listens when it was up */
            announce("failed", "it died of a signal: see its log");
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    }
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(EXIT_EDM);
    alarm(RANK_START_LIMIT_S);
}

/* Several ranks on a host: the first has the socket of the settings, the k-th .k behind it. */
static void settle_rank(struct edm_config *c)
{
    default_log(c, number_from("MPI_LOCALRANKID", 0));
    if (chdir("/"))
        fail("cannot change to /");
}

/* Ranks of one host take sockets of their own: SOCKET, SOCKET.1, ... */
static void own_socket(struct edm_config *c)
{
    int k = number_from("MPI_LOCALRANKID", 0);
    size_t len = strlen(c->socket);
    if (k && (size_t)snprintf(c->socket + len, sizeof(c->socket) - len, ".%d", k) >=
                 sizeof(c->socket) - len)
        fail("socket: the path is too long for several ranks on a host: at most 95 characters");
}

/* From here on it lives without its parent, mpiexec and their streams. */
static void leave_parent(const struct edm_config *c)
{
    char text[EDM_CONFIG_PATH_MAX + 32];
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    alarm(0);
    prctl(PR_SET_PDEATHSIG, 0);
    snprintf(text, sizeof(text), "%d %s", getpid(), c->socket);
    announce("ready", text);
    announcing = -1;
    for (int i = 0; i < 3; i++)
        dup2(null, i);
    close(null);
}

static void say_ready(const struct edm_config *c)
{
    char zero = 0;
    if (announcing >= 0)
        leave_parent(c);
    if (ready_fd < 0)
        return;
    (void)!write(ready_fd, &zero, 1);
    close(ready_fd);
    ready_fd = -1;
}

/* KERNEL.md 22: a fork whose event finds no free descriptor hangs. */
static void raise_limits(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0) {
        r.rlim_cur = r.rlim_max;
        setrlimit(RLIMIT_NOFILE, &r);
    }
    struct rlimit endless = {RLIM_INFINITY, RLIM_INFINITY}; /* a program's limit, that started us */
    if (setrlimit(RLIMIT_FSIZE, &endless) && getrlimit(RLIMIT_FSIZE, &r) == 0) {
        r.rlim_cur = r.rlim_max;
        setrlimit(RLIMIT_FSIZE, &r);
    }
    signal(SIGXFSZ, SIG_IGN); /* the error is enough */
    signal(SIGPIPE, SIG_IGN);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL); /* read from a signalfd */
    prctl(PR_SET_DUMPABLE, 1);
}

static void on_room(void *arg, bool full)
{
    instance_stores_full(full);
}

/* Of the file system of path; when it is made later, of its nearest parent. */
static struct statvfs disk_of(const char *path)
{
    struct statvfs st = {0};
    char dir[512];
    snprintf(dir, sizeof(dir), "%s", path);
    while (statvfs(dir, &st)) {
        char *slash = strrchr(dir, '/');
        if (!slash || !dir[1])
            break;
        slash[slash == dir] = 0;
    }
    return st;
}

static uint64_t disk_free(const char *path)
{
    struct statvfs st = disk_of(path);
    return (uint64_t)st.f_bavail * st.f_frsize;
}

static bool disk_blocks(const char *path)
{
    return disk_of(path).f_blocks > 0;
}

/* Of a file system that keeps nothing a share is nothing: better said than found out. */
static void check_disk(const struct edm_config *c, uint64_t bytes)
{
    char err[sizeof(c->disk_path) + 120];
    if (!c->disk_store.permille || bytes || disk_blocks(c->disk_path))
        return;
    snprintf(err, sizeof(err),
             "disk_path %s: no files are kept there: set another, or disk_store to 0",
             c->disk_path);
    fail(err);
}

/* The store, and the instances of a server that was killed. */
static void open_all(const struct edm_config *c)
{
    char err[300];
    struct store_options o = {.compression = c->compression, .on_room = on_room};
    o.memory_bytes = edm_size_bytes(c->memory_store, edm_memory_total());
    o.disk_bytes = edm_size_bytes(c->disk_store, disk_free(c->disk_path));
    check_disk(c, o.disk_bytes);
    if (o.memory_bytes > edm_memory_total())
        edm_warn("memory_store is %lu MiB, more than the %lu MiB of memory: it will run out",
                 o.memory_bytes >> 20, edm_memory_total() >> 20);
    snprintf(o.disk_path, sizeof(o.disk_path), "%s", c->disk_path);
    if (instance_module_init(o.memory_bytes))
        fail("cannot start threads");
    if (copies_init(on_room, NULL))
        fail("out of memory");
    if (recover_all(c->socket, &o, err, sizeof(err)))
        fail(err);
}

/* Requests between ranks end up with those who keep and those who own pages. */
static int join_ranks(const struct edm_config *c)
{
    static const struct peer_ops ops = {holder_serve, copies_rank_lost, copies_rank_leaves};
    struct rank_hello self = {0};
    struct rank_stat stat;
    int err = holder_init();
    if (!err)
        err = fetch_slow_init();
    if (err)
        return err;
    self.identity = homes_identity();
    holder_stat(peer_rank(), &stat);
    self.capacity = stat.capacity;
    self.used = stat.used;
    err = peer_start(&ops, &self, c->request_timeout);
    return err ? err : copies_start();
}

int main(int argc, char **argv)
{
    struct arguments a = {0};
    static struct edm_config config;
    char err[2000];
    parse(argc, argv, &a);
    peer_environment(a.daemon || !getenv("PMI_RANK"), argv);
    prctl(PR_SET_NAME, "edm-dms");
    if (a.is_rank) {
        announcing = number_from("PMI_RANK", 0);
        become_rank();
    }
    struct edm_config_request req = {a.file, a.options, a.noptions};
    if (edm_config_load(&config, &req, err, sizeof(err)))
        fail(err);
    if (a.daemon)
        daemonize(&config);
    own_socket(&config);
    if (a.is_rank)
        settle_rank(&config);
    const char *file = own_log ? "" : config.log_file;
    int logs = edm_log_init("edm-dms", config.log_level, file);
    die_init();
    raise_limits();
    struct server_options opt = {&config, a.is_auto};
    int e = server_open(&opt, err, sizeof(err));
    if (logs || (own_log && !e)) /* its folder may be new */
        logs = edm_log_init("edm-dms", config.log_level, config.log_file);
    if (e == -EADDRINUSE && a.daemon && somebody_serves(config.socket)) {
        say_ready(&config);
        return 0;
    }
    if (!e && logs) {
        snprintf(err, sizeof(err), "log_file = \"%.200s\": %s: give a file that can be written",
                 config.log_file, strerror(-logs));
        e = logs;
        unlink(config.socket);
    }
    if (e)
        fail(err);
    if (keeper_start(config.socket))
        fail("the keeper cannot be started: out of processes or descriptors");
    keeper_state()->kept_ms = config.on_server_lost == EDM_LOST_WAIT
                                  ? UINT64_MAX
                                  : (uint64_t)(config.reconnect_timeout * 1e3);
    if (peer_init(err, sizeof(err)))
        fail(err);
    control_init();
    open_all(&config);
    if (join_ranks(&config))
        fail("cannot start threads");
    recover_go_on();
    instance_rebalance();
    say_ready(&config);
    edm_info("serving on %s", config.socket);
    server_run();
    server_close();
    uint64_t left = peer_bye(holder_pages, BYE_SECONDS);
    if (left)
        edm_error("ends with %lu pages of other ranks, which they did not take back", left);
    fetch_slow_fini();
    store_fini();
    peer_fini();
    return 0;
}
