/*
 * Connections to the front door: who may come in, and what comes on them until a thread of the
 * server, or an instance, has taken them over.
 */
#include "../config/log.h"
#include "die.h"
#include "instance.h"
#include "server_int.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNS_MAX 16384
#define CONNS_PROCESS 64 /* a process needs one, and one more while it execs */

/* ---- messages ---- */

int server_send(int fd, uint32_t type, const void *payload, uint32_t len, const int *fds,
                unsigned nfds)
{
    struct edm_msg msg = {EDM_PROTO_MAGIC, EDM_PROTO_VERSION, type, len};
    struct iovec iov[2] = {{&msg, sizeof(msg)}, {(void *)(uintptr_t)payload, len}};
    char buf[CMSG_SPACE(EDM_MSG_FDS * sizeof(int))] = {0};
    struct msghdr h = {.msg_iov = iov, .msg_iovlen = len ? 2 : 1};
    if (nfds) {
        h.msg_control = buf;
        h.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&h);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
    }
    return sendmsg(fd, &h, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int server_send_done(int fd, int code, uint32_t count, const char *text)
{
    struct edm_done d = {.code = code, .count = count};
    snprintf(d.text, sizeof(d.text), "%s", text);
    return server_send(fd, EDM_MSG_DONE, &d, sizeof(d), NULL, 0);
}

struct packet {
    struct edm_msg msg;
    uint8_t payload[4096];
    int fds[EDM_MSG_FDS];
    unsigned nfds;
};

static void packet_close_fds(struct packet *p)
{
    for (unsigned i = 0; i < p->nfds; i++)
        if (p->fds[i] >= 0)
            close(p->fds[i]);
    p->nfds = 0;
}

static void packet_take_fds(struct packet *p, struct msghdr *h)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        unsigned n = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        const int *fds = (const int *)(const void *)CMSG_DATA(c);
        for (unsigned i = 0; i < n; i++) {
            if (p->nfds < EDM_MSG_FDS)
                p->fds[p->nfds++] = fds[i];
            else
                close(fds[i]);
        }
    }
}

/* 1: a well-formed packet; 0: nothing now; -errno: end of the connection or nonsense. */
static int packet_read(int fd, struct packet *p)
{
    char buf[CMSG_SPACE(EDM_MSG_FDS * sizeof(int))];
    struct iovec iov[2] = {{&p->msg, sizeof(p->msg)}, {p->payload, sizeof(p->payload)}};
    struct msghdr h = {
        .msg_iov = iov, .msg_iovlen = 2, .msg_control = buf, .msg_controllen = sizeof(buf)};
    p->nfds = 0;
    ssize_t n = recvmsg(fd, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    packet_take_fds(p, &h);
    if (n == 0)
        return -ECONNRESET;
    bool sane = (size_t)n >= sizeof(p->msg) && !(h.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) &&
                p->msg.magic == EDM_PROTO_MAGIC && p->msg.len == (size_t)n - sizeof(p->msg);
    return sane ? 1 : -EPROTO;
}

/* ---- access ---- */

static bool in_group(int fd, gid_t gid)
{
    gid_t groups[256];
    socklen_t len = sizeof(groups);
    if (gid == server.group)
        return true;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &len))
        return false;
    for (size_t i = 0; i < len / sizeof(gid_t); i++)
        if (groups[i] == server.group)
            return true;
    return false;
}

static bool peer_allowed(int fd, const struct ucred *c)
{
    if (c->uid == geteuid() || c->uid == 0)
        return true;
    return server.has_group && in_group(fd, c->gid);
}

/* ---- connections ---- */

/* The LPET's connection ended: with its process, or without (KERNEL.md 11). One that came back to
 * us may have lost patience before it had our answer. */
static void conn_lost(struct instance *in, bool again)
{
    if (instance_is_gone(in))
        return;
    pthread_mutex_lock(&in->lock);
    if (again)
        instance_await_lpet(in);
    else if (in->claimed && !in->detached)
        evict_abandon(in);
    pthread_mutex_unlock(&in->lock);
    instance_wake(in);
}

void conn_close(struct conn *c)
{
    if (c->state == CONN_ATTACHED)
        server.hangup_ns = now_ns();
    if (c->in) {
        if (c->state == CONN_CLAIM)
            instance_close_channel(c->in);
        if (c->state == CONN_ATTACHED)
            conn_lost(c->in, c->again);
        if (c->state != CONN_HELLO)
            c->in->sock = -1;
        instance_put(c->in);
    }
    if (c->fd >= 0)
        close(c->fd);
    if (c->prev)
        c->prev->next = c->next;
    else
        server.conns = c->next;
    if (c->next)
        c->next->prev = c->prev;
    server.nconns--;
    free(c);
}

