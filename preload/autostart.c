#include "attach.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_LIMIT_MS 20000
#define ARGS_MAX 96
#define EXIT_EXEC 127

/*
 * The server's arguments and environment, in the shim's own memory: the program may have changed or
 * freed its own by the time a server is needed. Written by the constructor and by the one thread
 * that attaches.
 */
static AT_LOAD_DATA char *start_env[8];
static AT_LOAD_DATA char start_env_text[4096];
static char *start_argv[ARGS_MAX + 1];
static char start_argv_text[6144];

AT_LOAD void autostart_init(void)
{
    static const char *const keep[] = {"PATH=", "HOME=", "XDG_RUNTIME_DIR=", "USER=", "LANG="};
    size_t used = 0, count = 0;
    for (char **e = environ; e && *e; e++)
        for (size_t k = 0; k < sizeof(keep) / sizeof(keep[0]); k++) {
            size_t len = strlen(*e) + 1;
            if (strncmp(*e, keep[k], strlen(keep[k])) || count + 1 >= 8 ||
                used + len > sizeof(start_env_text))
                continue;
            start_env[count++] = memcpy(start_env_text + used, *e, len);
            used += len;
        }
}

static size_t argv_count, argv_used;

static void argv_add(const char *a, const char *b, const char *c)
{
    size_t room = sizeof(start_argv_text) - argv_used;
    int n = snprintf(start_argv_text + argv_used, room, "%s%s%s", a, b, c);
    if (n < 0 || (size_t)n >= room || argv_count >= ARGS_MAX)
        return;
    start_argv[argv_count++] = start_argv_text + argv_used;
    argv_used += (size_t)n + 1;
}

/* The server gets the settings of the program that starts it, whichever file they came from. */
void autostart_prepare(void)
{
    char value[1100];
    argv_count = argv_used = 0;
    argv_add(shim_config.dms_path, "", "");
    argv_add("--daemon", "", "");
    argv_add("--auto", "", "");
    argv_add("-c", "", ""); /* its settings are the program's */
    argv_add("/dev/null", "", "");
    argv_add("--socket", "", "");
    argv_add(shim_config.config.socket, "", "");
    for (size_t i = 0; i < edm_options_count; i++) {
        const struct edm_option *o = &edm_options[i];
        if (!o->is_server && strcmp(o->key, "log_level") && strcmp(o->key, "log_file"))
            continue;
        if (!strcmp(o->key, "socket"))
            continue;
        if (edm_config_value(&shim_config.config, i, value, sizeof(value)) < 0 || !value[0])
            continue;
        argv_add("-o", "", "");
        argv_add(o->key, "=", value);
    }
    start_argv[argv_count] = NULL;
}

/* ------------------------------------------------------------------ on the LPET */

struct spawn {
    int null_fd, err_fd;
    uint64_t stack; /* for the second child */
};

static void limits_raise(void)
{
    static const int which[] = {RLIMIT_AS,    RLIMIT_DATA, RLIMIT_CPU,
                                RLIMIT_FSIZE, RLIMIT_RSS,  RLIMIT_NOFILE};
    for (size_t i = 0; i < sizeof(which) / sizeof(which[0]); i++) {
        struct rlimit lim;
        if (sys_call4(SYS_prlimit64, 0, which[i], 0, (long)&lim))
            continue;
        lim.rlim_cur = lim.rlim_max;
        sys_call4(SYS_prlimit64, 0, which[i], (long)&lim, 0);
    }
}

/* The child between clone and exec: in the program's memory, so it touches nothing but its stack.
 * Its signal handlers are its own copy: back to default before any signal may arrive. */
static int spawn_exec(void *arg)
{
    struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        uint64_t mask;
    } dfl = {NULL, 0, NULL, 0};
    uint64_t none = 0;
    for (int sig = 1; sig <= 64; sig++)
        sys_call4(SYS_rt_sigaction, sig, (long)&dfl, 0, sizeof(dfl.mask));
    sys_sigprocmask(SIG_SETMASK, &none, NULL);
    limits_raise();
    sys_call3(SYS_execve, (long)start_argv[0], (long)start_argv, (long)start_env);
    return EXIT_EXEC;
}

/*
 * A process between the program and the server, which never calls exec: exec would turn its exit
 * signal into SIGCHLD, and the program would see a child that it does not know. It waits for the
 * server's start and ends as that ended.
 */
