/*
 * The handshake with the server. The connection is made on the LPET, in its own descriptor table:
 * the program's descriptors are neither used nor seen, and a program that is out of them, or has
 * closed 0, 1 and 2, can still be attached. The thread that attaches waits for it.
 */
#include "attach.h"
#include "../config/log.h"
#include "arena.h"
#include "hooks.h"
#include "ops.h"
#include "uffd_abi.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define SYSTEM_SOCKET "/run/edm/dms.sock"
#define ANSWER_LIMIT_S 10
#define AWAIT_PAUSE_MS 50
#define AUTO_AWAIT_MS 2000 /* then it is not being replaced, but gone: a program starts another */
#define SETUP_TRIES 8
#define CLAIM_TRIES 3

/*
 * Ordinary memory, unlike *shim_state: a forked child finds what its parent was. Written by the
 * thread that attaches, while attach_state is SHIM_ATTACHING, and under fork.
 */
static struct lpet *attach_lpet;   /* of this process */
static bool attach_registered;     /* this process or the one it was forked from was attached */
static bool attach_refused;        /* … could not be, or has detached: its children do not try */
static bool attach_found;          /* there was a server when the program was loaded */
static uint64_t attach_identity;   /* address of the identity page, 0 = none yet */
static bool attach_socket_default; /* no socket was named: look at the system's, too */
static struct edm_hello attach_hello;

/* ------------------------------------------------------------------ messages */

struct packet {
    struct edm_msg head;
    union {
        struct edm_hello hello;
        struct edm_claim claim;
        struct edm_welcome welcome;
        struct edm_staging staging;
        struct edm_done done;
        struct edm_reattach reattach;
    } u;
};

union control {
    char buf[CMSG_SPACE(EDM_MSG_FDS * sizeof(int))];
    struct cmsghdr align;
};

/* p->head.type and .len are set. */
static int packet_send(int sock, struct packet *p, const int *fds, uint32_t nfds)
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
static int packet_expect(int sock, uint32_t type, uint32_t len, struct packet *p, int *fds,
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

/* Only our own user's server, or root's, is given our memory. */
static int peer_check(int sock, const char *path, struct lpet_text *why)
{
    struct ucred cred = {.uid = ~0u};
    socklen_t len = sizeof(cred);
    long rc = sys_call6(SYS_getsockopt, sock, SOL_SOCKET, SO_PEERCRED, (long)&cred, (long)&len, 0);
    uint32_t self = (uint32_t)sys_call3(SYS_geteuid, 0, 0, 0);
    if (!rc && (cred.uid == self || cred.uid == 0))
        return 0;
    lpet_text_put(why, "the socket ");
    lpet_text_put(why, path);
    lpet_text_put(why, " is served by another user: name your own with socket");
    return -EPERM;
}

/* A connected socket with time limits, or -errno with why set. */
static int server_connect(const char *path, struct lpet_text *why)
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
    if (rc && rc != -EISCONN) {
        lpet_text_put(why, "no server at ");
        lpet_text_put(why, path);
        lpet_text_errno(why, rc);
    } else {
        rc = peer_check((int)sock, path, why);
    }
    if (!rc)
        return (int)sock;
    sys_close((int)sock);
    return (int)rc;
}

static bool nobody_there(int err)
{
    return err == -ENOENT || err == -ECONNREFUSED || err == -ENOTDIR || err == -EACCES;
}

/* The user's server, else the host's. */
static int server_find(const char **path, struct lpet_text *why)
{
    *path = shim_config.config.socket;
    int sock = server_connect(*path, why);
    if (sock >= 0 || !nobody_there(sock) || !attach_socket_default)
        return sock;
    struct lpet_text second;
    second.len = 0;
    int other = server_connect(SYSTEM_SOCKET, &second);
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
        sock = server_find(&l->socket, &l->why);
    } while (sock < 0 && nobody_there(sock) && (forever || lpet_now_ms() < until));
    return sock;
}

