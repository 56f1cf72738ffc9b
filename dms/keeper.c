#include "keeper.h"
#include "../config/config.h"
#include "image.h"
#include "uffd.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STATE_MAGIC 0x6c616765u
#define STATE_LAYOUT 3u
#define ALIVE_MS 250
#define GRACE_MS 3000u /* programs that can end by themselves with a word do so first */
#define WAKE_START (1ull << 20)
/* never registered with us: ENOENT while the process lives */
#define PROBE_ADDRESS ((1ull << 47) - 2 * 4096ull)

/* What keeper and successor say to each other first. */
struct offer {
    uint32_t magic;
    int32_t state_fd; /* a number in the table of whoever says it */
};

static struct {
    struct state *state;
    int state_fd, server_pidfd, pidfd;
    pid_t pid;
    struct sockaddr_un addr;
} keeper = {.state_fd = -1, .server_pidfd = -1, .pidfd = -1};

static int keeper_address(const char *socket, struct sockaddr_un *sa)
{
    size_t len = strlen(socket);
    if (len >= EDM_CONFIG_SOCKET_MAX)
        return -ENAMETOOLONG;
    *sa = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(sa->sun_path, socket, len);
    memcpy(sa->sun_path + len, EDM_KEEPER_SUFFIX, sizeof(EDM_KEEPER_SUFFIX));
    return 0;
}

/* ---- in the keeper: nothing but system calls, for it may be made while the server's other threads
 * hold locks of libc ---- */

static bool is_userfaultfd(int fd)
{
    char path[40], target[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    ssize_t len = readlink(path, target, sizeof(target) - 1);
    target[len > 0 ? len : 0] = 0;
    return strcmp(target, "anon_inode:[userfaultfd]") == 0;
}

static bool is_kept(int fd, int listener)
{
    const struct state *s = keeper.state;
    const int mine[] = {listener,      keeper.state_fd, s->store.memory, s->store.slots,
                        s->store.disk, s->homes,        s->copies,       s->kept};
    if (fd == s->attaching) /* it has all of its memory: it must not wait for a server */
        return false;
    for (size_t i = 0; i < sizeof(mine) / sizeof(*mine); i++)
        if (fd == mine[i])
            return true;
    for (uint32_t n = 0; n < s->ninstances; n++)
        for (int i = 0; s->instances[n].used && i < STATE_FDS; i++)
            if (fd == s->instances[n].fds[i])
                return true;
    /* a forked child's that the server had just read: the parent's image tells whose. EINVAL: one
     * that a process has only just given us */
    return is_userfaultfd(fd) && uffd_zero(fd, PROBE_ADDRESS, 1) != -EINVAL;
}

struct entry64 {
    uint64_t ino;
    int64_t off;
    uint16_t len;
    uint8_t type;
    char name[];
};

typedef void fd_fn(int fd, int *arg);

static void each_fd(fd_fn *fn, int *arg)
{
    char buf[4096] __attribute__((aligned(8)));
    int dir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    long n;
    while (dir >= 0 && (n = syscall(SYS_getdents64, dir, buf, sizeof(buf))) > 0) {
        for (long at = 0; at < n;) {
            const struct entry64 *e = (const struct entry64 *)(const void *)(buf + at);
            int fd = e->name[0] == '.' ? -1 : atoi(e->name);
            if (fd >= 0 && fd != dir)
                fn(fd, arg);
            at += e->len;
        }
    }
    if (dir >= 0)
        close(dir);
}

/* The dead server's sockets, its lock, MPI's connections: whoever waits for them must see the end.
 */
static void close_other(int fd, int *listener)
{
    if (!is_kept(fd, *listener))
        close(fd);
}

/* EINVAL: its process had not finished attaching. */
static void count_alive(int fd, int *alive)
{
    if (!is_userfaultfd(fd))
        return;
    int err = uffd_zero(fd, PROBE_ADDRESS, 1);
    *alive += err != -ESRCH && err != -EINVAL;
}

static bool nobody_left(void)
{
    int alive = 0;
    each_fd(count_alive, &alive);
    return alive == 0;
}

static uint64_t clock_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Nobody waits for what is here: no instance, nor one of another rank whose pages it has. */
static bool is_over(uint64_t since_ms)
{
    const struct state *s = keeper.state;
    return nobody_left() && (!s->kept_pages || clock_ms() - since_ms >= s->kept_ms);
}

static int offer_listen(void)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    unlink(keeper.addr.sun_path);
    mode_t old = umask(0177);
    int bad = bind(fd, (struct sockaddr *)&keeper.addr, sizeof(keeper.addr)) || listen(fd, 4);
    umask(old);
    if (!bad)
        return fd;
    close(fd);
    return -1;
}

