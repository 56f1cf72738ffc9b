/*
 * The handshake with the server. The connection is made on the LPET, in its own descriptor table:
 * the program's descriptors are neither used nor seen, and a program that is out of them, or has
 * closed 0, 1 and 2, can still be attached. The thread that attaches waits for it.
 */
#include "attach_int.h"
#include "uffd_abi.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#define SETUP_TRIES 8

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
    int rc = attach_packet_send(l->socket_fd, p, NULL, 0);
    return rc ? failed(l, "cannot speak to the server", rc) : 0;
}

/* What WELCOME brought becomes the LPET's. Returns the device's descriptor or -errno. */
static int welcome(struct lpet *l, struct packet *p)
{
    int fds[EDM_MSG_FDS];
    uint32_t n, need = l->is_claim ? 5 : 4;
    int rc = attach_packet_expect(l->socket_fd, EDM_MSG_WELCOME, sizeof(p->u.welcome), p, fds, &n,
                                  &l->why);
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
    int rc = attach_packet_send(l->socket_fd, p, fds, n);
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
    l->socket_fd = attach_server_find_or_start(l, was_there);
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
    return rc ? rc : attach_packet_expect(l->socket_fd, EDM_MSG_READY, 0, &p, fds, &n, &l->why);
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
    int sock = attach_server_connect(l->socket, &l->why);
    if (sock < 0)
        return sock;
    if (shim_config.settings.on_server_lost != EDM_LOST_WAIT &&
        l->until_ms < now + ANSWER_LIMIT_S * 1000)
        limit.tv_sec = l->until_ms > now ? (long)(l->until_ms - now) / 1000 + 1 : 1;
    sys_call6(SYS_setsockopt, sock, SOL_SOCKET, SO_RCVTIMEO, (long)&limit, sizeof(limit), 0);
    p.head.type = EDM_MSG_REATTACH;
    p.head.len = sizeof(p.u.reattach);
    p.u.reattach.instance = l->chan->instance;
    int rc = attach_packet_send(sock, &p, NULL, 0);
    if (!rc)
        rc = attach_packet_expect(sock, EDM_MSG_READY, 0, &p, fds, &n, &l->why);
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
        sys_munmap(l->staging, (EDM_STAGING_PAGES + 1) * EDM_PAGE_SIZE);
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
    int sock = attach_server_find(&path, &why);
    if (sock < 0 && attach_nobody_there(sock))
        lpet_end_program(l);
    if (sock >= 0)
        sys_close(sock);
}

const struct lpet_calls attach_calls = {attach_setup, attach_again, attach_overdue,
                                        attach_released};