static int server_find_or_start(struct lpet *l, bool was_there)
{
    const struct edm_settings *s = &shim_config.settings;
    bool may_start = shim_config.config.server == EDM_SERVER_AUTO && !l->is_claim;
    int sock = server_find(&l->socket, &l->why);
    if (sock >= 0 || !nobody_there(sock))
        return sock;
    if (l->is_claim) /* it has pages there */
        return server_await(l, s->reconnect_timeout_ms, s->on_server_lost == EDM_LOST_WAIT);
    if (was_there)
        sock = server_await(l, may_start ? AUTO_AWAIT_MS : s->reconnect_timeout_ms, false);
    if (!may_start || sock >= 0 || !nobody_there(sock))
        return sock;
    l->why.len = 0;
    int rc = autostart_run(l);
    return rc ? rc : server_connect(shim_config.config.socket, &l->why);
}

/* ------------------------------------------------------------------ the handshake; on the LPET */

static int failed(struct lpet *l, const char *what, long err)
{
    lpet_text_put(&l->why, what);
    lpet_text_errno(&l->why, err);
    return (int)err;
}

static int channel_map(struct lpet *l, int fd, uint64_t size)
{
    struct stat st;
    if (sys_call3(SYS_fstat, fd, (long)&st, 0) || size < sizeof(struct edm_chan) ||
        (uint64_t)st.st_size < size)
        return failed(l, "the server's channel", -EPROTO);
    long at = sys_mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (sys_is_error(at))
        return failed(l, "cannot map the server's channel", at);
    sys_madvise((uint64_t)at, size, MADV_DONTFORK);
    sys_madvise((uint64_t)at, size, MADV_DONTDUMP);
    l->chan = (struct edm_chan *)at;
    l->chan_size = size;
    l->data_offset = l->chan->data_offset;
    uint64_t pages = l->chan->ring_pages;
    if (l->chan->magic != EDM_CHAN_MAGIC || l->chan->version != EDM_PROTO_VERSION ||
        l->data_offset % EDM_PAGE_SIZE || l->data_offset < sizeof(struct edm_chan) ||
        l->data_offset > size || pages > (size - l->data_offset) >> EDM_PAGE_SHIFT)
        return failed(l, "the server's channel", -EPROTO);
    return 0;
}

/* A userfaultfd for the staging range alone. Returns what LPET methods there are, or -errno. */
static int staging_api(int fd)
{
    struct uffdio_api api = {.api = UFFD_API,
                             .features = UFFD_FEATURE_MOVE | UFFD_FEATURE_PAGEFAULT_FLAG_WP};
    if (!sys_ioctl(fd, UFFDIO_API, &api))
        return 1;
    struct uffdio_api less = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
    return (int)sys_ioctl(fd, UFFDIO_API, &less);
}

/* WP alone: a MISSING fault on staging would have no reader (KERNEL.md 16). */
static int staging_make(struct lpet *l, int device, uint32_t *methods)
{
    const uint64_t len = (EDM_STAGING_PAGES + 1) * EDM_PAGE_SIZE;
    long fd = sys_ioctl(device, USERFAULTFD_IOC_NEW, (void *)(long)(O_CLOEXEC | O_NONBLOCK));
    if (sys_is_error(fd))
        return failed(l, "cannot make a userfaultfd", fd);
    l->staging_uffd = (int)fd;
    int api = staging_api((int)fd);
    if (api < 0)
        return failed(l, "this kernel's userfaultfd cannot write-protect", api);
    *methods = (uint32_t)api;
    long at = sys_mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
    if (sys_is_error(at))
        return failed(l, "no memory for staging", at);
    l->staging = (uint64_t)at;
    l->probe = l->staging + EDM_STAGING_PAGES * EDM_PAGE_SIZE;
    sys_madvise(l->staging, len, MADV_DONTFORK);
    sys_madvise(l->staging, len, MADV_DONTDUMP);
    sys_madvise(l->staging, len, MADV_NOHUGEPAGE);
    sys_call3(SYS_munlock, (long)l->staging, (long)len, 0); /* after mlockall(MCL_FUTURE) */
    sys_madvise(l->staging, len, MADV_DONTNEED);
    struct uffdio_register reg = {.range = {.start = l->staging, .len = len},
                                  .mode = UFFDIO_REGISTER_MODE_WP};
    long rc = sys_ioctl(l->staging_uffd, UFFDIO_REGISTER, &reg);
    *(volatile char *)l->probe = 1;
    return rc ? failed(l, "cannot register the staging range", rc) : 0;
}

