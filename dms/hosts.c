#include "hosts.h"
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SSH_FAILED 255 /* ssh's own exit status */

/* ---- names and addresses ---- */

static int check_name(const struct hosts *h, const char *name, char *err, size_t errlen)
{
    /* Nothing that ssh or a shell could take for something else */
    if (!*name || *name == '-' || name[strcspn(name, " \t'\"\\$`;&|<>()*?~!#")]) {
        snprintf(err, errlen, "hosts: \"%s\" is not the name of a host", name);
        return -EINVAL;
    }
    for (unsigned i = 0; i < h->n; i++) {
        if (!strcmp(h->names[i], name)) {
            snprintf(err, errlen, "hosts: %s is named twice: -n gives a host several ranks", name);
            return -EINVAL;
        }
    }
    return 0;
}

int hosts_parse(struct hosts *h, const char *list, char *err, size_t errlen)
{
    char *rest = h->text, *name;
    int rc;

    h->n = 0;
    if ((size_t)snprintf(h->text, sizeof(h->text), "%s", list) >= sizeof(h->text)) {
        snprintf(err, errlen, "hosts: the list is too long: at most %zu characters",
                 sizeof(h->text) - 1);
        return -EINVAL;
    }
    while (*list && (name = strsep(&rest, ","))) {
        rc = check_name(h, name, err, errlen);
        if (rc)
            return rc;
        if (h->n == HOSTS_MAX) {
            snprintf(err, errlen, "hosts: at most %d", HOSTS_MAX);
            return -EINVAL;
        }
        h->names[h->n++] = name;
    }
    return 0;
}

void hosts_join(const struct hosts *h, char *list)
{
    size_t at = 0;

    *list = '\0';
    for (unsigned i = 0; i < h->n; i++)
        at += (size_t)sprintf(list + at, "%s%s", i ? "," : "", h->names[i]);
}

void hosts_copy(struct hosts *to, const struct hosts *from)
{
    *to = *from;
    for (unsigned i = 0; i < from->n; i++)
        to->names[i] = to->text + (from->names[i] - from->text);
}