/* The state that process pid has as descriptor number fd; NULL when that is none. */
static struct state *state_of(pid_t pid, int fd)
{
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    int got = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
    struct stat st;
    void *at = MAP_FAILED;
    if (got >= 0 && fstat(got, &st) == 0 && (size_t)st.st_size >= sizeof(struct state))
        at = mmap(NULL, sizeof(struct state), PROT_READ, MAP_SHARED, got, 0);
    close(got);
    close(pidfd);
    return at == MAP_FAILED ? NULL : at;
}

/* `edm stop`: asks whether anybody waits, and may say that nothing here is needed. */
static bool offer_declined(int fd, char word)
{
    while (word == KEEPER_ASK) {
        char idle = nobody_left();
        if (send(fd, &idle, 1, MSG_NOSIGNAL) != 1 || recv(fd, &word, 1, 0) != 1)
            return false;
    }
    if (word == KEEPER_DONE)
        unlink(keeper.addr.sun_path);
    return word == KEEPER_DONE;
}

/*
 * Everything is the successor's from the moment that its own state is ready, which its own keeper
 * goes by, too. It says so, or is killed before it can: then its keeper has our socket's name.
 */
static bool offer_taken(int fd, pid_t pid)
{
    struct offer theirs = {0};
    char done = 0;
    ssize_t n = recv(fd, &theirs, sizeof(theirs), 0);
    if (n == 1)
        return offer_declined(fd, *(const char *)&theirs);
    if (n != sizeof(theirs) || theirs.magic != STATE_MAGIC)
        return false;
    const struct state *s = state_of(pid, theirs.state_fd);
    if (recv(fd, &done, 1, 0) == 1 && done == 1) {
        unlink(keeper.addr.sun_path); /* before it knows: its keeper may need the name at once */
        return true;
    }
    bool taken = s && s->ready;
    if (s)
        munmap((void *)(uintptr_t)s, sizeof(*s));
    return taken;
}

/* True when a successor has taken everything over. */
static bool offer_serve(int listener)
{
    struct offer o = {STATE_MAGIC, keeper.state_fd};
    struct ucred peer = {0};
    socklen_t len = sizeof(peer);
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return false;
    bool taken = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
                 (peer.uid == geteuid() || peer.uid == 0) &&
                 send(fd, &o, sizeof(o), MSG_NOSIGNAL) > 0 && offer_taken(fd, peer.pid);
    close(fd);
    return taken;
}

/* How long the process behind a userfaultfd waits for a server, in ms; UINT64_MAX: its eviction
 * thread sees to that, or it shall wait. Of a child that no server knew yet: as its parents. */
static uint64_t patience(int fd)
{
    const struct state *s = keeper.state;
    uint64_t most = 0;
    for (uint32_t n = 0; n < s->ninstances; n++) {
        const struct state_instance *e = &s->instances[n];
        struct image *img;
        if (!e->used || image_open(e->fds[STATE_IMAGE], &img))
            continue;
        bool complete = img->complete, own = complete && e->fds[STATE_UFFD] == fd;
        uint64_t ms = img->set.on_server_lost == EDM_LOST_WAIT || (own && img->claimed)
                          ? UINT64_MAX
                          : img->set.reconnect_timeout_ms + GRACE_MS;
        image_close(img);
        if (own)
            return ms;
        most = complete && ms > most ? ms : most;
    }
    return most ? most : UINT64_MAX;
}

/*
 * A child made by a raw clone has no thread of ours that could end it: whatever it waits for is
 * lost, and who touches it gets SIGBUS (kernels before 6.6 cannot: it waits on). Faults that the
 * dead server had read are announced again, and met the next time.
 */
static void give_up(int fd, int *waited_ms)
{
    struct uffd_msg msgs[16];
    int n;
    if (!is_userfaultfd(fd) || (uint64_t)*waited_ms < patience(fd))
        return;
    while ((n = uffd_read(fd, msgs, 16)) > 0)
        for (int i = 0; i < n; i++)
            if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
                uffd_poison(fd, msgs[i].arg.pagefault.address & ~(EDM_PAGE_SIZE - 1),
                            EDM_PAGE_SIZE);
    uffd_wake(fd, WAKE_START, PROBE_ADDRESS - WAKE_START);
}

__attribute__((noreturn)) static void keeper_main(void)
{
    struct pollfd server = {.fd = keeper.server_pidfd, .events = POLLIN};
    setsid();
    prctl(PR_SET_NAME, "edm-keeper");
    while (poll(&server, 1, -1) < 1)
        ;
    if (keeper.state->clean || !keeper.state->ready)
        _exit(0);
    struct pollfd next = {.fd = offer_listen(), .events = POLLIN};
    uint64_t since_ms = clock_ms();
    each_fd(close_other, &next.fd);
    for (int waited_ms = 0; next.fd >= 0 && !is_over(since_ms); waited_ms += ALIVE_MS) {
        if (poll(&next, 1, ALIVE_MS) > 0 && offer_serve(next.fd))
            _exit(0);
        each_fd(give_up, &waited_ms);
    }
    unlink(keeper.addr.sun_path);
    _exit(0);
}