/* thread-self: the main thread may be a zombie (KERNEL.md 33). */
static int proc_open(struct lpet *l, const char *path, const char *instead, int flags)
{
    long fd = sys_open(path, flags | O_CLOEXEC, 0);
    if (sys_is_error(fd))
        fd = sys_open(instead, flags | O_CLOEXEC, 0);
    return sys_is_error(fd) ? failed(l, "cannot open /proc/self/pagemap, maps or mem", fd)
                            : (int)fd;
}

static int greet(struct lpet *l, struct packet *p, uint64_t nonce)
{
    if (l->is_claim) {
        p->head.type = EDM_MSG_CLAIM;
        p->head.len = sizeof(p->u.claim);
        p->u.claim.nonce = nonce;
    } else {
        p->head.type = EDM_MSG_HELLO;
        p->head.len = sizeof(p->u.hello);
        __builtin_memcpy(&p->u.hello, &attach_hello, sizeof(attach_hello));
    }
    int rc = packet_send(l->socket_fd, p, NULL, 0);
    return rc ? failed(l, "cannot speak to the server", rc) : 0;
}

/* What WELCOME brought becomes the LPET's. Returns the device's descriptor or -errno. */
static int welcome(struct lpet *l, struct packet *p)
{
    int fds[EDM_MSG_FDS];
    uint32_t n, need = l->is_claim ? 5 : 4;
    int rc =
        packet_expect(l->socket_fd, EDM_MSG_WELCOME, sizeof(p->u.welcome), p, fds, &n, &l->why);
    if (rc)
        return rc;
    if (n != need)
        return failed(l, "the server's welcome", -EPROTO);
    l->cmd_fd = fds[2];
    l->comp_fd = fds[3];
    if (l->is_claim)
        l->arena_uffd = fds[4];
    rc = channel_map(l, fds[1], p->u.welcome.chan_size);
    sys_close(fds[1]);
    return rc ? rc : fds[0];
}

/* The descriptors that the server wants of us. */
static int hand_over(struct lpet *l, struct packet *p, int device)
{
    int fds[3], maps;
    uint32_t n = 0;
    if (!l->is_claim) {
        long fd = sys_ioctl(device, USERFAULTFD_IOC_NEW, (void *)(long)(O_CLOEXEC | O_NONBLOCK));
        if (sys_is_error(fd))
            return failed(l, "cannot make a userfaultfd", fd);
        l->arena_uffd = (int)fd;
        fds[n++] = l->arena_uffd;
    }
    l->pagemap_fd = proc_open(l, "/proc/thread-self/pagemap", "/proc/self/pagemap", O_RDONLY);
    l->mem_fd = proc_open(l, "/proc/thread-self/mem", "/proc/self/mem", O_RDONLY);
    maps = proc_open(l, "/proc/thread-self/maps", "/proc/self/maps", O_RDONLY);
    if (l->pagemap_fd < 0 || l->mem_fd < 0 || maps < 0)
        return -EACCES;
    fds[n++] = l->pagemap_fd;
    fds[n++] = maps;
    p->head.type = EDM_MSG_UFFD;
    p->head.len = sizeof(p->u.staging);
    p->u.staging.start = l->staging;
    p->u.staging.len = EDM_STAGING_PAGES * EDM_PAGE_SIZE;
    p->u.staging.lpet_tid = (uint32_t)sys_gettid();
    int rc = packet_send(l->socket_fd, p, fds, n);
    sys_close(maps);
    return rc ? failed(l, "cannot speak to the server", rc) : 0;
}

