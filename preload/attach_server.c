/*
 * The way to the server: where it listens, starting one or waiting for one, and messages with
 * descriptors.
 */
#include "attach_int.h"
#include <errno.h>
#include <sys/stat.h>
#include <sys/un.h>

#define AUTO_AWAIT_MS 2000 /* then it is not being replaced, but gone: a program starts another */

/* ------------------------------------------------------------------ messages */

union control {
    char buf[CMSG_SPACE(EDM_MSG_FDS * sizeof(int))];
    struct cmsghdr align;
};

/* p->head.type and .len are set. */
int attach_packet_send(int sock, struct packet *p, const int *fds, uint32_t nfds)
{
    union control control;
    struct iovec iov = {.iov_base = p, .iov_len = sizeof(p->head) + p->head.len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    p->head.magic = EDM_PROTO_MAGIC;
    p->head.version = EDM_PROTO_VERSION;
    if (nfds) {
        msg.msg_control = control.buf;
        msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        for (uint32_t i = 0; i < nfds; i++)
            ((int *)CMSG_DATA(c))[i] = fds[i];
    }
    long rc;
    do
        rc = sys_sendmsg(sock, &msg, MSG_NOSIGNAL);
    while (rc == -EINTR);
    return rc < 0 ? (int)rc : 0;
}

/* One packet, of a known type and long enough for it. Descriptors that came are in fds[0..*nfds).
 */
static int packet_recv(int sock, struct packet *p, int *fds, uint32_t *nfds)
{
    union control control;
    struct iovec iov = {.iov_base = p, .iov_len = sizeof(*p)};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.buf,
                         .msg_controllen = sizeof(control.buf)};
    long got;
    *nfds = 0;
    do
        got = sys_recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
    while (got == -EINTR);
    if (got < 0)
        return (int)got;
    if (!got)
        return -ECONNRESET;
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
        uint32_t n = (uint32_t)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (uint32_t i = 0; i < n && i < EDM_MSG_FDS; i++)
            fds[(*nfds)++] = ((int *)CMSG_DATA(c))[i];
    }
    if (msg.msg_flags & MSG_CTRUNC)
        return -EMFILE;
    if ((size_t)got < sizeof(p->head) || p->head.magic != EDM_PROTO_MAGIC ||
        p->head.version != EDM_PROTO_VERSION || p->head.len != (size_t)got - sizeof(p->head))
        return -EPROTO;
    return 0;
}

/* The answer `type` with at least `len` bytes, or what the server says instead. */
int attach_packet_expect(int sock, uint32_t type, uint32_t len, struct packet *p, int *fds,
                         uint32_t *nfds, struct lpet_text *why)
{
    int rc = packet_recv(sock, p, fds, nfds);
    if (!rc && p->head.type == EDM_MSG_DONE && p->head.len >= sizeof(p->u.done) &&
        type != EDM_MSG_DONE) {
        p->u.done.text[sizeof(p->u.done.text) - 1] = 0;
        lpet_text_put(why, p->u.done.text[0] ? p->u.done.text : "the server refuses");
        return p->u.done.code < 0 ? p->u.done.code : -EPROTO;
    }
    if (!rc && (p->head.type != type || p->head.len < len))
        rc = -EPROTO;
    if (rc) {
        lpet_text_put(why, "the server did not attach this program");
        lpet_text_errno(why, rc);
    }
    return rc;
}

/* ------------------------------------------------------------------ connecting */

static bool is_system_socket(const char *path)
{
    const char *s = SYSTEM_SOCKET;
    while (*s && *s == *path)
        s++, path++;
    return *s == *path;
}

/* Only our own user's server, or root's, is given our memory, or one of the group that our settings
 * name. */
static int peer_check(int sock, const char *path, struct lpet_text *why)
{
    struct stat st;
    struct ucred cred = {.uid = ~0u};
    socklen_t len = sizeof(cred);
    long rc = sys_call6(SYS_getsockopt, sock, SOL_SOCKET, SO_PEERCRED, (long)&cred, (long)&len, 0);
    uint32_t self = (uint32_t)sys_call3(SYS_geteuid, 0, 0, 0);
    if (!rc && (cred.uid == self || cred.uid == 0))
        return 0;
    /* by its name, and a default one may lie where anybody could have made it */
    bool chosen = !shim_config.config.socket_is_default || is_system_socket(path);
    if (!rc && chosen && shim_config.group != ~0u &&
        !sys_call3(SYS_lstat, (long)path, (long)&st, 0) && S_ISSOCK(st.st_mode) &&
        st.st_uid == cred.uid && st.st_gid == shim_config.group)
        return 0;
    lpet_text_put(why, "the socket ");
    lpet_text_put(why, path);
    lpet_text_put(why, " is served by another user: set socket to your own, or server_group to the "
                       "group you share");
    return -EPERM;
}

