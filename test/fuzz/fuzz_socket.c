/*
 * The front door: packets, and descriptors with them, from up to two connections. The server's loop
 * runs on a thread of its own, as in edm-dms; its clients, the kernel's answers about their
 * descriptors and the end of their processes are this file.
 */
#include "config/log.h"
#include "dms/holder.h"
#include "dms/homes.h"
#include "dms/instance.h"
#include "dms/keeper.h"
#include "dms/server.h"
#include "fuzz.h"
#include "preload/uffd_abi.h"
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define ARENA (1ull << 40)
#define CONNS 2
#define STEPS 12
#define HASTE 200 /* pauses are so much shorter */

static struct server_options options;
static struct edm_config config;
static atomic_bool ended; /* the processes of all instances */
static atomic_ullong ahead_ns;

/* ---- the kernel ---- */

static bool is_kind(int fd, const char *kind)
{
    char path[40], to[80];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, to, sizeof(to) - 1);
    to[n > 0 ? n : 0] = 0;
    return strncmp(to, kind, strlen(kind)) == 0;
}

static int fail_with(int err)
{
    errno = err;
    return -1;
}

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
    va_list ap;
    va_start(ap, request);
    void *arg = va_arg(ap, void *);
    va_end(ap);
    struct pm_scan_arg *scan = arg;
    if (request == PAGEMAP_SCAN) {
        FUZZ_CHECK(is_kind(fd, "/proc/")); /* another file's driver may answer anything */
        scan->walk_end = scan->end;
        return 0;
    }
    if (request == PROCMAP_QUERY) {
        FUZZ_CHECK(is_kind(fd, "/proc/"));
        return fail_with(ENOTTY);
    }
    FUZZ_CHECK(is_kind(fd, "anon_inode:[userfaultfd]"));
    if (request == UFFDIO_API)
        return __real_ioctl(fd, request, arg);
    if (request == UFFDIO_ZEROPAGE)
        return fail_with(atomic_load(&ended) ? ESRCH : ENOENT);
    return 0;
}

struct state *__wrap_keeper_state(void);
struct state *__wrap_keeper_state(void)
{
    static struct state state;
    return &state;
}

void __wrap_server_stop(void);
void __wrap_server_stop(void)
{
}

uint64_t __real_now_ns(void);
uint64_t __wrap_now_ns(void);
uint64_t __wrap_now_ns(void)
{
    return __real_now_ns() + atomic_load(&ahead_ns);
}

int __real_nanosleep(const struct timespec *ts, struct timespec *left);
int __wrap_nanosleep(const struct timespec *ts, struct timespec *left);
int __wrap_nanosleep(const struct timespec *ts, struct timespec *left)
{
    struct timespec less = {0, ts->tv_nsec / HASTE};
    atomic_fetch_add(&ahead_ns, (uint64_t)ts->tv_nsec);
    return __real_nanosleep(&less, left);
}

/* ---- the clients ---- */

static int client_connect(void)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    struct timeval tv = {60, 0};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", config.socket);
    FUZZ_CHECK(fd >= 0 && !connect(fd, (struct sockaddr *)&sa, sizeof(sa)));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    return fd;
}

static int some_fd(uint8_t kind)
{
    int pair[2];
    switch (kind % 6) {
    case 0:
        return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    case 1:
        return open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    case 2:
        return open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    case 3:
        return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    case 4:
        return memfd_create("fuzz", MFD_CLOEXEC);
    default:
        if (pipe2(pair, O_CLOEXEC | O_NONBLOCK))
            return -1;
        close(pair[1]);
        return pair[0];
    }
}

