#include "fake_server.h"
#include "../../preload/uffd_abi.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PEERS 64

/* One address space. A child begins with its userfaultfd alone. */
struct peer {
    uint32_t number; /* 0: free */
    int uffd, sock, cmd_fd, comp_fd;
    struct edm_chan *chan;
    uint64_t identity, arena, arena_len;
};

static struct peer peers[PEERS];
static uint32_t numbers, attaches, forks;
static uint64_t chan_size;
static int ask_fds[2] = {-1, -1}, listen_fd = -1;
static bool mute;

static void die(const char *what)
{
    perror(what);
    _exit(2);
}

static struct peer *peer_new(void)
{
    for (int i = 0; i < PEERS; i++)
        if (!peers[i].number) {
            memset(&peers[i], 0, sizeof(peers[i]));
            peers[i].uffd = peers[i].sock = peers[i].cmd_fd = peers[i].comp_fd = -1;
            peers[i].number = ++numbers;
            return &peers[i];
        }
    errno = ENFILE;
    die("too many processes");
    return NULL;
}

static void peer_free(struct peer *p)
{
    close(p->uffd);
    close(p->sock);
    close(p->cmd_fd);
    close(p->comp_fd);
    if (p->chan)
        munmap(p->chan, chan_size);
    p->number = 0;
}

static struct peer *peer_by_number(uint32_t number)
{
    for (int i = 0; i < PEERS; i++)
        if (peers[i].number == number)
            return &peers[i];
    return NULL;
}

/* ------------------------------------------------------------------ messages */

static void packet_send(int sock, uint32_t type, const void *body, uint32_t len, const int *fds,
                        unsigned nfds)
{
    struct edm_msg head = {EDM_PROTO_MAGIC, EDM_PROTO_VERSION, type, len};
    char control[CMSG_SPACE(EDM_MSG_FDS * sizeof(int))] = {0};
    struct iovec iov[2] = {{&head, sizeof(head)}, {(void *)(uintptr_t)body, len}};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
    if (nfds) {
        msg.msg_control = control;
        msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
    }
    sendmsg(sock, &msg, MSG_NOSIGNAL);
}

static bool packet_recv(int sock, struct edm_msg *head, void *body, size_t len, int *fds,
                        unsigned *nfds)
{
    char control[CMSG_SPACE(EDM_MSG_FDS * sizeof(int))];
    struct iovec iov[2] = {{head, sizeof(*head)}, {body, len}};
    struct msghdr msg = {
        .msg_iov = iov, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof(control)};
    *nfds = 0;
    if (recvmsg(sock, &msg, 0) < (ssize_t)sizeof(*head))
        return false;
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    if (c && c->cmsg_type == SCM_RIGHTS) {
        *nfds = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(c), *nfds * sizeof(int));
    }
    return true;
}

static void refuse(int sock, const char *text)
{
    struct edm_done done = {.code = -EPERM};
    snprintf(done.text, sizeof(done.text), "%s", text);
    packet_send(sock, EDM_MSG_DONE, &done, sizeof(done), NULL, 0);
    close(sock);
}

/* ------------------------------------------------------------------ attaching */

static int chan_make(struct peer *p)
{
    int fd = memfd_create("chan", MFD_CLOEXEC);
    uint64_t offset = (sizeof(struct edm_chan) + EDM_PAGE_SIZE - 1) & ~(EDM_PAGE_SIZE - 1);
    chan_size = offset + FAKE_RING_PAGES * EDM_PAGE_SIZE;
    if (fd < 0 || ftruncate(fd, (off_t)chan_size))
        die("memfd");
    p->chan = mmap(NULL, chan_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    p->chan->magic = EDM_CHAN_MAGIC;
    p->chan->version = EDM_PROTO_VERSION;
    p->chan->size = chan_size;
    p->chan->data_offset = offset;
    p->chan->ring_pages = FAKE_RING_PAGES;
    p->chan->lpet_cpu = -1;
    return fd;
}

static void welcome(struct peer *p)
{
    struct edm_welcome w = {.instance = p->number, .chan_size = 0};
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), chan = chan_make(p);
    p->cmd_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    p->comp_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (device < 0)
        die("/dev/userfaultfd");
    int fds[5] = {device, chan, p->cmd_fd, p->comp_fd, p->uffd};
    w.chan_size = chan_size;
    packet_send(p->sock, EDM_MSG_WELCOME, &w, sizeof(w), fds, p->uffd >= 0 ? 5 : 4);
    close(device);
    close(chan);
}

static void region(const struct peer *p, uint64_t start, uint64_t len)
{
    struct uffdio_register reg = {.range = {start, len},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP};
    if (ioctl(p->uffd, UFFDIO_REGISTER, &reg))
        die("UFFDIO_REGISTER");
}