static int handshake(struct lpet *l, bool was_there)
{
    struct packet p;
    int fds[EDM_MSG_FDS];
    uint32_t n;
    uint64_t nonce = 0;
    if (l->is_claim) {
        /* the first touch of it in a forked child: the server answers with the child's nonce */
        nonce = *(volatile uint64_t *)attach_identity;
        if (!nonce)
            return failed(l, "the server does not know this child", -ENOENT);
    }
    l->socket_fd = server_find_or_start(l, was_there);
    if (l->socket_fd < 0)
        return l->socket_fd;
    int rc = greet(l, &p, nonce);
    if (rc)
        return rc;
    int device = welcome(l, &p);
    if (device < 0)
        return device;
    rc = staging_make(l, device, &p.u.staging.methods);
    if (rc)
        return rc;
    __atomic_store_n(&l->chan->lpet_tid, (uint32_t)sys_gettid(), __ATOMIC_SEQ_CST);
    rc = hand_over(l, &p, device);
    sys_close(device);
    l->handed_over = !rc;
    return rc ? rc : packet_expect(l->socket_fd, EDM_MSG_READY, 0, &p, fds, &n, &l->why);
}

/* On the LPET, when the server is gone. -ESTALE: its successor does not know us. */
static int attach_again(struct lpet *l)
{
    uint64_t now = lpet_now_ms();
    struct timeval limit = {.tv_sec = ANSWER_LIMIT_S};
    struct packet p;
    int fds[EDM_MSG_FDS];
    uint32_t n;
    l->why.len = 0;
    int sock = server_connect(l->socket, &l->why);
    if (sock < 0)
        return sock;
    if (shim_config.settings.on_server_lost != EDM_LOST_WAIT &&
        l->until_ms < now + ANSWER_LIMIT_S * 1000)
        limit.tv_sec = l->until_ms > now ? (long)(l->until_ms - now) / 1000 + 1 : 1;
    sys_call6(SYS_setsockopt, sock, SOL_SOCKET, SO_RCVTIMEO, (long)&limit, sizeof(limit), 0);
    p.head.type = EDM_MSG_REATTACH;
    p.head.len = sizeof(p.u.reattach);
    p.u.reattach.instance = l->chan->instance;
    int rc = packet_send(sock, &p, NULL, 0);
    if (!rc)
        rc = packet_expect(sock, EDM_MSG_READY, 0, &p, fds, &n, &l->why);
    if (rc) {
        sys_close(sock);
        return p.head.type == EDM_MSG_DONE ? -ESTALE : rc;
    }
    l->socket_fd = sock;
    return 0;
}

static bool server_died(int err)
{
    return err == -ECONNRESET || err == -EPIPE;
}

/* The server had everything of us, and died before it said so: its successor knows. */
static int setup_finish(struct lpet *l)
{
    int rc;
    l->until_ms = lpet_now_ms() + shim_config.settings.reconnect_timeout_ms;
    sys_close(l->socket_fd);
    while ((rc = attach_again(l)) && rc != -ESTALE && lpet_now_ms() < l->until_ms)
        lpet_pause_ms(AWAIT_PAUSE_MS);
    return rc;
}

/* All that a try has made. Descriptors are the thread's own. */
static void setup_undo(struct lpet *l)
{
    if (l->chan)
        sys_munmap((uint64_t)l->chan, l->chan_size);
    if (l->staging)
        sys_munmap(l->staging, EDM_STAGING_PAGES * EDM_PAGE_SIZE);
    l->chan = NULL;
    l->staging = 0;
    l->handed_over = false;
    sys_call3(SYS_close_range, 0, ~0u, 0);
}

static int attach_setup(struct lpet *l)
{
    int rc = -EAGAIN;
    for (int tries = 0; tries < SETUP_TRIES; tries++) {
        l->why.len = 0;
        rc = handshake(l, tries || attach_found);
        bool died = server_died(rc);
        if (died && l->handed_over)
            rc = setup_finish(l);
        if (!rc) {
            l->why.len = 0;
            return 0;
        }
        setup_undo(l);
        if (!died)
            break;
    }
    return rc;
}

/*
 * A forked child's thread waits for its page of identity as long as there is no server. One that is
 * there answers at some time; without, the program is over after reconnect_timeout as its parent
 * is.
 */