/* What a good shim says, for the input to change. */
static uint32_t payload_make(uint32_t type, uint8_t *to)
{
    const struct edm_hello hello = {.arena_start = ARENA,
                                    .arena_len = 4 * EDM_CHUNK_SIZE,
                                    .identity = ARENA / 2,
                                    .used_start = ARENA,
                                    .used_end = ARENA + EDM_CHUNK_SIZE,
                                    .run_token = 7,
                                    .settings = {.local_memory = 1 << 20,
                                                 .low_permille = 900,
                                                 .high_permille = 950,
                                                 .replicas = 1,
                                                 .prefetch_max = 64,
                                                 .cluster = 16,
                                                 .handlers = 1},
                                    .command = "fuzz"};
    const struct edm_staging staging = {
        .start = 2 * ARENA, .len = EDM_STAGING_PAGES * EDM_PAGE_SIZE, .methods = 1};
    const struct edm_request request = {.size = 1 << 20, .token = 7, .pid = getpid()};
    switch (type) {
    case EDM_MSG_HELLO:
        memcpy(to, &hello, sizeof(hello));
        return sizeof(hello);
    case EDM_MSG_UFFD:
        memcpy(to, &staging, sizeof(staging));
        return sizeof(staging);
    case EDM_MSG_CLAIM:
    case EDM_MSG_REATTACH:
        return sizeof(uint64_t);
    case EDM_MSG_STAT:
    case EDM_MSG_RESIZE:
    case EDM_MSG_EVICT:
    case EDM_MSG_FETCH:
    case EDM_MSG_WATCH:
        memcpy(to, &request, sizeof(request));
        return sizeof(request);
    default:
        return 0;
    }
}

static void packet_send(int fd, const void *data, size_t len, const int *fds, unsigned nfds)
{
    _Alignas(struct cmsghdr) char buf[CMSG_SPACE(16 * sizeof(int))] = {0};
    struct iovec iov = {(void *)(uintptr_t)data, len};
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
    if (nfds) {
        h.msg_control = buf;
        h.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&h);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
    }
    (void)sendmsg(fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* A message of that type, as it should be but for what the input changes. */
static void say(struct input *in, int fd)
{
    struct {
        struct edm_msg msg;
        uint8_t payload[6000];
    } p = {.msg = {EDM_PROTO_MAGIC, EDM_PROTO_VERSION, input_u8(in) % 20, 0}};
    uint8_t how = input_u8(in), bytes[64];
    int fds[16];
    unsigned nfds = how & 128 ? input_u8(in) % 16 : p.msg.type == EDM_MSG_UFFD ? 3 : 0, have = 0;
    uint8_t kinds = how & 64 ? input_u8(in) : 0;
    uint32_t len = payload_make(p.msg.type, p.payload);
    for (unsigned i = 0; i < how % 8u; i++) {
        uint16_t at = input_u16(in);
        size_t n = input_bytes(in, bytes, at >> 12);
        memcpy(p.payload + at % (len + 1), bytes, n);
    }
    if (how & 32)
        len = input_u16(in) % sizeof(p.payload);
    p.msg.len = how & 16 ? input_u16(in) : len;
    if (how & 8)
        input_bytes(in, &p.msg, input_u8(in) % sizeof(p.msg));
    if (p.msg.type == EDM_MSG_HANDOVER && !p.msg.len)
        p.msg.type = EDM_MSG_PING; /* else it does what it is told: it ends this process */
    for (unsigned i = 0; i < nfds; i++)
        if ((fds[have] = some_fd((uint8_t)(i + (i < 3 ? kinds >> 2 * i & 3 : 0)))) >= 0)
            have++;
    packet_send(fd, &p, sizeof(p.msg) + len, fds, have);
    for (unsigned i = 0; i < have; i++)
        close(fds[i]);
}

static void say_bytes(struct input *in, int fd)
{
    uint8_t bytes[256];
    packet_send(fd, bytes, input_bytes(in, bytes, input_u8(in)), NULL, 0);
}

/* Takes one answer, when there is one soon; descriptors in it are closed. False: none. */
static bool hear(int fd, int flags)
{
    static char answer[EDM_MSG_MAX];
    _Alignas(struct cmsghdr) char buf[CMSG_SPACE(EDM_MSG_FDS * sizeof(int))];
    struct iovec iov = {answer, sizeof(answer)};
    struct msghdr h = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = buf, .msg_controllen = sizeof(buf)};
    ssize_t n = recvmsg(fd, &h, flags);
    if (n < 0)
        FUZZ_CHECK(errno == ECONNRESET || (flags & MSG_DONTWAIT && errno == EAGAIN));
    struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&h) : NULL;
    unsigned nfds = c ? (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int)) : 0;
    for (unsigned i = 0; i < nfds; i++)
        close(((const int *)(const void *)CMSG_DATA(c))[i]);
    return n > 0;
}

