#include "../config/log.h"
#include "instance.h"
#include "keeper.h"
#include "server_int.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <libgen.h>
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
#define LOCK_TRIES 50
#define SYSTEM_FOLDER "/run/edm"
#define LPET_BACK_NS 5000000000ull /* an LPET that lives comes back much sooner */

struct server server = {.lock_fd = -1,
                        .listen_fd = -1,
                        .epoll_fd = -1,
                        .stop_efd = -1,
                        .signal_fd = -1,
                        .uffd_dev = -1,
                        .spare_fd = -1,
                        .reap_lock = PTHREAD_MUTEX_INITIALIZER};

static char keeper_mark; /* in the loop: the keeper has ended */

/* ---- opening ---- */

static int make_folder(const char *path, char *err, size_t errlen)
{
    struct stat st;
    bool made = mkdir(path, 0700) == 0, ours = made || strcmp(path, SYSTEM_FOLDER) == 0;
    if (!made && errno != EEXIST) {
        int e = -errno;
        snprintf(err, errlen,
                 "%s: cannot make the folder: %s: make it, or set `socket` to another path", path,
                 strerror(-e));
        return e;
    }
    if (stat(path, &st) || !S_ISDIR(st.st_mode)) {
        snprintf(err, errlen, "%s: not a folder: set `socket` to a path below one", path);
        return -ENOTDIR;
    }
    if (st.st_uid != geteuid() && st.st_uid != 0) {
        snprintf(err, errlen, "%s: belongs to another user: set `socket` to a path of your own",
                 path);
        return -EPERM;
    }
    /* who may use the socket must get to it */
    if (ours && server.has_group && st.st_uid == geteuid() &&
        (chown(path, (uid_t)-1, server.group) || chmod(path, 0710))) {
        int e = -errno;
        snprintf(err, errlen, "%s: cannot be given to server_group: %s", path, strerror(-e));
        return e;
    }
    return 0;
}

bool server_answers(const char *path, unsigned ms)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    struct edm_msg ping = {EDM_PROTO_MAGIC, EDM_PROTO_VERSION, EDM_MSG_PING, 0};
    struct timeval tv = {ms / 1000, ms % 1000 * 1000};
    char answer[sizeof(struct edm_msg) + sizeof(struct edm_done)];
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return false;
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
    bool ok = connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0 &&
              send(fd, &ping, sizeof(ping), MSG_NOSIGNAL) == sizeof(ping) &&
              recv(fd, answer, sizeof(answer), 0) >= (ssize_t)sizeof(ping);
    close(fd);
    return ok;
}

static int take_lock(char *err, size_t errlen)
{
    char path[EDM_CONFIG_PATH_MAX + 8];
    snprintf(path, sizeof(path), "%s.lock", server.socket);
    server.lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (server.lock_fd < 0) {
        int e = -errno;
        snprintf(err, errlen, "%s: %s: set `socket` to a path where you may make files", path,
                 strerror(-e));
        return e;
    }
    /* a server that was just killed: its keeper lets go of the lock in a moment */
    struct timespec ts = {0, 20000000};
    int busy = flock(server.lock_fd, LOCK_EX | LOCK_NB);
    for (int i = 0; busy && i < LOCK_TRIES && !server_answers(server.socket, 20); i++) {
        nanosleep(&ts, NULL);
        busy = flock(server.lock_fd, LOCK_EX | LOCK_NB);
    }
    if (busy) {
        snprintf(err, errlen, "%s: a server runs there already: `edm stop` ends it", server.socket);
        return -EADDRINUSE;
    }
    return 0;
}

static int find_group(const char *name, char *err, size_t errlen)
{
    struct group *g = *name ? getgrnam(name) : NULL;
    if (*name && !g) {
        snprintf(err, errlen, "server_group: no group named %s: an existing one is needed", name);
        return -ENOENT;
    }
    server.has_group = g != NULL;
    server.group = g ? g->gr_gid : 0;
    return 0;
}

/* What lies there and is no socket is somebody's file. */
static int check_path(char *err, size_t errlen)
{
    struct stat st;
    if (lstat(server.socket, &st) || S_ISSOCK(st.st_mode))
        return 0;
    snprintf(err, errlen, "%s: is not a socket: set `socket` to a path that is free",
             server.socket);
    return -ENOTSOCK;
}

