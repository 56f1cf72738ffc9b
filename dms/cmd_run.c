/*
 * edm run: a command with the shim in it; with --stats it stays behind to write the counters.
 */
#include "cmd.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

struct run {
    struct cmd_settings settings;
    const char *stats; /* file, or NULL */
    char **argv;       /* CMD and its arguments */
    char shim[PATH_MAX];
    uint64_t token;
    int stats_fd, server_fd; /* -1: none */
};

/* ---- the environment of CMD ---- */

static int set_preload(const char *shim)
{
    const char *old = getenv("LD_PRELOAD");
    char *all;
    int rc;

    if (strpbrk(shim, ": \t"))
        return cmd_fail("%s: LD_PRELOAD takes no path with spaces or colons: install EDM elsewhere",
                        shim);
    if (!old || !*old)
        rc = setenv("LD_PRELOAD", shim, 1);
    else if (strstr(old, shim))
        rc = 0;
    else if (asprintf(&all, "%s:%s", shim, old) < 0)
        rc = -1;
    else {
        rc = setenv("LD_PRELOAD", all, 1);
        free(all);
    }
    return rc ? cmd_fail("LD_PRELOAD cannot be set: %s", strerror(errno)) : 0;
}

/* KEY=VALUE, known to be right, becomes EDM_KEY. */
static int export_option(const char *option)
{
    const char *eq = strchr(option, '=');
    char name[80];
    size_t n = (size_t)snprintf(name, sizeof(name), "EDM_%.*s", (int)(eq - option), option);

    for (size_t i = 4; i < n && i < sizeof(name); i++)
        name[i] = (char)toupper((unsigned char)name[i]);
    return setenv(name, eq + 1, 1);
}

static int set_environment(struct run *r)
{
    const struct edm_config_request *req = &r->settings.request;
    char file[PATH_MAX], token[32];
    const char *conf = getenv("EDM_CONF");
    int rc = 0;

    if (!req->file && conf && *conf && *conf != '/' && realpath(conf, file))
        rc = setenv("EDM_CONF", file, 1); /* CMD may change its folder */
    if (req->file)
        rc = setenv("EDM_CONF", realpath(req->file, file) ? file : req->file, 1);
    for (size_t i = 0; i < req->noptions && !rc; i++)
        rc = export_option(req->options[i]);
    if (r->token && !rc) {
        snprintf(token, sizeof(token), "%" PRIu64, r->token);
        rc = setenv("EDM_RUN_TOKEN", token, 1);
    }
    if (rc)
        return cmd_fail("the environment cannot be set: %s", strerror(errno));
    return set_preload(r->shim);
}

static int exec_command(char **argv)
{
    int rc;

    cmd_signals_back();
    execvp(argv[0], argv);
    rc = errno == ENOENT ? 127 : 126;
    cmd_fail("%s: %s: a program that can be run is needed", argv[0], strerror(errno));
    return rc;
}

/* ---- --stats ---- */

