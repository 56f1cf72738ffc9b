#include "client.h"

#include <errno.h>
#include <grp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

struct packet {
    struct edm_msg msg;
    char payload[EDM_MSG_MAX - sizeof(struct edm_msg)];
};

static int open_socket(const char *path, char *err, size_t errlen)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = EDM_CLIENT_LIMIT_MS / 1000};
    struct stat st;
    int fd, rc;

    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        snprintf(err, errlen, "no socket: %s", strerror(errno));
        return -errno;
    }
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)); /* connect waits on it, too */
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
        return fd;
    rc = -errno;
    close(fd);
    if (rc == -ENOTDIR)
        rc = -ENOENT;
    if (rc == -ECONNREFUSED && lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode))
        rc = -EPROTOTYPE; /* or a server that died */
    if (rc == -ENOENT || rc == -ECONNREFUSED)
        snprintf(err, errlen, "no server runs at %s: start one with `edm start`", path);
    else if (rc == -EPROTOTYPE)
        snprintf(err, errlen, "%s is not a socket of EDM: set `socket` to another path", path);
    else if (rc == -EACCES)
        snprintf(err, errlen,
                 "%s: no permission: the server must be yours, or its server_group yours", path);
    else
        snprintf(err, errlen, "%s: %s: a server of yours must listen there", path, strerror(-rc));
    return rc;
}

/* May this server be asked? It can read what it is given, so it must be somebody trusted. */
static int check_owner(int fd, const char *path, const char *group, char *err, size_t errlen)
{
    struct ucred peer = {0};
    socklen_t len = sizeof(peer);
    struct group *g;
    struct stat st;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len)) {
        snprintf(err, errlen, "%s: %s: cannot tell whose server it is", path, strerror(errno));
        return -EPERM;
    }
    if (peer.uid == geteuid() || peer.uid == 0)
        return 0;
    g = *group ? getgrnam(group) : NULL;
    if (g && stat(path, &st) == 0 && st.st_gid == g->gr_gid)
        return 0;
    snprintf(err, errlen,
             "%s: the server there belongs to another user (uid %u): set `socket` to your own, or "
             "`server_group` to the group you share",
             path, (unsigned)peer.uid);
    return -EPERM;
}

static int connect_path(const char *path, const char *group, char *err, size_t errlen)
{
    int fd = open_socket(path, err, errlen), rc;

    if (fd < 0)
        return fd;
    rc = check_owner(fd, path, group, err, errlen);
    if (!rc)
        return fd;
    close(fd);
    return rc;
}

/* Nobody there for us: as the shim sees it. */
static bool nobody_there(int rc)
{
    return rc == -ENOENT || rc == -ECONNREFUSED || rc == -EACCES;
}

int edm_client_connect(const struct edm_config *c, bool shared, char *err, size_t errlen)
{
    int fd = connect_path(c->socket, c->server_group, err, errlen);
    char other[512];
    int fd2;

    if (!nobody_there(fd) || !shared || !c->socket_is_default)
        return fd;
    fd2 = connect_path(EDM_SYSTEM_SOCKET, c->server_group, other, sizeof(other));
    return fd2 >= 0 ? fd2 : fd;
}

pid_t edm_client_peer(int fd)
{
    struct ucred peer = {0};
    socklen_t len = sizeof(peer);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len))
        return 0;
    return peer.pid;
}