static void answer_uffd(struct peer *p)
{
    struct edm_msg head;
    struct edm_staging staging;
    int fds[EDM_MSG_FDS];
    unsigned n;
    bool is_claim = p->uffd >= 0;
    if (!packet_recv(p->sock, &head, &staging, sizeof(staging), fds, &n) ||
        head.type != EDM_MSG_UFFD || n != (is_claim ? 2u : 3u)) {
        peer_free(p);
        return;
    }
    if (!is_claim) {
        p->uffd = fds[0];
        struct uffdio_api api = {.api = UFFD_API,
                                 .features = UFFD_FEATURE_EVENT_FORK |
                                             UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                                             UFFD_FEATURE_THREAD_ID};
        if (ioctl(p->uffd, UFFDIO_API, &api))
            die("UFFDIO_API");
        region(p, p->arena, p->arena_len);
        region(p, p->identity, EDM_PAGE_SIZE);
    }
    while (n > (is_claim ? 0u : 1u))
        close(fds[--n]);
    attaches++;
    packet_send(p->sock, EDM_MSG_READY, NULL, 0, NULL, 0);
}

static void answer_connection(int sock)
{
    union {
        struct edm_hello hello;
        struct edm_claim claim;
    } u;
    struct edm_msg head;
    int fds[EDM_MSG_FDS];
    unsigned n;
    struct peer *p = NULL;
    if (!packet_recv(sock, &head, &u, sizeof(u), fds, &n)) {
        close(sock);
        return;
    }
    if (head.type == EDM_MSG_HELLO) {
        p = peer_new();
        p->arena = u.hello.arena_start;
        p->arena_len = u.hello.arena_len;
        p->identity = u.hello.identity;
    } else if (head.type == EDM_MSG_CLAIM) {
        p = peer_by_number((uint32_t)(u.claim.nonce >> 8));
    } else if (head.type == EDM_MSG_PING) {
        struct edm_done done = {.code = 0};
        packet_send(sock, EDM_MSG_DONE, &done, sizeof(done), NULL, 0);
        close(sock);
        return;
    }
    if (!p || p->sock >= 0) {
        refuse(sock, "who is that?");
        return;
    }
    p->sock = sock;
    welcome(p);
}

/* ------------------------------------------------------------------ faults */

static void fill(const struct peer *p, uint64_t addr)
{
    static _Alignas(4096) char page[4096];
    int rc;
    if (addr == p->identity) {
        uint64_t nonce = (uint64_t)p->number << 8 | 0x5a;
        memcpy(page, &nonce, sizeof(nonce));
        struct uffdio_copy c = {.dst = addr, .src = (uint64_t)page, .len = EDM_PAGE_SIZE};
        rc = ioctl(p->uffd, UFFDIO_COPY, &c);
    } else {
        struct uffdio_zeropage z = {.range = {addr, EDM_PAGE_SIZE}};
        rc = ioctl(p->uffd, UFFDIO_ZEROPAGE, &z);
    }
    if (rc && errno != ESRCH) { /* EEXIST, or it is unmapped by now: the thread looks again */
        struct uffdio_range r = {addr, EDM_PAGE_SIZE};
        ioctl(p->uffd, UFFDIO_WAKE, &r);
    }
}

static void unprotect(const struct peer *p, uint64_t addr)
{
    struct uffdio_writeprotect wp = {.range = {addr, EDM_PAGE_SIZE}, .mode = 0};
    ioctl(p->uffd, UFFDIO_WRITEPROTECT, &wp);
}

static void events(struct peer *p)
{
    struct uffd_msg msg;
    while (read(p->uffd, &msg, sizeof(msg)) == (ssize_t)sizeof(msg)) {
        uint64_t addr = msg.arg.pagefault.address & ~(EDM_PAGE_SIZE - 1);
        if (msg.event == UFFD_EVENT_FORK) {
            struct peer *child = peer_new();
            child->uffd = (int)msg.arg.fork.ufd;
            child->identity = p->identity;
            forks++;
        } else if (msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
            unprotect(p, addr);
        } else {
            fill(p, addr);
        }
    }
}

/* ------------------------------------------------------------------ requests of the test */

static void serve_once(int only_comp);