static bool same_address(const struct sockaddr *a, const struct sockaddr *b)
{
    if (!a || !b || a->sa_family != b->sa_family)
        return false;
    if (a->sa_family == AF_INET)
        return ((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr ==
               ((const struct sockaddr_in *)(const void *)b)->sin_addr.s_addr;
    if (a->sa_family == AF_INET6)
        return !memcmp(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr,
                       &((const struct sockaddr_in6 *)(const void *)b)->sin6_addr,
                       sizeof(struct in6_addr));
    return false;
}

static struct addrinfo *resolve(const char *name)
{
    const struct addrinfo want = {.ai_socktype = SOCK_DGRAM};
    struct addrinfo *found = NULL;

    return getaddrinfo(name, "9", &want, &found) ? NULL : found;
}

bool hosts_is_local(const char *name)
{
    struct addrinfo *found = *name ? resolve(name) : NULL;
    struct ifaddrs *own = NULL;
    bool hit = !*name;

    if (found && getifaddrs(&own) == 0)
        for (const struct addrinfo *a = found; a; a = a->ai_next)
            for (const struct ifaddrs *o = own; o; o = o->ifa_next)
                hit |= same_address(a->ai_addr, o->ifa_addr);
    if (own)
        freeifaddrs(own);
    if (found)
        freeaddrinfo(found);
    return hit;
}

/* A connected UDP socket sends nothing, and has the address that the route would give it. */
static int route_to(const struct addrinfo *to, char *buf, size_t len)
{
    struct sockaddr_storage own;
    socklen_t n = sizeof(own);
    int fd = socket(to->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0), rc = 0;

    if (fd < 0)
        return -errno;
    if (connect(fd, to->ai_addr, to->ai_addrlen) || getsockname(fd, (struct sockaddr *)&own, &n))
        rc = -errno;
    else if (getnameinfo((struct sockaddr *)&own, n, buf, (socklen_t)len, NULL, 0, NI_NUMERICHOST))
        rc = -EADDRNOTAVAIL;
    close(fd);
    return rc;
}

int hosts_own_address(const char *name, char *buf, size_t len, char *err, size_t errlen)
{
    struct addrinfo *found = resolve(name);
    int rc = found ? route_to(found, buf, len) : -ENOENT;

    if (!found)
        snprintf(err, errlen, "%s: no host of this name is known: see /etc/hosts or DNS", name);
    else if (rc)
        snprintf(err, errlen, "%s: no way there from here: %s", name, strerror(-rc));
    if (found)
        freeaddrinfo(found);
    return rc;
}

/* ---- commands ---- */

const char *hosts_launcher(void)
{
    const char *test = getenv("EDM_TEST_LAUNCHER");

    return test && *test ? test : "ssh";
}

int hosts_quote(char *buf, size_t len, const char *word)
{
    size_t at = strlen(buf);

    if (at + strlen(word) * 4 + 4 > len) /* as if all of it were quotes */
        return -E2BIG;
    if (at)
        buf[at++] = ' ';
    buf[at++] = '\'';
    for (; *word; word++) {
        if (*word == '\'') {
            memcpy(buf + at, "'\\''", 4);
            at += 4;
        } else {
            buf[at++] = *word;
        }
    }
    buf[at++] = '\'';
    buf[at] = '\0';
    return 0;
}

static double clock_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

struct running {
    pid_t pid;
    int fd; /* its streams; -1 when they ended */
    size_t len;
};

static void run_child(const char *host, const char *line, int out)
{
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

    setsid(); /* what it starts is given up together with it; ssh finds no terminal to ask on */
    dup2(null, 0);
    dup2(out, 1);
    dup2(out, 2);
    edm_launch_clean_environment();
    if (hosts_is_local(host))
        execl("/bin/sh", "sh", "-c", line, NULL);
    else
        execlp(hosts_launcher(), "ssh", "-x", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
               host, line, NULL);
    dprintf(2, "%s: %s: is openssh-client installed?\n", hosts_launcher(), strerror(errno));
    _exit(SSH_FAILED);
}

static void run_one(const char *host, const char *line, struct running *r, struct hosts_result *res)
{
    int fds[2];

    *r = (struct running){-1, -1, 0};
    *res->output = '\0';
    res->started = clock_now();
    if (pipe2(fds, O_CLOEXEC)) {
        res->status = -errno;
        return;
    }
    r->pid = fork();
    if (r->pid == 0)
        run_child(host, line, fds[1]);
    res->status = r->pid < 0 ? -errno : 0;
    close(fds[1]);
    if (r->pid < 0)
        close(fds[0]);
    else
        r->fd = fds[0];
}

static void take_output(struct running *r, struct hosts_result *res)
{
    char drop[256];
    size_t room = sizeof(res->output) - 1 - r->len;
    ssize_t n = read(r->fd, room ? res->output + r->len : drop, room ? room : sizeof(drop));

    if (n < 0 && errno == EINTR)
        return;
    if (n <= 0) {
        res->ended = clock_now();
        close(r->fd);
        r->fd = -1;
        return;
    }
    if (room)
        r->len += (size_t)n;
    res->output[r->len] = '\0';
}

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Reads what all of them say until the last stream ends or the time is over. */
static void take_all(struct running *r, struct hosts_result *res, unsigned n, int64_t end)
{
    struct pollfd p[HOSTS_MAX];

    for (;;) {
        int64_t left = end - now_ms();
        bool open = false;

        for (unsigned i = 0; i < n; i++) {
            p[i] = (struct pollfd){.fd = r[i].fd, .events = POLLIN};
            open |= r[i].fd >= 0;
        }
        if (!open || left <= 0)
            return;
        if (poll(p, n, (int)left) <= 0)
            continue;
        for (unsigned i = 0; i < n; i++)
            if (p[i].fd >= 0 && p[i].revents)
                take_output(&r[i], &res[i]);
    }
}

static void finish(const char *host, struct running *r, struct hosts_result *res)
{
    size_t len = r->len;
    int status = 0;

    if (r->pid < 0)
        return;
    while (len && strchr("\r\n", res->output[len - 1]))
        res->output[--len] = '\0';
    if (r->fd >= 0) {
        kill(-r->pid, SIGKILL);
        close(r->fd);
    }
    while (waitpid(r->pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (r->fd >= 0)
        res->status = -ETIMEDOUT;
    else if (WIFSIGNALED(status))
        res->status = 128 + WTERMSIG(status);
    else if (WEXITSTATUS(status) == SSH_FAILED && !hosts_is_local(host))
        res->status = -EHOSTUNREACH;
    else
        res->status = WEXITSTATUS(status);
}

void hosts_run(const struct hosts *h, const char *line, unsigned limit_s,
               struct hosts_result *results)
{
    struct running r[HOSTS_MAX];
    int64_t end = now_ms() + (int64_t)limit_s * 1000;

    for (unsigned i = 0; i < h->n; i++)
        run_one(h->names[i], line, &r[i], &results[i]);
    take_all(r, results, h->n, end);
    for (unsigned i = 0; i < h->n; i++)
        finish(h->names[i], &r[i], &results[i]);
}
