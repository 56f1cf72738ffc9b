/*
 * Instances that do what no shim does. hostile WHAT attaches to the server at EDM_SOCKET without a
 * shim, does it, says "ready" and stays until its parent ends it.
 */
#include "../../dms/proto/proto.h"
#include "../../preload/uffd_abi.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARENA (64ul << 20)
#define BUDGET (1ul << 20)
#define HUGE_ARENA (64ul << 30)

static struct {
    size_t len;
    char *arena;
    struct edm_chan *chan;
    int sock, device, cmd, comp, uffd;
} me = {.len = ARENA};

static pthread_t toucher;
static atomic_uint faults;

static void check(bool good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- attaching ---- */

static int call(void)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", getenv("EDM_SOCKET"));
    check(fd >= 0 && !connect(fd, (struct sockaddr *)&sa, sizeof(sa)), "connect");
    return fd;
}

static bool say(int sock, uint32_t type, const void *body, uint32_t len, const int *fds,
                unsigned nfds)
{
    struct edm_msg head = {EDM_PROTO_MAGIC, EDM_PROTO_VERSION, type, len};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(EDM_MSG_FDS * sizeof(int))] = {0};
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
    return sendmsg(sock, &msg, MSG_NOSIGNAL) > 0;
}

/* The type of the next message. */
static uint32_t hear(int sock, void *body, size_t len, int *fds)
{
    struct edm_msg head = {0};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(EDM_MSG_FDS * sizeof(int))];
    struct iovec iov[2] = {{&head, sizeof(head)}, {body, len}};
    struct msghdr msg = {
        .msg_iov = iov, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof(control)};
    check(recvmsg(sock, &msg, 0) >= (ssize_t)sizeof(head), "recv");
    const struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    if (c && fds)
        memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
    return head.type;
}

static char *map(size_t len)
{
    char *p =
        mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check(p != MAP_FAILED, "mmap");
    return p;
}

static bool say_hello(int sock)
{
    char *p = map(me.len + EDM_CHUNK_SIZE);
    me.arena = p + (-(uintptr_t)p & (EDM_CHUNK_SIZE - 1));
    struct edm_hello hello = {.arena_start = (uintptr_t)me.arena,
                              .arena_len = me.len,
                              .identity = (uintptr_t)map(EDM_PAGE_SIZE),
                              .used_start = (uintptr_t)me.arena,
                              .used_end = (uintptr_t)me.arena + EDM_CHUNK_SIZE,
                              .settings = {.local_memory = BUDGET,
                                           .low_permille = 900,
                                           .high_permille = 950,
                                           .replicas = 1,
                                           .cluster = 16,
                                           .handlers = 2},
                              .command = "hostile"};
    return say(sock, EDM_MSG_HELLO, &hello, sizeof(hello), NULL, 0);
}