static void conn_refuse(struct conn *c, int code, const char *text)
{
    edm_log(code == -EPROTO ? EDM_LOG_WARNING : EDM_LOG_INFO, "pid %d refused: %s", c->peer.pid,
            text);
    server_send_done(c->fd, code, 0, text);
    conn_close(c);
}

/* So that one process, or one user, does not leave others outside. */
static const char *conn_check(const struct conn *c)
{
    unsigned user = 0, process = 0;
    for (const struct conn *o = server.conns; o; o = o->next) {
        user += o->peer.uid == c->peer.uid;
        process += o->peer.pid && o->peer.pid == c->peer.pid; /* 0: of a namespace around ours */
    }
    bool ours = c->peer.uid == 0 || c->peer.uid == geteuid();
    if (!peer_allowed(c->fd, &c->peer))
        return "this server belongs to another user: start your own, or ask for server_group";
    if (process > CONNS_PROCESS || (user > CONNS_MAX / 2 && !ours))
        return "too many connections";
    return NULL;
}

void conn_accept(void)
{
    int fd = accept4(server.listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE) { /* KERNEL.md 22: turn it away, do not spin */
            close(server.spare_fd);
            fd = accept4(server.listen_fd, NULL, NULL, SOCK_CLOEXEC);
            if (fd >= 0)
                close(fd);
            server.spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        }
        return;
    }
    struct conn *c = calloc(1, sizeof(*c));
    socklen_t len = sizeof(c->peer);
    struct timeval tv = {5, 0};
    if (!c || server.nconns >= CONNS_MAX) {
        free(c);
        close(fd);
        return;
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
    c->fd = fd;
    c->next = server.conns;
    if (server.conns)
        server.conns->prev = c;
    server.conns = c;
    server.nconns++;
    bool known = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c->peer, &len) == 0;
    const char *bad = known ? conn_check(c) : "who are you?";
    if (bad && server.nconns > CONNS_MAX / 64) {
        conn_refuse(c, -EACCES, bad);
        return;
    }
    c->refused = bad; /* which is heard once it has sent its request */
    struct epoll_event ev = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
    if (epoll_ctl(server.epoll_fd, EPOLL_CTL_ADD, fd, &ev))
        conn_close(c);
}

static int welcome(struct conn *c, int uffd)
{
    struct edm_welcome w = {c->in->number, c->in->chan_size};
    int fds[EDM_MSG_FDS] = {server.uffd_dev, c->in->chan_fd, c->in->cmd_peer, c->in->comp_efd,
                            uffd};
    int e = server_send(c->fd, EDM_MSG_WELCOME, &w, sizeof(w), fds, uffd >= 0 ? 5 : 4);
    close(c->in->cmd_peer);
    c->in->cmd_peer = -1;
    return e;
}

static void on_hello(struct conn *c, const struct packet *p)
{
    char err[200];
    if (p->msg.len != sizeof(c->hello)) {
        conn_refuse(c, -EPROTO, "shim and server are of different versions");
        return;
    }
    memcpy(&c->hello, p->payload, sizeof(c->hello));
    int e = instance_create(&c->hello, c->peer.pid, c->peer.uid, &c->in, err, sizeof(err));
    if (e) {
        conn_refuse(c, e, err);
        return;
    }
    c->state = CONN_HELLO;
    die_at(DIE_HELLO);
    e = instance_open_channel(c->in);
    if (e || (e = welcome(c, -1)))
        conn_refuse(c, e, "the server is out of memory or descriptors");
    die_at(DIE_WELCOME);
}

static void on_claim(struct conn *c, const struct packet *p)
{
    struct edm_claim claim;
    if (p->msg.len != sizeof(claim)) {
        conn_refuse(c, -EPROTO, "shim and server are of different versions");
        return;
    }
    memcpy(&claim, p->payload, sizeof(claim));
    struct instance *in = instance_find_nonce(claim.nonce);
    if (!in || in->claimed || in->chan) {
        instance_put(in);
        conn_refuse(c, -ENOENT, "no forked child waits to be claimed");
        return;
    }
    c->in = in;
    c->state = CONN_CLAIM;
    die_at(DIE_CLAIM);
    int e = instance_open_channel(in);
    if (e || (e = welcome(c, in->uffd)))
        conn_refuse(c, e, "the server is out of memory or descriptors");
    die_at(DIE_CLAIM_WELCOME);
}