static void attach_overdue(struct lpet *l, uint64_t ms)
{
    const struct edm_settings *s = &shim_config.settings;
    struct lpet_text why = {.len = 0};
    const char *path;
    if (!l->is_claim || s->on_server_lost == EDM_LOST_WAIT || ms < s->reconnect_timeout_ms)
        return;
    int sock = server_find(&path, &why);
    if (sock < 0 && nobody_there(sock))
        lpet_end_program(l);
    if (sock >= 0)
        sys_close(sock);
}

static const struct lpet_calls attach_calls = {attach_setup, attach_again, attach_overdue};

/* ------------------------------------------------------------------ the program's side */

static void state_set(enum shim_attach_state state)
{
    atomic_store(&shim_state->attach_state, state);
    sys_futex_wake(&shim_state->attach_state, INT32_MAX, 0);
}

static bool state_take(enum shim_attach_state from)
{
    unsigned was = from;
    return atomic_compare_exchange_strong(&shim_state->attach_state, &was, SHIM_ATTACHING);
}

static enum shim_attach_state state_settled(void)
{
    unsigned s;
    while ((s = atomic_load(&shim_state->attach_state)) == SHIM_ATTACHING) {
        struct timespec tick = {.tv_nsec = 10 * 1000 * 1000};
        sys_futex_wait(&shim_state->attach_state, SHIM_ATTACHING, &tick, 0);
    }
    return s;
}