/* HELLO and WELCOME */
static void greet(void)
{
    struct edm_welcome w;
    int fds[EDM_MSG_FDS];
    me.sock = call();
    check(say_hello(me.sock), "hello");
    check(hear(me.sock, &w, sizeof(w), fds) == EDM_MSG_WELCOME, "welcome");
    me.device = fds[0];
    me.cmd = fds[2];
    me.comp = fds[3];
    me.chan = mmap(NULL, w.chan_size, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
    check(me.chan != MAP_FAILED, "channel");
}

static int new_uffd(void)
{
    int fd = ioctl(me.device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    check(fd >= 0, "userfaultfd");
    return fd;
}

static void hand_over(const char *pagemap)
{
    const struct edm_staging staging = {.start = (uintptr_t)map(EDM_STAGING_PAGES * EDM_PAGE_SIZE),
                                        .len = EDM_STAGING_PAGES * EDM_PAGE_SIZE,
                                        .methods = 1};
    me.uffd = new_uffd();
    int fds[3] = {me.uffd, open(pagemap, O_RDONLY), open("/proc/self/maps", O_RDONLY)};
    check(say(me.sock, EDM_MSG_UFFD, &staging, sizeof(staging), fds, 3), "uffd");
}

static void attach(void)
{
    greet();
    hand_over("/proc/self/pagemap");
    check(hear(me.sock, NULL, 0, NULL) == EDM_MSG_READY, "attaching");
}

/* ---- what a program does ---- */

static void *touch_main(void *arg)
{
    for (size_t at = 0; at < *(size_t *)arg; at += EDM_PAGE_SIZE)
        ((volatile char *)me.arena)[at] = 1;
    return NULL;
}

/* So much memory; beyond the budget the thread waits. */
static void touch(size_t len)
{
    static size_t n;
    n = len;
    check(!pthread_create(&toucher, NULL, touch_main, &n), "thread");
}

static bool soon(bool (*is_so)(void))
{
    for (int i = 0; i < 300 && !is_so(); i++)
        usleep(10000);
    return is_so();
}

static bool commands_wait(void)
{
    return __atomic_load_n(&me.chan->cmd_head, __ATOMIC_ACQUIRE) != me.chan->cmd_tail;
}

/* The server wants pages out, and nobody takes them. */
static void owe(void)
{
    attach();
    touch(2 * BUDGET);
    check(soon(commands_wait), "no command came");
}

/* ---- what none does ---- */

static bool is_nonblocking(void)
{
    return fcntl(me.uffd, F_GETFL) & O_NONBLOCK;
}

/* O_NONBLOCK is of the description, which the server has, too. */
static void do_blocking_uffd(void)
{
    attach();
    fcntl(me.uffd, F_SETFL, 0);
    touch(EDM_PAGE_SIZE);
    puts(soon(is_nonblocking) ? "mended" : "blocking");
}

/* As much as an eventfd can hold: who adds to it waits. */
static void do_full_command_fd(void)
{
    const uint64_t most = UINT64_MAX - 1;
    attach();
    fcntl(me.cmd, F_SETFL, 0);
    (void)!write(me.cmd, &most, sizeof(most));
    touch(2 * BUDGET);
    soon(commands_wait);
}

static void *fault_main(void *arg)
{
    for (;; atomic_fetch_add(&faults, 1)) {
        *(volatile char *)me.arena = 1;
        madvise(me.arena, EDM_PAGE_SIZE, MADV_DONTNEED);
    }
    return NULL;
}

static void *steal_main(void *arg)
{
    uint64_t count;
    for (;;)
        (void)!read(me.comp, &count, sizeof(count));
    return NULL;
}

/* The server sees that there is something to read, and we are faster. */
static void do_blocking_completions(void)
{
    const uint64_t one = 1;
    pthread_t faulter, thief;
    attach();
    fcntl(me.comp, F_SETFL, 0);
    check(!pthread_create(&faulter, NULL, fault_main, NULL), "thread");
    check(!pthread_create(&thief, NULL, steal_main, NULL), "thread");
    unsigned before = UINT_MAX;
    for (int i = 0; i < 5000 && atomic_load(&faults) != before; i++) {
        before = atomic_load(&faults);
        for (int k = 0; k < 100; k++)
            (void)!write(me.comp, &one, sizeof(one));
        for (int k = 0; k < 1000 && atomic_load(&faults) == before; k++)
            usleep(1000);
    }
}

/* Another mapping comes to where the commands are for: they are nobody's, and never done. */
static void do_orphaned_commands(void)
{
    owe();
    check(mremap(me.arena + ARENA / 2, 2 * BUDGET, 2 * BUDGET, MREMAP_MAYMOVE | MREMAP_FIXED,
                 me.arena) == me.arena,
          "mremap");
}

/* Children that no hook saw, and theirs, while the fate of their pages is open. */
static void do_short_children(void)
{
    owe();
    for (int i = 0; i < 100; i++) {
        long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
        check(pid >= 0, "clone");
        if (pid == 0) {
            syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
            _exit(0);
        }
        check(waitpid((pid_t)pid, NULL, 0) == pid, "wait");
    }
}

static void request(uint32_t kind, uint64_t start, uint64_t len, uint64_t arg)
{
    struct edm_op *op = &me.chan->ops[0];
    op->kind = kind;
    op->start = start;
    op->len = len;
    op->arg = arg;
    __atomic_store_n(&op->state, EDM_OP_REQUEST, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&me.chan->op_bell, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &me.chan->op_bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    while (__atomic_load_n(&op->state, __ATOMIC_ACQUIRE) == EDM_OP_REQUEST)
        usleep(1000);
    check(!op->result, "request");
    op->state = EDM_OP_FREE;
}

/* Advice for all of a memory that is far larger than what there is, and that holds nothing. */
static void do_huge_advice(void)
{
    const uint64_t half = HUGE_ARENA / 2;
    me.len = HUGE_ARENA;
    attach();
    uint64_t start = (uintptr_t)me.arena;
    request(EDM_OP_PIN, start + EDM_PAGE_SIZE, half, 0);
    request(EDM_OP_DONTFORK, start + half / 2 + 5 * EDM_PAGE_SIZE, half, 1);
    request(EDM_OP_WIPEONFORK, start + half, half - EDM_PAGE_SIZE, 1);
    request(EDM_OP_UNPIN, start + half / 3, EDM_PAGE_SIZE, 0);
    request(EDM_OP_DONTFORK, start + half, half, 0);
    for (uint64_t at = 0; at < HUGE_ARENA; at += HUGE_ARENA / 128)
        check(!munmap(me.arena + at, HUGE_ARENA / 256), "munmap");
}

static void on_signal(int sig)
{
}

/* A thread that waits for an outcome faults again after each signal. */
static void do_many_signals(void)
{
    struct sigaction sa = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &sa, NULL);
    owe();
    check(!madvise(me.arena, BUDGET, MADV_DONTNEED), "madvise");
    touch(EDM_PAGE_SIZE);
    for (int i = 0; i < 400000; i++) {
        pthread_kill(toucher, SIGUSR1);
        sched_yield();
    }
}

/* None of them is ever attached, and each has memory and descriptors of the server's. */
static void do_many_hellos(void)
{
    for (int i = 0; i < 300; i++)
        say_hello(call());
}

/* Each waits for pages that do not come. */
static void do_many_requests(void)
{
    const struct edm_request r = {.pid = getpid()};
    owe();
    for (int i = 0; i < 300; i++)
        say(call(), EDM_MSG_FETCH, &r, sizeof(r), NULL, 0);
}

static const struct {
    const char *name;
    void (*act)(void);
} acts[] = {
    {"blocking_uffd", do_blocking_uffd},
    {"full_command_fd", do_full_command_fd},
    {"blocking_completions", do_blocking_completions},
    {"many_requests", do_many_requests},
    {"orphaned_commands", do_orphaned_commands},
    {"short_children", do_short_children},
    {"huge_advice", do_huge_advice},
    {"many_signals", do_many_signals},
    {"many_hellos", do_many_hellos},
};

int main(int argc, char **argv)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < sizeof(acts) / sizeof(*acts); i++) {
        if (argc != 2 || strcmp(argv[1], acts[i].name) != 0)
            continue;
        acts[i].act();
        puts("ready");
        fflush(stdout);
        for (;;)
            pause();
    }
    return 2;
}