static int open_stats(struct run *r)
{
    r->stats_fd = open(r->stats, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (r->stats_fd < 0)
        return cmd_fail("--stats %s: %s: a file that can be written is needed", r->stats,
                        strerror(errno));
    while (!r->token)
        if (getrandom(&r->token, sizeof(r->token), 0) != sizeof(r->token))
            r->token = 0;
    return 0;
}

/* A server that answers; started when there is none and settings allow it. */
static int find_server(struct run *r, char *err, size_t errlen)
{
    const struct edm_config *c = &r->settings.config;
    int fd = edm_client_connect(c, true, err, errlen), rc;

    if ((fd != -ENOENT && fd != -ECONNREFUSED) || c->server != EDM_SERVER_AUTO)
        return fd;
    rc = edm_launch(&r->settings.request, true, err, errlen);
    return rc ? rc : edm_client_connect(c, true, err, errlen);
}

static int send_watch(struct run *r, char *err, size_t errlen)
{
    struct edm_request req = {.size = r->token, .token = r->token, .pid = getpid()};
    const struct edm_client_call call = {
        .type = EDM_MSG_WATCH, .payload = &req, .len = sizeof(req)};
    int fd = edm_client_connect(&r->settings.config, true, err, errlen), rc;

    if (fd < 0)
        return fd;
    rc = edm_client_call(fd, &call, NULL, err, errlen);
    close(fd);
    return rc;
}

/* Tells a server to keep the counters of CMD's processes. A second connection stays open until they
 * are asked for: it keeps an automatic server from ending meanwhile. */
static int watch(struct run *r)
{
    const struct edm_config *c = &r->settings.config;
    char err[CMD_ERR_MAX];

    if (c->server == EDM_SERVER_OFF)
        return cmd_fail("--stats: server is \"off\", so there are no counters: set it to \"auto\"");
    r->server_fd = find_server(r, err, sizeof(err));
    if (r->server_fd >= 0 && !send_watch(r, err, sizeof(err)))
        return 0;
    if (r->server_fd >= 0)
        close(r->server_fd);
    r->server_fd = -1;
    cmd_fail("%s", err);
    return c->server == EDM_SERVER_REQUIRE ? CMD_FAILED : 0;
}

static int ask_counters(struct run *r, struct cmd_text *t, char *err, size_t errlen)
{
    struct edm_request req = {.token = r->token};
    const struct edm_client_call call = {
        .type = EDM_MSG_STAT, .payload = &req, .len = sizeof(req), .part = cmd_text_part, .ctx = t};

    return edm_client_call(r->server_fd, &call, NULL, err, errlen);
}

static int write_all(int fd, const char *text, size_t len)
{
    while (len) {
        ssize_t n = write(fd, text, len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -(n ? errno : EIO);
        text += n;
        len -= (size_t)n;
    }
    return 0;
}

/* Another server may have taken over since WATCH: then its counters are the ones there are. */
static void write_stats(struct run *r)
{
    static const char none[] =
        "{\"version\": \"" EDM_VERSION "\", \"server\": null, \"instances\": []}";
    struct cmd_text t = {0};
    char err[CMD_ERR_MAX] = "";
    int rc = 0;

    if (r->server_fd >= 0)
        rc = ask_counters(r, &t, err, sizeof(err));
    if (rc) {
        close(r->server_fd);
        r->server_fd = edm_client_connect(&r->settings.config, true, err, sizeof(err));
        t.len = 0;
        rc = r->server_fd < 0 ? r->server_fd : ask_counters(r, &t, err, sizeof(err));
    }
    cmd_text_trim(&t);
    if (rc)
        cmd_fail("no counters: %s", err);
    (void)!ftruncate(r->stats_fd, 0); /* no file: nothing to cut */
    if (rc || !t.len)
        rc = write_all(r->stats_fd, none, sizeof(none) - 1);
    else
        rc = write_all(r->stats_fd, t.text, t.len);
    if (!rc)
        rc = write_all(r->stats_fd, "\n", 1);
    if (close(r->stats_fd) && !rc)
        rc = -errno;
    if (rc)
        cmd_fail("--stats %s: %s", r->stats, strerror(-rc));
    free(t.text);
}

/* ---- waiting for CMD ---- */

static const int forwarded[] = {SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};
#define NFORWARDED (sizeof(forwarded) / sizeof(forwarded[0]))

static volatile sig_atomic_t child;

static void forward(int sig)
{
    int saved = errno;

    if (child > 0)
        kill((pid_t)child, sig);
    errno = saved;
}

static void forward_sent(int sig, siginfo_t *info, void *context)
{
    if (info->si_code != SI_KERNEL)
        forward(sig);
}

/* The terminal's SIGINT and SIGQUIT reach CMD by themselves. Signals ignored before stay ignored.
 */
static void catch_signals(struct sigaction *saved_int, struct sigaction *saved_quit)
{
    struct sigaction sa = {.sa_sigaction = forward_sent, .sa_flags = SA_RESTART | SA_SIGINFO}, old;

    sigaction(SIGINT, &sa, saved_int);
    sigaction(SIGQUIT, &sa, saved_quit);
    sa = (struct sigaction){.sa_handler = forward, .sa_flags = SA_RESTART};
    for (size_t i = 0; i < NFORWARDED; i++) {
        sigaction(forwarded[i], NULL, &old);
        if (old.sa_handler != SIG_IGN)
            sigaction(forwarded[i], &sa, NULL);
    }
}

static int run_child(struct run *r)
{
    struct sigaction saved_int, saved_quit;
    sigset_t block, before;
    int status;
    pid_t pid;

    sigemptyset(&block);
    for (size_t i = 0; i < NFORWARDED; i++)
        sigaddset(&block, forwarded[i]);
    sigprocmask(SIG_BLOCK, &block, &before); /* until `child` is known */
    catch_signals(&saved_int, &saved_quit);
    pid = fork();
    if (pid < 0)
        return cmd_fail("no process for %s: %s", r->argv[0], strerror(errno));
    if (pid == 0) {
        sigaction(SIGINT, &saved_int, NULL);
        sigaction(SIGQUIT, &saved_quit, NULL);
        sigprocmask(SIG_SETMASK, &before, NULL);
        _exit(exec_command(r->argv));
    }
    child = pid;
    sigprocmask(SIG_SETMASK, &before, NULL);
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return cmd_fail("%s is lost: %s", r->argv[0], strerror(errno));
    child = 0;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* ---- the command ---- */

static int parse(const struct cmd *self, struct run *r, int argc, char **argv)
{
    static const struct option longs[] = {{"stats", required_argument, NULL, 's'}, {0}};
    char *option;
    int found;

    while ((found = getopt_long(argc, argv, "+:c:m:o:", longs, NULL)) != -1) {
        switch (found) {
        case 'c':
            r->settings.request.file = optarg;
            break;
        case 'm':
            if (asprintf(&option, "local_memory=%s", optarg) < 0)
                return cmd_fail("out of memory");
            cmd_settings_add(&r->settings, option); /* lives as long as this process */
            break;
        case 'o':
            cmd_settings_add(&r->settings, optarg);
            break;
        case 's':
            r->stats = optarg;
            break;
        default:
            return cmd_bad_option(self, found, argv);
        }
    }
    r->argv = argv + optind;
    return *r->argv ? 0 : cmd_misused(self, "no command to run");
}

static int run_main(const struct cmd *self, int argc, char **argv)
{
    struct run r = {.stats_fd = -1, .server_fd = -1};
    char err[CMD_ERR_MAX];
    int rc = parse(self, &r, argc, argv);
    const char *disable = getenv("EDM_DISABLE");

    if (!rc && disable && *disable && strcmp(disable, "0") != 0 && !r.stats)
        return exec_command(r.argv); /* whatever the settings are */
    if (!rc)
        rc = cmd_settings_load(&r.settings);
    if (!rc && edm_launch_find_shim(r.shim, sizeof(r.shim), err, sizeof(err)))
        rc = cmd_fail("%s", err);
    if (!rc && r.stats)
        rc = open_stats(&r);
    if (!rc && r.stats)
        rc = watch(&r);
    if (!rc)
        rc = set_environment(&r);
    if (!rc && !r.stats)
        rc = exec_command(r.argv);
    else if (!rc) {
        rc = run_child(&r);
        write_stats(&r);
    }
    cmd_settings_fini(&r.settings);
    return rc;
}

const struct cmd cmd_run = {
    .name = "run",
    .run = run_main,
    .usage = " [-c FILE] [-m SIZE] [-o KEY=VALUE]... [--stats FILE] [--] CMD [ARG...]",
    .help = "run CMD with its memory managed\n\n"
            "  -c FILE       read settings from FILE and no other\n"
            "  -m SIZE       keep at most SIZE of its memory local: 512M, 2G, 40%\n"
            "  -o KEY=VALUE  any setting; `edm config` lists them\n"
            "  --stats FILE  write the counters of CMD's processes to FILE (JSON) when it ends\n"
            "                (those of an `edm run --stats` below it are in that one's)\n\n"
            "The exit status is CMD's (128+n when signal n ended it), 125 for EDM's own errors,\n"
            "126 or 127 when CMD cannot be run.\n",
};
