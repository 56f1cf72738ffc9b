/* edm-dms: one rank of the distributed memory server. */
#include "../config/config.h"
#include "../config/log.h"
#include "instance.h"
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

struct arguments {
    const char *file, *socket;
    const char *options[OPTIONS_MAX];
    char socket_option[EDM_CONFIG_PATH_MAX + 16];
    size_t noptions;
    bool daemon, is_auto;
};

static int ready_fd = -1; /* to the process that started the daemon */

static const char usage[] =
    "usage: edm-dms [-c FILE] [-o KEY=VALUE]... [--socket PATH] [--daemon] [--auto]\n"
    "One rank of the distributed memory server; `edm start` starts it for you.\n"
    "  -c, --config FILE   settings from FILE\n"
    "  -o KEY=VALUE        one setting (edm config lists them)\n"
    "  --socket PATH       short for -o socket=PATH\n"
    "  --daemon            go to the background; returns when it serves\n"
    "  --auto              end some seconds after the last program\n"
    "  --help, --version\n";

/* Says what is wrong where the user sees it, and ends. */
static void fail(const char *text)
{
    char line[600];
    int n = snprintf(line, sizeof(line), "edm-dms: %s\n", text);
    if (ready_fd >= 0) {
        (void)!write(ready_fd, line, (size_t)n);
        edm_error("%s", text);
    } else {
        (void)!write(2, line, (size_t)n);
    }
    _exit(EXIT_EDM);
}

static void parse(int argc, char **argv, struct arguments *a)
{
    static const struct option longs[] = {{"config", required_argument, NULL, 'c'},
                                          {"socket", required_argument, NULL, 's'},
                                          {"daemon", no_argument, NULL, 'd'},
                                          {"auto", no_argument, NULL, 'a'},
                                          {"help", no_argument, NULL, 'h'},
                                          {"version", no_argument, NULL, 'v'},
                                          {NULL, 0, NULL, 0}};
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
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    struct edm_msg ping = {EDM_PROTO_MAGIC, EDM_PROTO_VERSION, EDM_MSG_PING, 0};
    struct timeval tv = {1, 0};
    char answer[sizeof(struct edm_msg) + sizeof(struct edm_done)];
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
    for (int i = 0; i < 200; i++) {
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
        bool ok = connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0 &&
                  send(fd, &ping, sizeof(ping), MSG_NOSIGNAL) == sizeof(ping) &&
                  recv(fd, answer, sizeof(answer), 0) >= (ssize_t)sizeof(ping);
        close(fd);
        if (ok)
            return true;
        usleep(50000);
    }
    return false;
}

/* The process that the user started: waits for the daemon's word. */
static void wait_ready(int fd, pid_t child)
{
    char buf[600];
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
        (void)!write(2, "edm-dms: ended at its start: see its log\n", 41);
    _exit(EXIT_EDM);
}

/* Nobody's child, own session, no streams; log in a file beside the socket. */
static void daemonize(struct edm_config *c)
{
    int fds[2];
    char dir[EDM_CONFIG_PATH_MAX];
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
    for (int fd = 3; fd < 1024; fd++)
        if (fd != ready_fd)
            close(fd);
    if (chdir("/"))
        fail("cannot change to /");
    if (!c->log_file[0]) {
        snprintf(dir, sizeof(dir), "%s", c->socket);
        snprintf(c->log_file, sizeof(c->log_file), "%s/dms.log", dirname(dir));
    }
}

static void say_ready(void)
{
    char zero = 0;
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

static uint64_t disk_free(const char *path)
{
    struct statvfs st;
    char dir[512];
    snprintf(dir, sizeof(dir), "%s", path);
    while (statvfs(dir, &st)) { /* it is made later: ask its parent */
        char *slash = strrchr(dir, '/');
        if (!slash || slash == dir)
            return statvfs("/", &st) ? 0 : (uint64_t)st.f_bavail * st.f_frsize;
        *slash = 0;
    }
    return (uint64_t)st.f_bavail * st.f_frsize;
}

static uint64_t open_store(const struct edm_config *c)
{
    char err[300];
    struct store_options o = {.compression = c->compression, .on_room = on_room};
    o.memory_bytes = edm_size_bytes(c->memory_store, edm_memory_total());
    o.disk_bytes = edm_size_bytes(c->disk_store, disk_free(c->disk_path));
    snprintf(o.disk_path, sizeof(o.disk_path), "%s", c->disk_path);
    if (store_init(&o, err, sizeof(err)))
        fail(err);
    return o.memory_bytes;
}

int main(int argc, char **argv)
{
    struct arguments a = {0};
    static struct edm_config config;
    char err[400];
    parse(argc, argv, &a);
    peer_environment(a.daemon || !getenv("PMI_RANK"), argv);
    prctl(PR_SET_NAME, "edm-dms");
    struct edm_config_request req = {a.file, a.options, a.noptions};
    if (edm_config_load(&config, &req, err, sizeof(err)))
        fail(err);
    if (a.daemon)
        daemonize(&config);
    edm_log_init("edm-dms", config.log_level, config.log_file);
    raise_limits();
    struct server_options opt = {&config, a.is_auto};
    int e = server_open(&opt, err, sizeof(err));
    if (e == -EADDRINUSE && a.daemon && somebody_serves(config.socket)) {
        say_ready();
        return 0;
    }
    if (e)
        fail(err);
    if (peer_init(err, sizeof(err)))
        fail(err);
    control_init();
    if (fetch_module_init() || instance_module_init(open_store(&config)))
        fail("cannot start threads");
    say_ready();
    edm_info("serving on %s", config.socket);
    server_run();
    server_close();
    fetch_module_fini();
    store_fini();
    peer_fini();
    return 0;
}