static void *server_main(void *arg)
{
    server_run();
    return NULL;
}

static void start(void)
{
    char err[300];
    static uint64_t kept;
    pthread_t t;
    struct store_options o = {.memory_bytes = 1024 * EDM_PAGE_SIZE};
    edm_log_init("fuzz", EDM_LOG_DEBUG, "/dev/null");
    const char *tmp = getenv("TMPDIR");
    char dir[80];
    snprintf(dir, sizeof(dir), "%s/edm-fuzz-XXXXXX", tmp ? tmp : "/tmp");
    FUZZ_CHECK(mkdtemp(dir));
    snprintf(config.socket, sizeof(config.socket), "%s/dms.sock", dir);
    options.config = &config;
    control_init();
    FUZZ_CHECK(!instance_module_init(o.memory_bytes) && !copies_init(NULL, NULL));
    FUZZ_CHECK(!store_init(&o, err, sizeof(err)) && !homes_open(-1) && !copies_open(-1) &&
               !holder_open(-1, &kept) && !copies_start());
    int e = server_open(&options, err, sizeof(err));
    if (e)
        fprintf(stderr, "%s\n", err);
    FUZZ_CHECK(!e && !pthread_create(&t, NULL, server_main, NULL));
}

static void clean_up(void)
{
    char path[EDM_CONFIG_PATH_MAX + 8];
    snprintf(path, sizeof(path), "%s.lock", config.socket);
    unlink(path);
    unlink(config.socket);
    path[strlen(config.socket) - strlen("/dms.sock")] = 0;
    rmdir(path);
}

/* Whoever was let in has settings that the server can work with. */
static void check_settings(void)
{
    size_t n;
    struct instance **all = instance_list(&n);
    for (size_t i = 0; i < n; i++) {
        const struct edm_settings *s = &all[i]->set;
        FUZZ_CHECK(s->placement <= EDM_PLACEMENT_SPREAD && s->replicas >= 1 &&
                   s->replicas <= COPIES_MAX && s->cluster >= 1);
        instance_put(all[i]);
    }
    free(all);
}

/* The server lets go of everything when its clients have. */
static void end(const int *fds)
{
    const struct timespec ts = {0, 50000};
    for (int i = 0; i < CONNS; i++) {
        if (fds[i] < 0)
            continue;
        shutdown(fds[i], SHUT_WR);
        while (hear(fds[i], 0))
            ;
        close(fds[i]);
    }
    check_settings();
    atomic_store(&ended, true);
    for (int i = 0; i < 20000 && instance_count(); i++) {
        instance_reap();
        __real_nanosleep(&ts, NULL);
    }
    FUZZ_CHECK(instance_count() == 0);
    atomic_store(&ended, false);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    int fds[CONNS] = {-1, -1};
    if (!config.socket[0]) {
        start();
        atexit(clean_up);
    }
    for (int i = 0; i < STEPS && in.left; i++) {
        uint8_t what = input_u8(&in);
        int *fd = &fds[what & 1];
        *fd = *fd < 0 ? client_connect() : *fd;
        if (what >> 1 & 7)
            say(&in, *fd);
        else
            say_bytes(&in, *fd);
        if (what & 64) /* in order with the other connection's */
            for (int k = 0; k < 20 && !hear(*fd, MSG_DONTWAIT); k++)
                sched_yield();
    }
    end(fds);
    return 0;
}