/* The descriptors of UFFD; they belong to the instance on success. */
static void on_uffd(struct conn *c, struct packet *p)
{
    char err[200] = "shim and server are of different versions";
    struct edm_staging st;
    bool claim = c->state == CONN_CLAIM;
    unsigned want = claim ? 2 : 3;
    if (p->msg.len != sizeof(st) || p->nfds != want) {
        conn_refuse(c, -EPROTO, err);
        return;
    }
    memcpy(&st, p->payload, sizeof(st));
    int e;
    c->in->sock = c->fd;
    die_at(claim ? DIE_CLAIM_UFFD : DIE_UFFD);
    if (claim) {
        e = instance_claim(c->in, c->peer.pid, p->fds[0], p->fds[1], &st, err, sizeof(err));
    } else {
        instance_publish(instance_get(c->in));
        e = instance_attach(c->in, p->fds[0], p->fds[1], p->fds[2], &c->hello, &st, err,
                            sizeof(err));
    }
    p->nfds = 0;
    c->state = CONN_ATTACHED;
    if (e) {
        struct instance *in = c->in;
        if (!claim)
            instance_destroy(in);
        conn_refuse(c, e, err);
        return;
    }
    edm_info("pid %d %s: %s, %lu MiB local", c->peer.pid, claim ? "claimed" : "attached",
             c->in->command, c->in->budget.limit >> 8);
    instance_rebalance();
    die_at(claim ? DIE_CLAIMED : DIE_ATTACHED);
    if (server_send(c->fd, EDM_MSG_READY, NULL, 0, NULL, 0))
        conn_close(c);
    die_at(claim ? DIE_CLAIM_READY : DIE_READY);
}

static void on_reattach(struct conn *c, const struct packet *p)
{
    struct edm_reattach again;
    if (p->msg.len != sizeof(again)) {
        conn_refuse(c, -EPROTO, "shim and server are of different versions");
        return;
    }
    memcpy(&again, p->payload, sizeof(again));
    c->in = instance_reattach(again.instance, c->peer.pid, c->fd);
    if (!c->in) {
        conn_refuse(c, -ENOENT, "this server has nothing of yours");
        return;
    }
    c->state = CONN_ATTACHED;
    c->again = true;
    edm_info("pid %d is back", c->peer.pid);
    die_at(DIE_REATTACH);
    if (server_send(c->fd, EDM_MSG_READY, NULL, 0, NULL, 0))
        conn_close(c);
}

static void on_control(struct conn *c, const struct packet *p)
{
    epoll_ctl(server.epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
    int e = control_begin(c->fd, &c->peer, &p->msg, p->payload);
    if (e == -EPROTO) {
        conn_refuse(c, e, "malformed request");
    } else if (e) {
        conn_refuse(c, e, "too much is asked of the server at once: ask again later");
    } else {
        c->fd = -1; /* a thread's now */
        conn_close(c);
    }
}

static void on_packet(struct conn *c, struct packet *p)
{
    if (c->refused) {
        conn_refuse(c, -EACCES, c->refused);
        return;
    }
    if (p->msg.version != EDM_PROTO_VERSION) {
        conn_refuse(c, -EPROTO, "shim and server are of different versions: restart the server");
        return;
    }
    switch (p->msg.type) {
    case EDM_MSG_HELLO:
    case EDM_MSG_CLAIM:
        if (c->state != CONN_NEW)
            break;
        (p->msg.type == EDM_MSG_HELLO ? on_hello : on_claim)(c, p);
        return;
    case EDM_MSG_UFFD:
        if (c->state != CONN_HELLO && c->state != CONN_CLAIM)
            break;
        on_uffd(c, p);
        return;
    case EDM_MSG_REATTACH:
        if (c->state != CONN_NEW)
            break;
        on_reattach(c, p);
        return;
    case EDM_MSG_PING:
    case EDM_MSG_HANDOVER:
    case EDM_MSG_STAT:
    case EDM_MSG_STOP:
    case EDM_MSG_RESIZE:
    case EDM_MSG_EVICT:
    case EDM_MSG_FETCH:
    case EDM_MSG_WATCH:
    case EDM_MSG_STAY:
        if (c->state != CONN_NEW)
            break;
        on_control(c, p);
        return;
    default:
        break;
    }
    edm_warn("pid %d: unexpected message %u: connection dropped", c->peer.pid, p->msg.type);
    conn_close(c);
}

void conn_ready(struct conn *c)
{
    struct packet p;
    int n = packet_read(c->fd, &p);
    if (n == 0)
        return;
    if (n < 0) {
        if (n == -EPROTO)
            edm_warn("pid %d: malformed message: connection dropped", c->peer.pid);
        packet_close_fds(&p);
        conn_close(c);
        return;
    }
    on_packet(c, &p);
    packet_close_fds(&p);
}