/* The faults of others are served meanwhile. */
static void command(struct peer *p, struct edm_cmd *cmd)
{
    uint64_t one = 1;
    uint32_t head = p->chan->cmd_head;
    struct edm_cmd *slot = &p->chan->cmds[head % EDM_CHAN_CMDS];
    *slot = *cmd;
    __atomic_store_n(&p->chan->cmd_head, head + 1, __ATOMIC_SEQ_CST);
    if (write(p->cmd_fd, &one, sizeof(one)) < 0)
        die("eventfd");
    while (__atomic_load_n(&p->chan->cmd_tail, __ATOMIC_SEQ_CST) != head + 1) {
        serve_once(p->comp_fd);
        uint64_t count;
        (void)!read(p->comp_fd, &count, sizeof(count));
    }
    *cmd = *slot;
}

static void answer_request(void)
{
    struct fake_request req;
    if (read(ask_fds[1], &req, sizeof(req)) != (ssize_t)sizeof(req) || req.kind == FAKE_QUIT)
        _exit(0);
    struct peer *p = peer_by_number(req.instance);
    if (req.kind == FAKE_COMMAND && p && p->chan) {
        command(p, &req.cmd);
    } else if (req.kind == FAKE_PROTECT && p) {
        struct uffdio_writeprotect wp = {.range = {req.cmd.addr, req.cmd.npages * EDM_PAGE_SIZE},
                                         .mode = UFFDIO_WRITEPROTECT_MODE_WP};
        if (ioctl(p->uffd, UFFDIO_WRITEPROTECT, &wp))
            die("UFFDIO_WRITEPROTECT");
    } else if (req.kind == FAKE_COUNT) {
        req.cmd.npages = attaches;
        req.cmd.slot = forks;
    } else if (req.kind == FAKE_MUTE) {
        mute = req.cmd.slot;
    }
    if (write(ask_fds[1], &req, sizeof(req)) < 0)
        die("answer");
}

/* Every request of the hooks is granted. */
static void grant(struct edm_chan *c)
{
    for (unsigned i = 0; c && i < EDM_CHAN_OPS; i++) {
        uint32_t request = EDM_OP_REQUEST;
        if (__atomic_compare_exchange_n(&c->ops[i].state, &request, EDM_OP_DONE, false,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            syscall(SYS_futex, &c->ops[i].state, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    }
}

/* One round of poll. only_comp >= 0: ends when it is readable, and takes no requests. */
static void serve_once(int only_comp)
{
    struct pollfd fds[2 * PEERS + 2];
    struct peer *who[2 * PEERS + 2] = {NULL};
    nfds_t n = 0;
    fds[n++] = (struct pollfd){.fd = mute ? -1 : listen_fd, .events = POLLIN};
    fds[n++] = (struct pollfd){.fd = only_comp >= 0 ? only_comp : ask_fds[1], .events = POLLIN};
    for (int i = 0; i < PEERS; i++) {
        if (!peers[i].number)
            continue;
        who[n] = &peers[i];
        fds[n++] = (struct pollfd){.fd = peers[i].uffd, .events = POLLIN};
        who[n] = &peers[i];
        fds[n++] = (struct pollfd){.fd = peers[i].sock, .events = POLLIN};
    }
    if (poll(fds, n, n > 2 ? 1 : -1) < 0) /* the bell of the hooks is a futex, not a descriptor */
        return;
    for (int i = 0; i < PEERS; i++)
        if (peers[i].number)
            grant(peers[i].chan);
    for (nfds_t i = 2; i < n; i++) {
        if (!who[i]->number || !fds[i].revents)
            continue;
        if (fds[i].fd == who[i]->uffd) {
            if (fds[i].revents & POLLIN)
                events(who[i]);
            if (fds[i].revents & (POLLHUP | POLLERR))
                peer_free(who[i]);
        } else if (fds[i].revents & POLLHUP) {
            peer_free(who[i]);
        } else {
            answer_uffd(who[i]);
        }
    }
    if (fds[0].revents) {
        int sock = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (sock >= 0)
            answer_connection(sock);
    }
    if (fds[1].revents && only_comp < 0)
        answer_request();
}

/* ------------------------------------------------------------------ the test's side */

int fake_server_start(const char *path)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    snprintf(sun.sun_path, sizeof(sun.sun_path), "%s", path);
    unlink(path);
    listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (bind(listen_fd, (struct sockaddr *)&sun, sizeof(sun)) || listen(listen_fd, 64) ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ask_fds))
        die(path);
    int pid = fork();
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(ask_fds[0]);
        for (;;)
            serve_once(-1);
    }
    close(listen_fd);
    close(ask_fds[1]);
    return pid;
}

void fake_server_stop(int pid)
{
    close(ask_fds[0]);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

bool fake_server_ask(struct fake_request *req)
{
    return write(ask_fds[0], req, sizeof(*req)) == (ssize_t)sizeof(*req) &&
           read(ask_fds[0], req, sizeof(*req)) == (ssize_t)sizeof(*req);
}