/* Never touched by the process that made it; in each forked child it is empty again. */
static int identity_make(void)
{
    if (attach_identity)
        return 0;
    long at =
        sys_mmap(0, EDM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (sys_is_error(at))
        return (int)at;
    if (sys_madvise((uint64_t)at, EDM_PAGE_SIZE, MADV_WIPEONFORK)) {
        sys_munmap((uint64_t)at, EDM_PAGE_SIZE);
        return -ENOSYS;
    }
    sys_madvise((uint64_t)at, EDM_PAGE_SIZE, MADV_DONTDUMP);
    attach_identity = (uint64_t)at;
    return 0;
}

static void hello_fill(void)
{
    struct edm_hello *h = &attach_hello;
    h->arena_start = arena_start();
    h->arena_len = arena_len();
    h->identity = attach_identity;
    arena_used(&h->used_start, &h->used_end);
    h->run_token = shim_config.run_token;
    h->settings = shim_config.settings;
    memcpy(h->command, shim_config.command, sizeof(h->command));
}

static void unmanaged(const struct lpet_text *why)
{
    if (shim_config.config.server == EDM_SERVER_REQUIRE) {
        edm_error("%.*s", (int)why->len, why->s);
        sys_exit_group(125);
    }
    if (!attach_refused)
        edm_warn("%.*s: running unmanaged", (int)why->len, why->s);
    attach_refused = true;
    state_set(SHIM_UNMANAGED);
}

static void attached(struct lpet *l)
{
    attach_lpet = l;
    attach_registered = true;
    ops_publish(l->chan);
    state_set(SHIM_ATTACHED);
    hooks_misc_attached();
}

void attach_now(void)
{
    struct lpet_text why = {.len = 0};
    struct lpet *l;
    if (!shim_config.enabled || !shim_state || !state_take(SHIM_NOT_ATTACHED))
        return;
    if (attach_registered) { /* forked by a raw system call: it is served, and never evicted */
        state_set(SHIM_UNMANAGED);
        return;
    }
    int saved = errno;
    uint64_t all = ~0ull, old;
    sys_sigprocmask(SIG_SETMASK, &all, &old);
    int rc = identity_make();
    if (rc) {
        lpet_text_put(&why, "cannot make the identity page");
        lpet_text_errno(&why, rc);
    } else {
        hello_fill();
        if (shim_config.config.server == EDM_SERVER_AUTO)
            autostart_prepare();
        rc = lpet_create(&attach_calls, false, &l, &why);
    }
    if (rc)
        unmanaged(&why);
    else
        attached(l);
    sys_sigprocmask(SIG_SETMASK, &old, NULL);
    errno = saved;
}

void attach_claim_child(void)
{
    struct lpet_text why = {.len = 0};
    struct lpet *l;
    int saved = errno;
    uint64_t all = ~0ull, old;
    attach_lpet = NULL; /* the parent's */
    if (!state_take(SHIM_NOT_ATTACHED))
        return;
    sys_sigprocmask(SIG_SETMASK, &all, &old);
    int err = -EAGAIN;
    for (int tries = 0; err && tries < CLAIM_TRIES; tries++) {
        why.len = 0;
        err = lpet_create(&attach_calls, true, &l, &why);
    }
    if (err) {
        edm_warn("forked child %d: %.*s: it runs without a budget", sys_getpid(), (int)why.len,
                 why.s);
        state_set(SHIM_UNMANAGED);
    } else {
        attached(l);
    }
    sys_sigprocmask(SIG_SETMASK, &old, NULL);
    errno = saved;
}

int attach_detach(void)
{
    struct ops_guard g;
    uint64_t all = ~0ull, old;
    int rc = 0;
    if (!shim_config.enabled || !shim_state)
        return 0;
    sys_sigprocmask(SIG_SETMASK, &all, &old);
    attach_refused = true;
    while (state_settled() == SHIM_NOT_ATTACHED)
        if (state_take(SHIM_NOT_ATTACHED)) {
            state_set(SHIM_UNMANAGED);
            break;
        }
    ops_enter(&g);
    if (atomic_load(&shim_state->attach_state) == SHIM_ATTACHED) {
        rc = ops_request(EDM_OP_DETACH, 0, 0, 0);
        if (!rc)
            rc = lpet_join(attach_lpet, ANSWER_LIMIT_S * 1000);
        if (!rc) {
            attach_lpet = NULL;
            attach_registered = false;
            ops_unpublish();
            state_set(SHIM_UNMANAGED);
        }
    }
    ops_leave(&g);
    sys_sigprocmask(SIG_SETMASK, &old, NULL);
    return rc;
}

void attach_unlock_staging(void)
{
    if (atomic_load(&shim_state->attach_state) == SHIM_ATTACHED && attach_lpet)
        sys_call3(SYS_munlock, (long)attach_lpet->staging, EDM_STAGING_PAGES * EDM_PAGE_SIZE, 0);
}

bool attach_block(void)
{
    for (;;) {
        enum shim_attach_state s = state_settled();
        if (s != SHIM_NOT_ATTACHED)
            return s == SHIM_ATTACHED;
        if (state_take(SHIM_NOT_ATTACHED))
            return false;
    }
}

void attach_unblock(void)
{
    if (atomic_load(&shim_state->attach_state) == SHIM_ATTACHING)
        state_set(SHIM_NOT_ATTACHED);
}

void attach_after_fork(bool parent_attached)
{
    if (parent_attached)
        attach_claim_child();
    else if (attach_refused || attach_registered)
        state_set(SHIM_UNMANAGED);
}

void attach_init(void)
{
    hooks_fork_init();
    for (size_t i = 0; i < edm_options_count; i++)
        if (!strcmp(edm_options[i].key, "socket"))
            attach_socket_default = !strcmp(shim_config.config.origin[i], "default") &&
                                    strcmp(shim_config.config.socket, SYSTEM_SOCKET) != 0;
    if (shim_config.config.server == EDM_SERVER_AUTO)
        autostart_init();
}

int attach_probe(char *err, size_t errlen)
{
    struct lpet_text why = {.len = 0};
    struct packet p;
    int fds[EDM_MSG_FDS];
    uint32_t n;
    const char *path;
    int sock = server_find(&path, &why), rc = sock;
    if (sock >= 0) {
        p.head.type = EDM_MSG_PING;
        p.head.len = 0;
        rc = packet_send(sock, &p, NULL, 0);
        if (!rc)
            rc = packet_expect(sock, EDM_MSG_DONE, sizeof(p.u.done), &p, fds, &n, &why);
        if (!rc && p.u.done.code) {
            p.u.done.text[sizeof(p.u.done.text) - 1] = 0;
            lpet_text_put(&why, p.u.done.text);
            rc = p.u.done.code;
        }
        sys_close(sock);
    }
    attach_found = !rc;
    if (rc && errlen) {
        size_t len = why.len < errlen - 1 ? why.len : errlen - 1;
        memcpy(err, why.s, len);
        err[len] = 0;
    }
    return rc;
}
