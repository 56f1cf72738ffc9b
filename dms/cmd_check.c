/*
 * edm check: one line per need: ok, or what is wrong and how to mend it.
 */
#include "cmd.h"
#include "hosts.h"
#include "store_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

/* Newer than the headers EDM is built with. */
#define FEATURE_POISON (1ull << 14)
#define FEATURE_MOVE (1ull << 16)

struct pagemap_scan { /* struct pm_scan_arg */
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PAGEMAP_SCAN_IOCTL _IOWR('f', 16, struct pagemap_scan)

#define MPI_LIMIT_S 20
#define HOST_LIMIT_S 20
#define CLOCK_LIMIT_S 1.0

enum verdict { FINE, WORSE, BROKEN }; /* WORSE: EDM runs, but slower or with less */

struct checker {
    const struct edm_config *config;
    int broken;
};

static void say(struct checker *k, enum verdict v, const char *what, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static void say(struct checker *k, enum verdict v, const char *what, const char *fmt, ...)
{
    static const char *const words[] = {"ok", "note", "WRONG"};
    char text[PATH_MAX + CMD_ERR_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    printf("%-20s %s%s%s\n", what, words[v], *text ? ": " : "", text);
    k->broken |= v == BROKEN;
}

/* ---- the kernel ---- */

static void check_kernel(struct checker *k)
{
    int major = 0, minor = 0;
    struct utsname u;

    uname(&u);
    if (sscanf(u.release, "%d.%d", &major, &minor) != 2 || major < 5 || (major == 5 && minor < 7))
        say(k, BROKEN, "kernel", "Linux %s is too old: 5.7 or newer is needed", u.release);
    else if (major < 6 || (major == 6 && minor < 8))
        say(k, WORSE, "kernel", "Linux %s: from 6.8 on pages are moved out safely under I/O",
            u.release);
    else
        say(k, FINE, "kernel", "Linux %s", u.release);
}

/* A userfaultfd made either way, or -errno. */
static int make_uffd(void)
{
    int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd;

    if (dev >= 0) {
        fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        if (fd < 0)
            fd = -errno;
        close(dev);
        return fd;
    }
    fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

/* Features of this kernel; *access is 0 or -errno. */
static uint64_t uffd_features(int *access_rc)
{
    struct uffdio_api api = {.api = UFFD_API};
    int fd = make_uffd();

    *access_rc = fd < 0 ? fd : 0;
    if (fd < 0)
        return 0;
    if (ioctl(fd, UFFDIO_API, &api))
        *access_rc = -errno;
    close(fd);
    return api.features;
}

/* EVENT_FORK is listed by every kernel, and given to those with CAP_SYS_PTRACE. */
static int fork_events_rc(void)
{
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_FORK};
    int fd = make_uffd(), rc = 0;

    if (fd < 0)
        return fd;
    if (ioctl(fd, UFFDIO_API, &api))
        rc = -errno;
    close(fd);
    return rc;
}

static void check_features(struct checker *k, uint64_t have)
{
    static const struct {
        const char *name;
        uint64_t bit;
        enum verdict without;
        const char *why;
    } features[] = {
        {"event remap", UFFD_FEATURE_EVENT_REMAP, BROKEN, "mremap cannot be followed"},
        {"event remove", UFFD_FEATURE_EVENT_REMOVE, BROKEN, "madvise cannot be followed"},
        {"event unmap", UFFD_FEATURE_EVENT_UNMAP, BROKEN, "munmap cannot be followed"},
        {"write protection", UFFD_FEATURE_PAGEFAULT_FLAG_WP, BROKEN,
         "a kernel with CONFIG_HAVE_ARCH_USERFAULTFD_WP is needed"},
        {"UFFDIO_MOVE", FEATURE_MOVE, WORSE,
         "pages are copied out instead; programs with I/O into memory under way are at risk"},
        {"UFFDIO_POISON", FEATURE_POISON, WORSE,
         "a lost page ends the program instead of raising SIGBUS where it is touched"},
    };

    for (size_t i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
        if (have & features[i].bit)
            say(k, FINE, features[i].name, "%s", "");
        else
            say(k, features[i].without, features[i].name, "not in this kernel: %s",
                features[i].why);
    }
}

/* With a server that answers, this user needs no right of their own. */
static void check_userfaultfd(struct checker *k, bool served)
{
    enum verdict bad = served ? WORSE : BROKEN;
    int rc, fork_rc;
    uint64_t have = uffd_features(&rc);

    if (rc == -ENOSYS) {
        say(k, BROKEN, "userfaultfd", "not in this kernel: one with CONFIG_USERFAULTFD is needed");
        return;
    }
    if (rc) {
        say(k, bad, "userfaultfd", "%s: %s", strerror(-rc),
            served ? "the running server has it"
                   : "run the server as root (edm start), or give yourself read and write access "
                     "to /dev/userfaultfd");
        return;
    }
    say(k, FINE, "userfaultfd", "%s", "");
    fork_rc = fork_events_rc();
    if (!fork_rc)
        say(k, FINE, "event fork", "%s", "");
    else
        say(k, bad, "event fork", "%s: %s", strerror(-fork_rc),
            served ? "the running server has it"
                   : "the server needs CAP_SYS_PTRACE: run it as root, or setcap "
                     "cap_sys_ptrace+ep on edm-dms");
    check_features(k, have);
}

static void check_pagemap_scan(struct checker *k)
{
    struct pagemap_scan arg = {.size = sizeof(arg)};
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), rc = -1;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

    arg.start = (uint64_t)&arg & ~(page - 1);
    arg.end = arg.start + page;
    if (fd >= 0) {
        rc = ioctl(fd, PAGEMAP_SCAN_IOCTL, &arg);
        close(fd);
    }
    if (rc >= 0)
        say(k, FINE, "PAGEMAP_SCAN", "%s", "");
    else
        say(k, WORSE, "PAGEMAP_SCAN",
            "not in this kernel (6.7): resident memory is counted slower");
}

static uint64_t read_number(const char *path)
{
    FILE *f = fopen(path, "re");
    uint64_t v = 0;

    if (!f)
        return 0;
    if (fscanf(f, "%" SCNu64, &v) != 1)
        v = 0;
    fclose(f);
    return v;
}

static void check_limits(struct checker *k)
{
    uint64_t maps = read_number("/proc/sys/vm/max_map_count");
    struct rlimit nofile;

    if (maps >= 65530)
        say(k, FINE, "vm.max_map_count", "%" PRIu64, maps);
    else
        say(k, WORSE, "vm.max_map_count",
            "%" PRIu64 ": less memory is left to the kernel: sysctl vm.max_map_count=65530", maps);
    if (getrlimit(RLIMIT_NOFILE, &nofile))
        return;
    if (nofile.rlim_max >= 1024)
        say(k, FINE, "open files", "%" PRIu64, (uint64_t)nofile.rlim_max);
    else
        say(k, BROKEN, "open files",
            "%" PRIu64 ": the server needs several for each process: ulimit -Hn 1024 or more",
            (uint64_t)nofile.rlim_max);
}

/* ---- programs ---- */

static bool in_path(const char *name)
{
    const char *path = getenv("PATH");
    char file[PATH_MAX];

    for (const char *p = path ? path : "/usr/bin:/bin"; *p;) {
        size_t n = strcspn(p, ":");

        snprintf(file, sizeof(file), "%.*s/%s", (int)n, p, name);
        if (n && access(file, X_OK) == 0)
            return true;
        p += n + (p[n] == ':');
    }
    return false;
}

/* Needed as soon as there are hosts. */
static void check_mpi(struct checker *k)
{
    enum verdict bad = *k->config->hosts ? BROKEN : WORSE;
    const struct hosts here = {.names = {""}, .n = 1};
    struct hosts_result r = {0};

    if (!in_path("mpiexec")) {
        say(k, bad, "MPI", "no mpiexec: one rank works without; for more install mpich");
        return;
    }
    /* not "true": mpiexec may still be talking to it when that has ended, and dies of SIGPIPE */
    hosts_run(&here, "mpiexec -n 2 sleep 0.2", MPI_LIMIT_S, &r);
    if (r.status == 0)
        say(k, FINE, "MPI", "mpiexec starts programs");
    else if (r.status == -ETIMEDOUT)
        say(k, bad, "MPI", "mpiexec -n 2 sleep 0.2 does not end: does this host's name resolve?");
    else
        say(k, bad, "MPI", "mpiexec -n 2 sleep 0.2: status %d: %.*s", r.status,
            (int)strcspn(r.output, "\n"), r.output);
}

static void check_programs(struct checker *k)
{
    char path[PATH_MAX], err[CMD_ERR_MAX];

    if (edm_launch_find_shim(path, sizeof(path), err, sizeof(err)))
        say(k, BROKEN, "shim", "%s", err);
    else
        say(k, FINE, "shim", "%s", path);
    if (edm_launch_find_dms(path, sizeof(path), err, sizeof(err)))
        say(k, BROKEN, "server program", "%s", err);
    else if (access(path, X_OK))
        say(k, BROKEN, "server program", "%s: %s", path, strerror(errno));
    else
        say(k, FINE, "server program", "%s", path);
    check_mpi(k);
}

/* ---- hosts ---- */

int cmd_host_verdict(const struct hosts_result *r, const char *dms, char *err, size_t errlen)
{
    static const char mine[] = "edm-dms " EDM_VERSION;
    const char *said = r->output;

    if (r->status == -ETIMEDOUT)
        snprintf(err, errlen, "does not answer: is it up, and ssh open?");
    else if (r->status == -EHOSTUNREACH)
        snprintf(err, errlen, "cannot be reached: %s", *said ? said : "ssh failed");
    else if (r->status == 126 || r->status == 127)
        snprintf(err, errlen, "%s is not there: install EDM at the same path as here", dms);
    else if (r->status)
        snprintf(err, errlen, "%s does not work there (status %d): %s", dms, r->status, said);
    else if (strncmp(said, mine, strlen(mine)) != 0)
        snprintf(err, errlen, "it has %.40s, and here is %s: install the same on both", said, mine);
    else
        return 0;
    for (char *c = err; *c; c++)
        if (strchr("\r\n", *c))
            *c = ' ';
    return r->status < 0 ? r->status : -ENOEXEC;
}

static void check_host(struct checker *k, const char *name, const struct hosts_result *r,
                       const char *dms)
{
    const char *time = strchr(r->output, '\n');
    char what[80], err[CMD_ERR_MAX];
    double off, slack = (r->ended - r->started) / 2;

    snprintf(what, sizeof(what), "host %.70s", name);
    if (cmd_host_verdict(r, dms, err, sizeof(err))) {
        say(k, BROKEN, what, "%s", err);
        return;
    }
    off = (time ? strtod(time, NULL) : 0) - r->started - slack;
    if (off > slack + CLOCK_LIMIT_S || off < -slack - CLOCK_LIMIT_S)
        say(k, WORSE, what,
            "edm-dms " EDM_VERSION "; its clock is %+.1f s off: EDM does not mind, readers of "
            "logs may",
            off);
    else
        say(k, FINE, what, "edm-dms " EDM_VERSION ", clock %+.2f s (+-%.2f)%s", off, slack,
            hosts_is_local(name) ? ", this host" : "");
}

static void check_hosts(struct checker *k)
{
    char dms[PATH_MAX], line[PATH_MAX * 4] = "", err[CMD_ERR_MAX];
    struct hosts_result *r;
    struct hosts h = {.n = 0};

    if (hosts_parse(&h, k->config->hosts, err, sizeof(err))) {
        say(k, BROKEN, "hosts", "%s", err);
        return;
    }
    if (!h.n || edm_launch_find_dms(dms, sizeof(dms), err, sizeof(err)) ||
        hosts_quote(line, sizeof(line) - 32, dms))
        return;
    strcat(line, " --version && date +%s.%N");
    r = calloc(h.n, sizeof(*r));
    if (!r)
        return;
    hosts_run(&h, line, HOST_LIMIT_S, r);
    for (unsigned i = 0; i < h.n; i++)
        check_host(k, h.names[i], &r[i], dms);
    free(r);
}

/* ---- stores ---- */

/* The directory itself, or the nearest above it that exists: it will be made there. */
static void existing_parent(const char *path, char *buf, size_t len)
{
    char *slash;

    snprintf(buf, len, "%s", path);
    while (access(buf, F_OK) && (slash = strrchr(buf, '/')) && slash != buf)
        *slash = '\0';
    if (access(buf, F_OK))
        snprintf(buf, len, "/");
}

static void check_disk(struct checker *k)
{
    const struct edm_config *c = k->config;
    char dir[512], need[16], have[16];
    struct statvfs vfs;
    struct stat st;
    double avail, want;

    if (!(c->disk_store.bytes | c->disk_store.permille)) {
        say(k, FINE, "disk store", "none by setting");
        return;
    }
    existing_parent(c->disk_path, dir, sizeof(dir));
    if (access(dir, W_OK | X_OK) && strcmp(dir, DISK_PATH_DEFAULT) == 0)
        *strrchr(dir, '/') = '\0'; /* another user's: the server then uses the one above */
    if (stat(dir, &st) || !S_ISDIR(st.st_mode)) {
        say(k, BROKEN, "disk store", "%s is not a directory: set disk_path to one", dir);
        return;
    }
    if (access(dir, W_OK | X_OK) || statvfs(dir, &vfs)) {
        say(k, BROKEN, "disk store",
            "%s: %s: set disk_path to a directory of yours, or disk_store to 0", dir,
            strerror(errno));
        return;
    }
    avail = (double)vfs.f_bavail * (double)vfs.f_frsize;
    want = (double)edm_size_bytes(c->disk_store, (uint64_t)avail);
    cmd_human(want, need);
    cmd_human(avail, have);
    if (want > avail || avail < 64 << 20)
        say(k, WORSE, "disk store", "%s wanted, %s free on %s: free some, or change disk_store",
            need, have, c->disk_path);
    else
        say(k, FINE, "disk store", "%s of %s free on %s", need, have, c->disk_path);
}

static void check_memory(struct checker *k)
{
    uint64_t total = edm_memory_total();
    double want = (double)edm_size_bytes(k->config->memory_store, total), room;
    char need[16], have[16];
    struct statvfs vfs;

    if (want <= 0) {
        say(k, FINE, "memory store", "none by setting");
        return;
    }
    if (statvfs("/dev/shm", &vfs) || access("/dev/shm", W_OK)) {
        say(k, BROKEN, "memory store", "/dev/shm: %s: mount a tmpfs there", strerror(errno));
        return;
    }
    room = (double)vfs.f_bavail * (double)vfs.f_frsize;
    cmd_human(want, need);
    cmd_human(room, have);
    if (want > room)
        say(k, WORSE, "memory store",
            "%s wanted, /dev/shm has room for %s: mount -o remount,size=%s /dev/shm, or lower "
            "memory_store",
            need, have, need);
    else if (want > 0.9 * (double)total)
        say(k, WORSE, "memory store", "%s wanted of %s memory: lower memory_store", need,
            cmd_human((double)total, have));
    else
        say(k, FINE, "memory store", "%s, /dev/shm has room for %s", need, have);
}

/* ---- the command ---- */

/* Could a server make its socket? */
static bool check_socket(struct checker *k)
{
    char dir[EDM_CONFIG_PATH_MAX], *folder;
    struct stat st;

    if (lstat(k->config->socket, &st) == 0 && !S_ISSOCK(st.st_mode)) {
        say(k, BROKEN, "server", "%s is not a socket: set `socket` to a path that is free",
            k->config->socket);
        return false;
    }
    snprintf(dir, sizeof(dir), "%s", k->config->socket);
    folder = dirname(dir);
    if (access(folder, F_OK) != 0)
        folder = dirname(folder); /* one folder is made */
    if (access(folder, W_OK | X_OK) == 0)
        return true;
    say(k, BROKEN, "server", "%s: no socket can be made below %s: %s: set `socket` to another path",
        k->config->socket, folder, strerror(errno));
    return false;
}

static bool check_server(struct checker *k)
{
    char err[CMD_ERR_MAX];
    int rc = edm_client_runs(k->config, true, err, sizeof(err));

    if (rc > 0)
        say(k, FINE, "server", "one answers");
    else if (rc < 0)
        say(k, BROKEN, "server", "%s", err);
    else if (k->config->server == EDM_SERVER_OFF)
        say(k, WORSE, "server", "server is \"off\": nothing is managed");
    else if (!check_socket(k))
        return false;
    else if (k->config->server == EDM_SERVER_AUTO)
        say(k, FINE, "server", "none runs; the first program starts one");
    else
        say(k, BROKEN, "server", "none runs, and server is \"require\": edm start");
    return rc > 0;
}

static int check_main(const struct cmd *self, int argc, char **argv)
{
    struct cmd_settings s = {0};
    struct checker k = {.config = &s.config};
    int found, rc = 0;
    bool served;

    while ((found = getopt_long(argc, argv, ":c:o:", (struct option[]){{0}}, NULL)) != -1) {
        if (found == 'c')
            s.request.file = optarg;
        else if (found == 'o')
            cmd_settings_add(&s, optarg);
        else
            return cmd_bad_option(self, found, argv);
    }
    if (argv[optind])
        rc = cmd_misused(self, "\"%s\" is too much", argv[optind]);
    if (!rc)
        rc = cmd_settings_load(&s);
    if (rc)
        goto out;
    say(&k, FINE, "settings", "%s", "");
    check_kernel(&k);
    served = check_server(&k);
    check_userfaultfd(&k, served);
    check_pagemap_scan(&k);
    check_limits(&k);
    check_programs(&k);
    check_memory(&k);
    check_disk(&k);
    check_hosts(&k);
    rc = k.broken;
out:
    cmd_settings_fini(&s);
    return rc;
}

const struct cmd cmd_check = {
    .name = "check",
    .run = check_main,
    .usage = " [-c FILE] [-o KEY=VALUE]...",
    .help =
        "can EDM run here? One line per need\n\n"
        "  -c FILE       read settings from FILE and no other\n"
        "  -o KEY=VALUE  any setting\n\n"
        "\"ok\" is as it should be, \"note\" works with less, \"WRONG\" must be mended; the exit\n"
        "status is then 1.\n",
};
