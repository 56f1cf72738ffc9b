#include "server.h"
#include "../config/log.h"
#include "die.h"
#include "instance.h"
#include "keeper.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <libgen.h>
#include <pwd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define AUTO_LINGER_NS 5000000000ull
#define CONNS_MAX 16384
#define CONNS_PROCESS 64 /* a process needs one, and one more while it execs */
#define LOCK_TRIES 50
#define LPET_BACK_NS 5000000000ull /* an LPET that lives comes back much sooner */

enum conn_state { CONN_NEW, CONN_HELLO, CONN_CLAIM, CONN_ATTACHED };

struct conn {
    int fd;
    enum conn_state state;
    bool again; /* came by REATTACH */
    struct ucred peer;
    struct edm_hello hello;
    struct instance *in; /* one reference from HELLO or CLAIM on */
    struct conn *prev, *next;
};

static struct {
    struct server_options opt;
    int lock_fd, listen_fd, epoll_fd, stop_efd, signal_fd, uffd_dev, spare_fd;
    char socket[EDM_CONFIG_PATH_MAX];
    gid_t group;
    bool has_group;
    struct conn *conns;
    unsigned nconns;
    uint64_t idle_since_ns;
    uint64_t hangup_ns; /* last time that an instance's socket closed */
    pthread_mutex_t reap_lock;
} srv = {.lock_fd = -1,
         .listen_fd = -1,
         .epoll_fd = -1,
         .stop_efd = -1,
         .signal_fd = -1,
         .uffd_dev = -1,
         .spare_fd = -1,
         .reap_lock = PTHREAD_MUTEX_INITIALIZER};

static char keeper_mark; /* in the loop: the keeper has ended */

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

static bool in_group(uid_t uid, gid_t gid)
{
    gid_t groups[256];
    int n = 256;
    struct passwd *pw = getpwuid(uid);
    if (gid == srv.group)
        return true;
    if (!pw || getgrouplist(pw->pw_name, pw->pw_gid, groups, &n) < 0)
        return false;
    for (int i = 0; i < n; i++)
        if (groups[i] == srv.group)
            return true;
    return false;
}

static bool peer_allowed(const struct ucred *c)
{
    if (c->uid == geteuid() || c->uid == 0)
        return true;
    return srv.has_group && in_group(c->uid, c->gid);
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

static void conn_close(struct conn *c)
{
    if (c->state == CONN_ATTACHED)
        srv.hangup_ns = now_ns();
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
        srv.conns = c->next;
    if (c->next)
        c->next->prev = c->prev;
    srv.nconns--;
    free(c);
}

static void conn_refuse(struct conn *c, int code, const char *text)
{
    edm_info("pid %d refused: %s", c->peer.pid, text);
    server_send_done(c->fd, code, 0, text);
    conn_close(c);
}

/* So that one process, or one user, does not leave others outside. */
static const char *conn_check(const struct conn *c)
{
    unsigned user = 0, process = 0;
    for (const struct conn *o = srv.conns; o; o = o->next) {
        user += o->peer.uid == c->peer.uid;
        process += o->peer.pid && o->peer.pid == c->peer.pid; /* 0: of a namespace around ours */
    }
    bool ours = c->peer.uid == 0 || c->peer.uid == geteuid();
    if (!peer_allowed(&c->peer))
        return "this server belongs to another user: start your own, or ask for server_group";
    if (process > CONNS_PROCESS || (user > CONNS_MAX / 2 && !ours))
        return "too many connections";
    return NULL;
}

static void conn_accept(void)
{
    int fd = accept4(srv.listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE) { /* KERNEL.md 22: turn it away, do not spin */
            close(srv.spare_fd);
            fd = accept4(srv.listen_fd, NULL, NULL, SOCK_CLOEXEC);
            if (fd >= 0)
                close(fd);
            srv.spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        }
        return;
    }
    struct conn *c = calloc(1, sizeof(*c));
    socklen_t len = sizeof(c->peer);
    struct timeval tv = {5, 0};
    if (!c || srv.nconns >= CONNS_MAX) {
        free(c);
        close(fd);
        return;
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
    c->fd = fd;
    c->next = srv.conns;
    if (srv.conns)
        srv.conns->prev = c;
    srv.conns = c;
    srv.nconns++;
    bool known = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c->peer, &len) == 0;
    const char *bad = known ? conn_check(c) : "who are you?";
    if (bad) {
        conn_refuse(c, -EACCES, bad);
        return;
    }
    struct epoll_event ev = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
    if (epoll_ctl(srv.epoll_fd, EPOLL_CTL_ADD, fd, &ev))
        conn_close(c);
}

