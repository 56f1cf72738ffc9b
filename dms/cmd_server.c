/*
 * edm start, stop, restart.
 */
#include "cmd.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define STOP_LIMIT_MS 60000

/* ---- options ---- */

/* This version starts one rank, here. */
static int check_ranks(const struct cmd *self, const char *text)
{
    char *end;
    long n = strtol(text, &end, 10);

    if (*end || end == text || n < 1 || n > 4096)
        return cmd_misused(self, "-n %s: it must be a number of ranks from 1 on", text);
    if (n > 1)
        return cmd_fail("-n %ld: this version runs one rank only: leave -n away", n);
    return 0;
}

static int parse(const struct cmd *self, struct cmd_settings *s, int argc, char **argv)
{
    static const struct option longs[] = {{"hosts", required_argument, NULL, 'h'}, {0}};
    int found, rc = 0;

    while (!rc && (found = getopt_long(argc, argv, "+:c:n:o:", longs, NULL)) != -1) {
        switch (found) {
        case 'c':
            s->request.file = optarg;
            break;
        case 'n':
            rc = check_ranks(self, optarg);
            break;
        case 'o':
            cmd_settings_add(s, optarg);
            break;
        case 'h':
            rc = cmd_fail("--hosts %s: this version runs on one host only: leave it away", optarg);
            break;
        default:
            return cmd_bad_option(self, found, argv);
        }
    }
    if (!rc && argv[optind])
        rc = cmd_misused(self, "\"%s\" is too much", argv[optind]);
    if (!rc)
        rc = cmd_settings_load(s);
    if (!rc && *s->config.hosts)
        rc = cmd_fail("hosts: this version runs on one host only: leave it empty");
    return rc;
}

/* ---- start ---- */

static int start_server(struct cmd_settings *s)
{
    char err[CMD_ERR_MAX];
    int rc = edm_client_runs(&s->config, false, err, sizeof(err));

    if (rc < 0)
        return cmd_fail("%s", err);
    if (rc > 0) {
        printf("the server at %s already runs\n", s->config.socket);
        return 0;
    }
    if (edm_launch(&s->request, false, err, sizeof(err)))
        return cmd_fail("%s", err);
    printf("the server serves at %s\n", s->config.socket);
    return 0;
}

static int start_main(const struct cmd *self, int argc, char **argv)
{
    struct cmd_settings s = {0};
    int rc = parse(self, &s, argc, argv);

    if (!rc)
        rc = start_server(&s);
    cmd_settings_fini(&s);
    return rc;
}

/* ---- stop ---- */

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Waits until the process of pidfd (if any) ended and nobody listens any more. */
static bool wait_gone(const struct edm_config *c, int pidfd)
{
    const struct timespec pause = {.tv_nsec = 20 * 1000000}; /* there is nothing to wait on */
    int64_t end = now_ms() + STOP_LIMIT_MS, left;
    char err[CMD_ERR_MAX];
    int fd;

    while (pidfd >= 0) {
        struct pollfd p = {.fd = pidfd, .events = POLLIN};

        left = end - now_ms();
        if (left <= 0)
            return false;
        if (poll(&p, 1, (int)left) > 0)
            break;
    }
    while ((fd = edm_client_connect(c, false, err, sizeof(err))) >= 0) {
        close(fd);
        if (now_ms() >= end)
            return false;
        nanosleep(&pause, NULL);
    }
    return true;
}

/* 0 also when none runs, with *ran saying which. */
static int stop_server(const struct edm_config *c, bool *ran)
{
    const struct edm_client_call call = {.type = EDM_MSG_STOP};
    char err[CMD_ERR_MAX];
    int fd = edm_client_connect(c, false, err, sizeof(err)), pidfd = -1, rc;
    pid_t pid;

    *ran = fd != -ENOENT && fd != -ECONNREFUSED;
    if (fd < 0)
        return *ran ? cmd_fail("%s", err) : 0;
    pid = edm_client_peer(fd);
    if (pid > 0)
        pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    rc = edm_client_call(fd, &call, NULL, err, sizeof(err));
    close(fd);
    if (rc == -ECONNRESET) /* it may be quicker than its answer */
        rc = 0;
    if (rc)
        rc = cmd_fail("%s", err);
    else if (!wait_gone(c, pidfd))
        rc = cmd_fail("the server (pid %d) did not end in %d s: see its log", (int)pid,
                      STOP_LIMIT_MS / 1000);
    if (pidfd >= 0)
        close(pidfd);
    return rc;
}

static int stop_main(const struct cmd *self, int argc, char **argv)
{
    struct cmd_settings s = {0};
    bool ran = false;
    int rc = parse(self, &s, argc, argv);

    if (!rc)
        rc = stop_server(&s.config, &ran);
    if (!rc)
        printf(ran ? "the server at %s stopped\n" : "no server runs at %s\n", s.config.socket);
    cmd_settings_fini(&s);
    return rc;
}

/* ---- restart ---- */

static int restart_main(const struct cmd *self, int argc, char **argv)
{
    struct cmd_settings s = {0};
    bool ran = false;
    int rc = parse(self, &s, argc, argv);

    if (!rc)
        rc = stop_server(&s.config, &ran);
    if (!rc)
        rc = start_server(&s);
    cmd_settings_fini(&s);
    return rc;
}

#define OPTIONS                                                                                    \
    "  -c FILE       read settings from FILE and no other\n"                                       \
    "  -o KEY=VALUE  any setting; `edm config` lists them\n"                                       \
    "  -n RANKS      ranks of the server; this version has one\n"                                  \
    "  --hosts LIST  hosts of the ranks; this version stays on this host\n"

const struct cmd cmd_start = {
    .name = "start",
    .run = start_main,
    .usage = " [-n RANKS] [--hosts H1,H2...] [-c FILE] [-o KEY=VALUE]...",
    .help = "start the server and return when it serves\n\n" OPTIONS,
};

const struct cmd cmd_stop = {
    .name = "stop",
    .run = stop_main,
    .usage = " [-c FILE] [-o KEY=VALUE]...",
    .help = "stop the server and return when it has ended\n\n"
            "  -c FILE       read settings from FILE and no other\n"
            "  -o KEY=VALUE  any setting; socket says which server\n",
};

const struct cmd cmd_restart = {
    .name = "restart",
    .run = restart_main,
    .usage = " [-n RANKS] [--hosts H1,H2...] [-c FILE] [-o KEY=VALUE]...",
    .help = "stop the server, then start it\n\n" OPTIONS
            "\nIt is refused while the server holds memory of running programs.\n",
};
