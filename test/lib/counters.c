/* Counters of the running program, from `edm stat --json`. */
#include "edmtest.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define TEXT_MAX (1024 * 1024)
#define POOL_SIZE (16 * EDMTEST_MIB)

extern char **environ;

/* JSON is read into memory of our own, so that looking at the counters does not change them. */
static char *pool, *text;
static size_t pool_used;

static void *pool_alloc(size_t n)
{
    size_t at = pool_used;

    pool_used += (n + 15) & ~15ul;
    EXPECT(pool_used <= POOL_SIZE, "edm stat --json: too long");
    return pool + at;
}

static void pool_free(void *p)
{
    (void)p;
}

static void pool_init(void)
{
    pool_used = 0;
    if (pool)
        return;
    pool = mmap(NULL, POOL_SIZE + TEXT_MAX, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT(pool != MAP_FAILED, "mmap: %m");
    text = pool + POOL_SIZE;
    json_set_alloc_funcs(pool_alloc, pool_free);
}

/* Runs edm with these arguments, without the shim; its standard output goes to fd out. */
static int run_edm(char *const argv[], int out)
{
    static char *env[1024];
    const char *edm = getenv("EDM_TEST_EDM");
    posix_spawn_file_actions_t act;
    size_t n = 0;
    int status, rc;
    pid_t pid;

    for (char **e = environ; *e && n < 1023; e++)
        if (strncmp(*e, "LD_PRELOAD=", 11) != 0)
            env[n++] = *e;
    env[n] = NULL;
    posix_spawn_file_actions_init(&act);
    if (out >= 0) {
        posix_spawn_file_actions_adddup2(&act, out, 1);
        posix_spawn_file_actions_addopen(&act, 2, "/dev/null", O_WRONLY, 0); /* not attached yet */
    }
    rc = posix_spawnp(&pid, edm ? edm : "edm", &act, NULL, argv, env);
    posix_spawn_file_actions_destroy(&act);
    EXPECT(rc == 0, "cannot run %s: %s", edm ? edm : "edm", strerror(rc));
    EXPECT_CALL(waitpid(pid, &status, 0));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* A number by path ("faults.existing"); fails the test when it is not there. */
static uint64_t number(const json_t *object, const char *path)
{
    char key[64];
    const char *dot = strchr(path, '.');
    const json_t *v;

    snprintf(key, sizeof(key), "%.*s", (int)(dot ? dot - path : (ptrdiff_t)strlen(path)), path);
    v = json_object_get(object, key);
    EXPECT(v, "edm stat --json: no %s", path);
    if (dot)
        return number(v, dot + 1);
    EXPECT(json_is_number(v), "edm stat --json: %s is not a number", path);
    return (uint64_t)json_number_value(v);
}

static void take(const json_t *i, struct edmtest_counters *c)
{
    c->local_memory = number(i, "local_memory_bytes");
    c->resident = number(i, "resident_bytes");
    c->resident_max = number(i, "resident_max_bytes");
    c->stored_bytes = number(i, "stored_bytes");
    c->stored_pages = number(i, "stored_pages");
    c->faults_new = number(i, "faults.new");
    c->faults_existing = number(i, "faults.existing");
    c->faults_limbo = number(i, "faults.limbo");
    c->faults_waited = number(i, "faults.waited");
    c->prefetched = number(i, "prefetch.fetched");
    c->prefetch_used = number(i, "prefetch.used");
    c->leases = number(i, "leases");
    c->evicted = number(i, "evictions.pages");
    c->evicted_zero = number(i, "evictions.zero");
    c->evicted_clean = number(i, "evictions.clean");
    c->evicted_busy = number(i, "evictions.busy");
    c->forks = number(i, "events.fork");
    c->remaps = number(i, "events.remap");
    c->removes = number(i, "events.remove");
    c->unmaps = number(i, "events.unmap");
}

/* The answer of `edm stat --json PID`, parsed; NULL when edm failed. */
static json_t *ask(pid_t pid)
{
    char number_text[16];
    char *argv[] = {"edm", "stat", "--json", number_text, NULL};
    int fd = memfd_create("edmtest-stat", MFD_CLOEXEC), rc;
    json_error_t err;
    json_t *root;
    ssize_t n;

    EXPECT(fd >= 0, "memfd_create: %m");
    snprintf(number_text, sizeof(number_text), "%d", (int)pid);
    rc = run_edm(argv, fd);
    n = pread(fd, text, TEXT_MAX - 1, 0);
    close(fd);
    if (rc != 0)
        return NULL;
    EXPECT(n > 0 && n < TEXT_MAX - 1, "edm stat --json: %zd bytes", n);
    root = json_loadb(text, (size_t)n, 0, &err);
    EXPECT(root, "edm stat --json: %s", err.text);
    return root;
}

int edmtest_counters(pid_t pid, struct edmtest_counters *c)
{
    json_t *root, *list, *one;
    size_t i;

    if (!pid)
        pid = getpid();
    pool_init();
    root = ask(pid);
    if (!root)
        return -EIO;
    list = json_object_get(root, "instances");
    EXPECT(json_is_array(list), "edm stat --json: no instances");
    json_array_foreach(list, i, one)
    {
        if (number(one, "pid") == (uint64_t)pid) {
            take(one, c);
            return 0;
        }
    }
    return -ENOENT;
}

struct edmtest_counters edmtest_now(void)
{
    struct edmtest_counters c = {0};

    if (!edmtest_native()) {
        int rc = edmtest_counters(0, &c);

        EXPECT(rc == 0, "edm stat does not know this program (%s)", strerror(-rc));
    }
    return c;
}

void edmtest_evicted_at_least(uint64_t bytes)
{
    struct edmtest_counters c;

    if (edmtest_native())
        return;
    c = edmtest_now();
    EXPECT((c.evicted + c.evicted_zero) * 4096 >= bytes,
           "evicted %lu pages and %lu zero pages, less than %lu bytes", c.evicted, c.evicted_zero,
           bytes);
}

void edmtest_came_back(const struct edmtest_counters *before, uint64_t n)
{
    struct edmtest_counters c;
    uint64_t back;

    if (edmtest_native())
        return;
    c = edmtest_now();
    EXPECT(c.faults_existing + c.faults_limbo > before->faults_existing + before->faults_limbo,
           "no fault on an evicted page");
    back = c.faults_existing + c.faults_limbo + c.prefetched - before->faults_existing -
           before->faults_limbo - before->prefetched;
    EXPECT(back >= n, "%lu evicted pages came back, not %lu", back, n);
}

int edmtest_edm(const char *verb, pid_t pid)
{
    char name[32], number_text[16];
    char *argv[] = {"edm", name, number_text, NULL};

    if (edmtest_native())
        return 0;
    snprintf(name, sizeof(name), "%s", verb);
    snprintf(number_text, sizeof(number_text), "%d", (int)pid);
    return run_edm(argv, -1);
}