static int send_request(int fd, const struct edm_client_call *call)
{
    struct edm_msg msg = {EDM_PROTO_MAGIC, EDM_PROTO_VERSION, call->type, call->len};
    struct iovec iov[2] = {{&msg, sizeof(msg)}, {(void *)call->payload, call->len}};
    struct msghdr mh = {.msg_iov = iov, .msg_iovlen = call->len ? 2 : 1};
    ssize_t n;

    do
        n = sendmsg(fd, &mh, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* One whole packet, or -ETIMEDOUT, -ECONNRESET, -EPROTO. Signals do not stretch the limit. */
static int receive(int fd, struct packet *p)
{
    int64_t end = now_ms() + EDM_CLIENT_LIMIT_MS;
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    ssize_t n;
    int rc;

    for (;;) {
        int64_t left = end - now_ms();

        rc = poll(&pfd, 1, left > 0 ? (int)left : 0);
        if (rc == 0)
            return -ETIMEDOUT;
        if (rc < 0 && errno != EINTR)
            return -errno;
        if (rc < 0)
            continue;
        n = recv(fd, p, sizeof(*p), MSG_DONTWAIT | MSG_TRUNC);
        if (n >= 0 || (errno != EINTR && errno != EAGAIN))
            break;
    }
    if (n <= 0)
        return n < 0 ? -errno : -ECONNRESET;
    if ((size_t)n < sizeof(p->msg) || (size_t)n > sizeof(*p) || p->msg.magic != EDM_PROTO_MAGIC ||
        p->msg.version != EDM_PROTO_VERSION || p->msg.len != (size_t)n - sizeof(p->msg))
        return -EPROTO;
    return 0;
}

static int broken(int rc, char *err, size_t errlen)
{
    if (rc == -ETIMEDOUT || rc == -EAGAIN) {
        snprintf(err, errlen, "the server does not answer: `edm restart` replaces it");
        rc = -ETIMEDOUT;
    } else if (rc == -EPROTO) {
        snprintf(err, errlen,
                 "the server speaks another protocol: EDM " EDM_VERSION " is needed on both sides");
    } else {
        snprintf(err, errlen, "the server went away (%s): see its log", strerror(-rc));
    }
    return rc;
}

static int finish(const struct packet *p, struct edm_done *done, char *err, size_t errlen)
{
    struct edm_done d;

    if (p->msg.len != sizeof(d))
        return broken(-EPROTO, err, errlen);
    memcpy(&d, p->payload, sizeof(d));
    d.text[sizeof(d.text) - 1] = '\0';
    if (done)
        *done = d;
    if (!d.code)
        return 0;
    snprintf(err, errlen, "%s", *d.text ? d.text : strerror(d.code < 0 ? -d.code : d.code));
    return d.code < 0 ? d.code : -d.code;
}

int edm_client_call(int fd, const struct edm_client_call *call, struct edm_done *done, char *err,
                    size_t errlen)
{
    static struct packet p; /* 64 KiB: too much for a stack */
    struct edm_progress progress;
    int rc = send_request(fd, call);

    while (!rc) {
        rc = receive(fd, &p);
        if (rc)
            break;
        switch (p.msg.type) {
        case EDM_MSG_DONE:
            return finish(&p, done, err, errlen);
        case EDM_MSG_PART:
            rc = call->part ? call->part(call->ctx, p.payload, p.msg.len) : 0;
            if (rc) {
                snprintf(err, errlen, "the answer cannot be taken: %s", strerror(-rc));
                return rc;
            }
            break;
        case EDM_MSG_PROGRESS:
            if (p.msg.len != sizeof(progress)) {
                rc = -EPROTO;
                break;
            }
            memcpy(&progress, p.payload, sizeof(progress));
            if (call->progress)
                call->progress(call->ctx, &progress);
            break;
        default:
            rc = -EPROTO;
        }
    }
    return broken(rc, err, errlen);
}

int edm_client_runs(const struct edm_config *c, bool shared, char *err, size_t errlen)
{
    const struct edm_client_call ping = {.type = EDM_MSG_PING};
    int fd = edm_client_connect(c, shared, err, errlen), rc;

    if (fd == -ENOENT || fd == -ECONNREFUSED)
        return 0;
    if (fd < 0)
        return fd;
    rc = edm_client_call(fd, &ping, NULL, err, errlen);
    close(fd);
    if (rc == -ECONNRESET) /* it was just ending, or killed */
        return 0;
    return rc ? rc : 1;
}