static int spawn_between(void *arg)
{
    const struct spawn *s = arg;
    int status = 0, unused;
    sys_call3(SYS_setsid, 0, 0, 0);
    sys_call3(SYS_dup3, s->null_fd, 0, 0);
    sys_call3(SYS_dup3, s->null_fd, 1, 0);
    sys_call3(SYS_dup3, s->err_fd, 2, 0);
    sys_call3(SYS_close_range, 3, ~0u, 0);
    long pid =
        lpet_clone(CLONE_VM | CLONE_VFORK | SIGCHLD, s->stack, &unused, NULL, 0, spawn_exec, NULL);
    if (sys_is_error(pid))
        return EXIT_EXEC;
    while (sys_call4(SYS_wait4, pid, (long)&status, 0, 0) == -EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Moves fd out of the way of 0, 1 and 2. */
static int fd_above(int fd)
{
    long high = sys_fcntl(fd, F_DUPFD_CLOEXEC, 10);
    sys_close(fd);
    return (int)high;
}

/* Reads what the server has to say until it ends or the limit passes. Returns its wait status, or
 * -errno. */
static int spawn_wait(int pid, int pidfd, int out_fd, struct lpet_text *said)
{
    uint64_t until = lpet_now_ms() + START_LIMIT_MS;
    struct pollfd fds[2] = {{.fd = pidfd, .events = POLLIN}, {.fd = out_fd, .events = POLLIN}};
    int status = 0;
    for (;;) {
        char buf[256];
        uint64_t now = lpet_now_ms();
        long n = now < until ? sys_poll(fds, 2, (int)(until - now)) : 0;
        if (!n) {
            sys_call3(SYS_kill, -pid, SIGKILL, 0); /* its session: both of them */
            sys_call4(SYS_pidfd_send_signal, pidfd, SIGKILL, 0, 0);
            sys_call4(SYS_wait4, pid, (long)&status, (long)__WCLONE, 0);
            return -ETIMEDOUT;
        }
        while ((n = sys_read(out_fd, buf, sizeof(buf) - 1)) > 0) {
            buf[n] = 0;
            lpet_text_put(said, buf);
        }
        if (!n) /* everybody closed it */
            fds[1].fd = -1;
        if (fds[0].revents) {
            n = sys_call4(SYS_wait4, pid, (long)&status, (long)__WCLONE, 0);
            if (n == pid)
                return status;
            if (n != -EINTR)
                return (int)n;
        }
    }
}

/* The first line of what the server said, without its name in front. */
static void said_put(struct lpet_text *why, struct lpet_text *said)
{
    static const char name[] = "edm: ";
    const char *s = said->s;
    size_t i = 0;
    said->s[said->len] = 0;
    while (name[i] && s[i] == name[i])
        i++;
    if (!name[i])
        s += i;
    for (char *p = said->s; *p; p++)
        if (*p == '\n')
            *p = 0;
    lpet_text_put(why, s);
}

static int spawn_outcome(int status, struct lpet_text *said, struct lpet_text *why)
{
    if (!status)
        return 0;
    lpet_text_put(why, "no server could be started: ");
    if (status < 0) {
        lpet_text_put(why, "edm-dms did not begin to serve in time");
        return status;
    }
    if (said->len) {
        said_put(why, said);
    } else if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_EXEC) {
        lpet_text_put(why, start_argv[0]);
        lpet_text_put(why, " cannot be run");
    } else {
        lpet_text_put(why, "edm-dms ended with status ");
        lpet_text_num(why, WIFEXITED(status) ? (unsigned)WEXITSTATUS(status)
                                             : 128u + (unsigned)WTERMSIG(status));
    }
    return -ENOENT;
}

int autostart_run(struct lpet *l)
{
    int pipe_fds[2], pidfd = -1;
    struct spawn s;
    struct lpet_text said;
    said.len = 0;
    s.stack = l->spawn_stack - LPET_SPAWN_STACK_SIZE / 2;
    if (!start_argv[0] || !start_argv[0][0]) {
        lpet_text_put(&l->why, "no server could be started: edm-dms was not found");
        return -ENOENT;
    }
    long rc = sys_call3(SYS_pipe2, (long)pipe_fds, O_CLOEXEC | O_NONBLOCK, 0);
    if (sys_is_error(rc)) {
        lpet_text_put(&l->why, "no server could be started: cannot make a pipe");
        lpet_text_errno(&l->why, rc);
        return (int)rc;
    }
    s.err_fd = fd_above(pipe_fds[1]);
    s.null_fd = fd_above((int)sys_open("/dev/null", O_RDWR | O_CLOEXEC, 0));
    sys_fcntl(s.err_fd, F_SETFL, 0); /* blocking for the server */
    /* exit signal 0: no SIGCHLD, and unseen by the program's wait */
    long pid =
        lpet_clone(CLONE_VM | CLONE_PIDFD, l->spawn_stack, &pidfd, NULL, 0, spawn_between, &s);
    sys_close(s.err_fd);
    sys_close(s.null_fd);
    if (sys_is_error(pid)) {
        lpet_text_put(&l->why, "no server could be started: no process");
        lpet_text_errno(&l->why, pid);
        rc = pid;
    } else {
        rc = spawn_outcome(spawn_wait((int)pid, pidfd, pipe_fds[0], &said), &said, &l->why);
        sys_close(pidfd);
    }
    sys_close(pipe_fds[0]);
    return (int)rc;
}