static int bind_socket(char *err, size_t errlen)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", server.socket);
    server.listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    unlink(server.socket);
    mode_t old = umask(0177);
    int bad = server.listen_fd < 0 || bind(server.listen_fd, (struct sockaddr *)&sa, sizeof(sa));
    int e = bad ? -errno : 0;
    umask(old);
    if (!e && server.has_group &&
        (chown(server.socket, (uid_t)-1, server.group) || chmod(server.socket, 0660)))
        e = -errno;
    if (!e && listen(server.listen_fd, 512))
        e = -errno;
    if (e)
        snprintf(err, errlen, "%s: cannot listen: %s", server.socket, strerror(-e));
    return e;
}

static int add_fd(int fd, void *ptr)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = ptr};
    return epoll_ctl(server.epoll_fd, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

static int open_loop(char *err, size_t errlen)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    server.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    server.stop_efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    server.signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    server.spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (server.epoll_fd < 0 || server.stop_efd < 0 || server.signal_fd < 0 ||
        add_fd(server.listen_fd, &server.listen_fd) || add_fd(server.stop_efd, &server.stop_efd) ||
        add_fd(server.signal_fd, &server.signal_fd)) {
        snprintf(err, errlen, "out of descriptors: %s", strerror(errno));
        return -EMFILE;
    }
    return 0;
}

int server_open(const struct server_options *opt, char *err, size_t errlen)
{
    char dir[EDM_CONFIG_PATH_MAX];
    server.opt = *opt;
    snprintf(server.socket, sizeof(server.socket), "%s", opt->config->socket);
    snprintf(dir, sizeof(dir), "%s", server.socket);
    int e = check_path(err, errlen);
    if (e || (e = find_group(opt->config->server_group, err, errlen)) ||
        (e = make_folder(dirname(dir), err, errlen)) || (e = take_lock(err, errlen)))
        return e;
    server.uffd_dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (server.uffd_dev < 0) {
        e = -errno;
        snprintf(err, errlen, "/dev/userfaultfd: %s: %s", strerror(-e),
                 e == -ENOENT ? "EDM needs Linux 6.1 or newer with CONFIG_USERFAULTFD"
                              : "run edm-dms as root, or give its user access to the device");
        return e;
    }
    if ((e = bind_socket(err, errlen)))
        return e;
    return open_loop(err, errlen);
}

/* ---- running ---- */

void instance_reap(void)
{
    size_t n;
    unsigned gone = 0;
    pthread_mutex_lock(&server.reap_lock);
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
    pthread_mutex_unlock(&server.reap_lock);
    if (gone)
        instance_rebalance();
}

void server_stop(void)
{
    uint64_t one = 1;
    (void)!write(server.stop_efd, &one, sizeof(one));
}

static atomic_bool stays;

void server_stay(void)
{
    atomic_store(&stays, true);
}

static bool ends_by_itself(void)
{
    return server.opt.is_auto && !atomic_load(&stays);
}

/* How long the loop may sleep: instances without a socket are looked at from time to time. */
static int loop_timeout(void)
{
    unsigned attached = 0;
    for (struct conn *c = server.conns; c; c = c->next)
        attached += c->state == CONN_ATTACHED;
    if (instance_count() > attached)
        return now_ns() - server.hangup_ns < 1000000000ull ? 10 : 250;
    return ends_by_itself() && instance_count() == 0 ? 500 : -1;
}

static bool auto_is_over(void)
{
    if (!ends_by_itself() || instance_count() || server.nconns) {
        server.idle_since_ns = 0;
        return false;
    }
    if (!server.idle_since_ns)
        server.idle_since_ns = now_ns();
    return now_ns() - server.idle_since_ns > AUTO_LINGER_NS;
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
        int n = epoll_wait(server.epoll_fd, events, 64, timeout);
        for (int i = 0; i < n; i++) {
            void *p = events[i].data.ptr;
            if (p == &server.stop_efd || p == &server.signal_fd)
                return;
            if (p == &server.listen_fd)
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
    if (server.listen_fd >= 0) {
        close(server.listen_fd);
        unlink(server.socket);
    }
    if (!release_all())
        _exit(0); /* as if killed: the keeper has what is left */
    keeper_end(); /* not before: this, too, may be cut short */
    while (server.conns)
        conn_close(server.conns);
    if (server.lock_fd >= 0) {
        snprintf(path, sizeof(path), "%s.lock", server.socket);
        if (server.listen_fd >= 0)
            unlink(path);
        close(server.lock_fd);
    }
}