static int welcome(struct conn *c, int uffd)
{
    struct edm_welcome w = {c->in->number, c->in->chan_size};
    int fds[EDM_MSG_FDS] = {srv.uffd_dev, c->in->chan_fd, c->in->cmd_peer, c->in->comp_efd, uffd};
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
    epoll_ctl(srv.epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
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

static void conn_ready(struct conn *c)
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

/* ---- opening ---- */

static int make_folder(const char *path, char *err, size_t errlen)
{
    struct stat st;
    if (mkdir(path, 0700) && errno != EEXIST) {
        int e = -errno;
        snprintf(err, errlen, "%s: cannot make the folder: %s", path, strerror(-e));
        return e;
    }
    if (stat(path, &st) || !S_ISDIR(st.st_mode)) {
        snprintf(err, errlen, "%s: not a folder", path);
        return -ENOTDIR;
    }
    if (st.st_uid != geteuid() && st.st_uid != 0) {
        snprintf(err, errlen, "%s: belongs to another user: set `socket` to a path of your own",
                 path);
        return -EPERM;
    }
    return 0;
}

static int take_lock(char *err, size_t errlen)
{
    char path[EDM_CONFIG_PATH_MAX + 8];
    snprintf(path, sizeof(path), "%s.lock", srv.socket);
    srv.lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (srv.lock_fd < 0) {
        int e = -errno;
        snprintf(err, errlen, "%s: %s", path, strerror(-e));
        return e;
    }
    /* a server that was just killed: its keeper lets go of the lock in a moment */
    struct timespec ts = {0, 20000000};
    int busy = flock(srv.lock_fd, LOCK_EX | LOCK_NB);
    for (int i = 0; busy && i < LOCK_TRIES; i++) {
        nanosleep(&ts, NULL);
        busy = flock(srv.lock_fd, LOCK_EX | LOCK_NB);
    }
    if (busy) {
        snprintf(err, errlen, "%s: a server runs there already", srv.socket);
        return -EADDRINUSE;
    }
    return 0;
}

static int find_group(const char *name, char *err, size_t errlen)
{
    struct group *g = *name ? getgrnam(name) : NULL;
    if (*name && !g) {
        snprintf(err, errlen, "server_group: no group named %s", name);
        return -ENOENT;
    }
    srv.has_group = g != NULL;
    srv.group = g ? g->gr_gid : 0;
    return 0;
}

static int bind_socket(char *err, size_t errlen)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", srv.socket);
    srv.listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    unlink(srv.socket);
    mode_t old = umask(0177);
    int bad = srv.listen_fd < 0 || bind(srv.listen_fd, (struct sockaddr *)&sa, sizeof(sa));
    int e = bad ? -errno : 0;
    umask(old);
    if (!e && srv.has_group && (chown(srv.socket, (uid_t)-1, srv.group) || chmod(srv.socket, 0660)))
        e = -errno;
    if (!e && listen(srv.listen_fd, 512))
        e = -errno;
    if (e)
        snprintf(err, errlen, "%s: cannot listen: %s", srv.socket, strerror(-e));
    return e;
}

static int add_fd(int fd, void *ptr)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = ptr};
    return epoll_ctl(srv.epoll_fd, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

static int open_loop(char *err, size_t errlen)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    srv.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    srv.stop_efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    srv.signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    srv.spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (srv.epoll_fd < 0 || srv.stop_efd < 0 || srv.signal_fd < 0 ||
        add_fd(srv.listen_fd, &srv.listen_fd) || add_fd(srv.stop_efd, &srv.stop_efd) ||
        add_fd(srv.signal_fd, &srv.signal_fd)) {
        snprintf(err, errlen, "out of descriptors: %s", strerror(errno));
        return -EMFILE;
    }
    return 0;
}

int server_open(const struct server_options *opt, char *err, size_t errlen)
{
    char dir[EDM_CONFIG_PATH_MAX];
    srv.opt = *opt;
    snprintf(srv.socket, sizeof(srv.socket), "%s", opt->config->socket);
    snprintf(dir, sizeof(dir), "%s", srv.socket);
    int e = make_folder(dirname(dir), err, errlen);
    if (e || (e = take_lock(err, errlen)))
        return e;
    srv.uffd_dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (srv.uffd_dev < 0) {
        e = -errno;
        snprintf(err, errlen, "/dev/userfaultfd: %s: %s", strerror(-e),
                 e == -ENOENT ? "EDM needs Linux 6.1 or newer with CONFIG_USERFAULTFD"
                              : "run edm-dms as root, or give its user access to the device");
        return e;
    }
    if ((e = find_group(opt->config->server_group, err, errlen)) || (e = bind_socket(err, errlen)))
        return e;
    return open_loop(err, errlen);
}

/* ---- running ---- */