/* A connected socket with time limits, or -errno with why set. */
int attach_server_connect(const char *path, struct lpet_text *why)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = ANSWER_LIMIT_S};
    size_t n = 0;
    for (; path[n] && n + 1 < sizeof(sun.sun_path); n++)
        sun.sun_path[n] = path[n];
    long sock = sys_call3(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (sys_is_error(sock)) {
        lpet_text_put(why, "cannot make a socket");
        lpet_text_errno(why, sock);
        return (int)sock;
    }
    sys_call6(SYS_setsockopt, sock, SOL_SOCKET, SO_RCVTIMEO, (long)&limit, sizeof(limit), 0);
    sys_call6(SYS_setsockopt, sock, SOL_SOCKET, SO_SNDTIMEO, (long)&limit, sizeof(limit), 0);
    long rc;
    do
        rc = sys_call3(SYS_connect, sock, (long)&sun, sizeof(sun));
    while (rc == -EINTR);
    if (rc == -EPROTOTYPE) {
        lpet_text_put(why, path);
        lpet_text_put(why, " is not a socket of EDM: set socket to another path");
    } else if (rc == -EACCES) {
        lpet_text_put(why, path);
        lpet_text_put(why, ": no permission: the server must be yours, or its server_group yours");
    } else if (rc && rc != -EISCONN) {
        lpet_text_put(why, "no server at ");
        lpet_text_put(why, path);
        lpet_text_errno(why, rc);
        lpet_text_put(why, ": start one with `edm start`");
    } else {
        rc = peer_check((int)sock, path, why);
    }
    if (!rc)
        return (int)sock;
    sys_close((int)sock);
    return (int)rc;
}

bool attach_nobody_there(int err)
{
    return err == -ENOENT || err == -ECONNREFUSED || err == -ENOTDIR || err == -EACCES;
}

/* The user's server, else the host's. */
int attach_server_find(const char **path, struct lpet_text *why)
{
    *path = shim_config.config.socket;
    int sock = attach_server_connect(*path, why);
    if (sock >= 0 || !attach_nobody_there(sock) || !attach_socket_default)
        return sock;
    struct lpet_text second;
    second.len = 0;
    int other = attach_server_connect(SYSTEM_SOCKET, &second);
    if (other < 0)
        return sock;
    *path = SYSTEM_SOCKET;
    return other;
}

/* For a server that is just being replaced. */
static int server_await(struct lpet *l, uint64_t ms, bool forever)
{
    uint64_t until = lpet_now_ms() + ms;
    int sock;
    do {
        lpet_pause_ms(AWAIT_PAUSE_MS);
        l->why.len = 0;
        sock = attach_server_find(&l->socket, &l->why);
    } while (sock < 0 && attach_nobody_there(sock) && (forever || lpet_now_ms() < until));
    return sock;
}

int attach_server_find_or_start(struct lpet *l, bool was_there)
{
    const struct edm_settings *s = &shim_config.settings;
    bool may_start = shim_config.config.server == EDM_SERVER_AUTO && !l->is_claim;
    int sock = attach_server_find(&l->socket, &l->why);
    if (sock >= 0 || !attach_nobody_there(sock))
        return sock;
    if (l->is_claim) /* it has pages there */
        return server_await(l, s->reconnect_timeout_ms, s->on_server_lost == EDM_LOST_WAIT);
    if (was_there)
        sock = server_await(l, may_start ? AUTO_AWAIT_MS : s->reconnect_timeout_ms, false);
    if (!may_start || sock >= 0 || !attach_nobody_there(sock))
        return sock;
    l->why.len = 0;
    int rc = autostart_run(l);
    return rc ? rc : attach_server_connect(shim_config.config.socket, &l->why);
}