/* ---- in the server ---- */

static int keeper_clone(void)
{
    sigset_t all, old;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &old);
    long pid = syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
    if (pid == 0)
        keeper_main();
    sigprocmask(SIG_SETMASK, &old, NULL);
    if (pid < 0)
        return -errno;
    keeper.pid = (pid_t)pid;
    keeper.pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    return 0;
}

int keeper_start(const char *socket)
{
    int err = keeper_address(socket, &keeper.addr);
    if (err)
        return err;
    keeper.state_fd = memfd_create("edm-state", MFD_CLOEXEC);
    keeper.server_pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (keeper.state_fd < 0 || keeper.server_pidfd < 0 ||
        ftruncate(keeper.state_fd, sizeof(struct state)))
        return -errno;
    void *at =
        mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, keeper.state_fd, 0);
    if (at == MAP_FAILED)
        return -errno;
    keeper.state = at;
    keeper.state->magic = STATE_MAGIC;
    keeper.state->layout = STATE_LAYOUT;
    if (getrandom(&keeper.state->id, sizeof(keeper.state->id), 0) != sizeof(keeper.state->id))
        return -EIO;
    keeper.state->store = (struct store_fds){-1, -1, -1};
    keeper.state->homes = keeper.state->copies = keeper.state->kept = -1;
    keeper.state->attaching = -1;
    return keeper_clone();
}

struct state *keeper_state(void)
{
    return keeper.state;
}

int keeper_pidfd(void)
{
    return keeper.pidfd;
}

int keeper_restart(void)
{
    waitpid(keeper.pid, NULL, WNOHANG);
    close(keeper.pidfd);
    keeper.pidfd = -1;
    return keeper_clone();
}

void keeper_end(void)
{
    if (keeper.state)
        keeper.state->clean = 1;
}

/* ---- what a dead server left ---- */

int legacy_fd(const struct legacy *l, int n)
{
    int fd = (int)syscall(SYS_pidfd_getfd, l->pidfd, n, 0);
    return fd < 0 ? -errno : fd;
}

static int legacy_take(struct legacy *l)
{
    struct offer o;
    struct ucred peer = {0};
    socklen_t len = sizeof(peer);
    if (getsockopt(l->sock, SOL_SOCKET, SO_PEERCRED, &peer, &len))
        return -errno;
    if (peer.uid != geteuid() && peer.uid != 0)
        return -EPERM;
    l->pidfd = (int)syscall(SYS_pidfd_open, peer.pid, 0);
    if (l->pidfd < 0)
        return -errno;
    if (recv(l->sock, &o, sizeof(o), 0) != sizeof(o) || o.magic != STATE_MAGIC)
        return -EPROTO;
    const struct offer mine = {STATE_MAGIC, keeper.state_fd};
    if (send(l->sock, &mine, sizeof(mine), MSG_NOSIGNAL) < 0)
        return -errno;
    int fd = legacy_fd(l, o.state_fd);
    if (fd < 0)
        return fd;
    void *at = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int err = at == MAP_FAILED ? -errno : 0;
    close(fd);
    if (err)
        return err;
    l->state = at;
    return l->state->magic == STATE_MAGIC && l->state->layout == STATE_LAYOUT &&
                   l->state->ninstances <= STATE_INSTANCES
               ? 0
               : -EPROTO;
}

int legacy_open(const char *socket_path, struct legacy *l)
{
    struct sockaddr_un sa;
    struct timeval tv = {5, 0};
    *l = (struct legacy){-1, -1, NULL};
    int err = keeper_address(socket_path, &sa);
    if (err)
        return err;
    l->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    setsockopt(l->sock, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    err = connect(l->sock, (struct sockaddr *)&sa, sizeof(sa)) ? -errno : legacy_take(l);
    if (!err)
        return 0;
    if (err == -ECONNREFUSED)
        unlink(sa.sun_path); /* its keeper was killed, too */
    legacy_close(l, false);
    return err == -ECONNREFUSED ? -ENOENT : err;
}

void legacy_close(struct legacy *l, bool done)
{
    char word = KEEPER_DONE;
    if (done) {
        (void)!send(l->sock, &word, 1, MSG_NOSIGNAL);
        (void)!recv(l->sock, &word, 1, 0); /* it ends: its socket's name is free */
    }
    if (l->state)
        munmap(l->state, sizeof(struct state));
    if (l->pidfd >= 0)
        close(l->pidfd);
    if (l->sock >= 0)
        close(l->sock);
    *l = (struct legacy){-1, -1, NULL};
}