void instance_reap(void)
{
    size_t n;
    unsigned gone = 0;
    pthread_mutex_lock(&srv.reap_lock);
    struct instance **all = instance_list(&n);
    for (size_t i = 0; i < n; i++) {
        struct instance *in = all[i];
        if (instance_is_gone(in)) {
            edm_info("pid %d ended", in->pid);
            control_keep(in);
            instance_destroy(in);
            gone++;
        }
        instance_put(in);
    }
    free(all);
    pthread_mutex_unlock(&srv.reap_lock);
    if (gone)
        instance_rebalance();
}

void server_stop(void)
{
    uint64_t one = 1;
    (void)!write(srv.stop_efd, &one, sizeof(one));
}

/* How long the loop may sleep: instances without a socket are looked at from time to time. */
static int loop_timeout(void)
{
    unsigned attached = 0;
    for (struct conn *c = srv.conns; c; c = c->next)
        attached += c->state == CONN_ATTACHED;
    if (instance_count() > attached)
        return now_ns() - srv.hangup_ns < 1000000000ull ? 10 : 250;
    return srv.opt.is_auto && instance_count() == 0 ? 500 : -1;
}

static bool auto_is_over(void)
{
    if (!srv.opt.is_auto || instance_count() || srv.nconns) {
        srv.idle_since_ns = 0;
        return false;
    }
    if (!srv.idle_since_ns)
        srv.idle_since_ns = now_ns();
    return now_ns() - srv.idle_since_ns > AUTO_LINGER_NS;
}

/* An LPET that will not come back: what it has not done is undone. One of a stopped program may
 * come late. */
static void check_restored(void)
{
    size_t n;
    struct instance **all = instance_list(&n);
    for (size_t i = 0; i < n; i++) {
        struct instance *in = all[i];
        bool late = in->restored && now_ns() - in->restored_ns > LPET_BACK_NS;
        if (late && !instance_is_gone(in) && !instance_has_lpet(in)) {
            edm_warn("pid %d: its eviction thread is gone: it runs without a budget", in->pid);
            pthread_mutex_lock(&in->lock);
            in->restored = false;
            evict_abandon(in);
            pthread_mutex_unlock(&in->lock);
            instance_wake(in);
        }
        instance_put(in);
    }
    free(all);
}

static void watch_keeper(void)
{
    if (keeper_pidfd() >= 0 && add_fd(keeper_pidfd(), &keeper_mark))
        edm_warn("the keeper is not watched: %s", strerror(errno));
}

static void on_keeper_end(void)
{
    int err = keeper_restart();
    edm_warn("the keeper was killed: %s", err ? strerror(-err) : "there is a new one");
    watch_keeper();
}

void server_run(void)
{
    struct epoll_event events[64];
    watch_keeper();
    for (;;) {
        int timeout = loop_timeout();
        int n = epoll_wait(srv.epoll_fd, events, 64, timeout);
        for (int i = 0; i < n; i++) {
            void *p = events[i].data.ptr;
            if (p == &srv.stop_efd || p == &srv.signal_fd)
                return;
            if (p == &srv.listen_fd)
                conn_accept();
            else if (p == &keeper_mark)
                on_keeper_end();
            else
                conn_ready(p);
        }
        if (timeout >= 0) {
            instance_reap();
            check_restored();
        }
        if (auto_is_over())
            return;
    }
}

/* Gives one instance its pages back, so that stopping loses nothing. False: it cannot have them. */
static bool release_one(struct instance *in)
{
    int err = instance_is_gone(in) ? 0 : instance_release(in);
    bool kept = err && !instance_is_gone(in);
    if (kept)
        edm_error("pid %d: not all of its pages could be given back (%s): it waits for another "
                  "server",
                  in->pid, strerror(-err));
    else
        instance_destroy(in);
    return !kept;
}

static bool release_all(void)
{
    bool done = true;
    while (done && instance_count()) { /* they may fork meanwhile */
        size_t n;
        struct instance **all = instance_list(&n);
        for (size_t i = 0; i < n; i++) {
            done &= release_one(all[i]);
            instance_put(all[i]);
        }
        free(all);
    }
    return done;
}

void server_close(void)
{
    char path[EDM_CONFIG_PATH_MAX + 8];
    fetch_slow_hurry();
    if (srv.listen_fd >= 0) {
        close(srv.listen_fd);
        unlink(srv.socket);
    }
    if (!release_all())
        _exit(0); /* as if killed: the keeper has what is left */
    keeper_end(); /* not before: this, too, may be cut short */
    while (srv.conns)
        conn_close(srv.conns);
    if (srv.lock_fd >= 0) {
        snprintf(path, sizeof(path), "%s.lock", srv.socket);
        if (srv.listen_fd >= 0)
            unlink(path);
        close(srv.lock_fd);
    }
}
