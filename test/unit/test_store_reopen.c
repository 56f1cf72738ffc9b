/*
 * A store whose process is killed at any moment, taken over by the next: every page that was
 * recorded is there, with its bytes; nothing else is in use. And files full of garbage.
 *
 * Every store lives in a forked process; this one only holds the descriptors, and the record of
 * what was put, in shared memory.
 */
#include "../../dms/store.h"
#include "../../dms/store_int.h"
#include "store_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define ENTRIES 1600u
#define THREADS 2u
#define GONE 256u

/* A page that some table names: written at once, as page tables are. */
union entry {
    struct {
        store_handle h;
        uint32_t version;
    };
    uint64_t word;
};

static struct shared {
    union entry e[ENTRIES];
    union entry gone[GONE]; /* freed, known to nobody */
    uint32_t ngone;
    uint32_t version; /* the newest that was asked for */
    char said[256];
} * shared;

static char dir[64];
static struct store_fds fds;

/* ---- processes ---- */

/* ThreadSanitizer would make every child wait a second at its end. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "atexit_sleep_ms=0";
}

/* In a child: ends it, with the reason where the parent finds it. */
#define REQUIRE(cond)                                                                              \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            snprintf(shared->said, sizeof shared->said, "line %d: %s", __LINE__, #cond);           \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

static void fds_send(int sock)
{
    struct store_fds f;
    char control[CMSG_SPACE(sizeof f)] = {0}, byte = 0;
    struct iovec iov = {&byte, 1};
    store_get_fds(&f);
    int n = f.disk < 0 ? 2 : 3, all[3] = {f.memory, f.slots, f.disk};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = CMSG_SPACE((size_t)n * sizeof(int))};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN((size_t)n * sizeof(int));
    memcpy(CMSG_DATA(c), all, (size_t)n * sizeof(int));
    REQUIRE(sendmsg(sock, &m, 0) == 1);
}

static void fds_receive(int sock)
{
    char control[CMSG_SPACE(sizeof fds)] = {0}, byte;
    struct iovec iov = {&byte, 1};
    struct msghdr m = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    fds = (struct store_fds){-1, -1, -1};
    if (recvmsg(sock, &m, MSG_CMSG_CLOEXEC) != 1)
        fail_msg("the first process ended: %s", shared->said);
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    assert_non_null(c);
    memcpy(&fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
}

static void fds_close(void)
{
    const int all[] = {fds.memory, fds.slots, fds.disk};
    for (int i = 0; i < 3; i++)
        if (all[i] >= 0)
            close(all[i]);
    fds = (struct store_fds){-1, -1, -1};
}

struct job {
    struct store_options opt;
    void (*work)(const struct job *j);
    uint32_t seed;
    bool first; /* makes the store, and sends its files over sock */
    int sock;
};

static void job_main(const struct job *j)
{
    char err[256] = "";
    int rc = j->first ? store_init(&j->opt, err, sizeof err)
                      : store_reopen(&j->opt, &fds, err, sizeof err);
    if (rc)
        snprintf(shared->said, sizeof shared->said, "%s", err);
    if (rc)
        _exit(1);
    if (j->first)
        fds_send(j->sock);
    j->work(j);
    _exit(0);
}

static pid_t job_start(struct job *j)
{
    int pair[2];
    fflush(NULL);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    j->sock = pair[1];
    shared->said[0] = 0;
    pid_t pid = fork();
    if (pid == 0)
        job_main(j);
    close(pair[1]);
    if (j->first)
        fds_receive(pair[0]);
    close(pair[0]);
    return pid;
}

static void job_end(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        return;
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        fail_msg("status %#x, %s", (unsigned)status, shared->said);
}

static struct store_options options(uint32_t memory, uint32_t disk, enum edm_compression c)
{
    struct store_options o = {.memory_bytes = (uint64_t)memory * PAGE,
                              .disk_bytes = (uint64_t)disk * PAGE,
                              .compression = c};
    strcpy(o.disk_path, dir);
    return o;
}

static int setup(void **state)
{
    strcpy(dir, "/var/tmp/edm-test-reopen-XXXXXX");
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fds = (struct store_fds){-1, -1, -1};
    return mkdtemp(dir) && shared != MAP_FAILED ? 0 : -1;
}

static int teardown(void **state)
{
    fds_close();
    munmap(shared, sizeof *shared);
    return rmdir(dir);
}

/* ---- pages ---- */

static int look(store_handle h, uint32_t version)
{
    unsigned char want[PAGE], buf[PAGE];
    struct store_view v;
    fill(want, version);
    int rc = store_view(h, version, buf, &v);
    if (rc == 0) {
        rc = memcmp(v.data, want, PAGE) ? -EILSEQ : 0;
        store_unview(&v);
    } else if (rc == -EAGAIN) {
        rc = store_read(h, version, buf);
        if (rc == 0 && memcmp(buf, want, PAGE))
            rc = -EILSEQ;
    }
    return rc;
}

static void entry_set(union entry *e, union entry to)
{
    __atomic_store_n(&e->word, to.word, __ATOMIC_SEQ_CST);
}

static void entry_put(union entry *e, bool force)
{
    unsigned char page[PAGE];
    union entry to = {.version = __atomic_add_fetch(&shared->version, 1, __ATOMIC_SEQ_CST)};
    fill(page, to.version);
    int rc = store_put(page, to.version, force, &to.h);
    REQUIRE(rc == 0 || rc == -ENOSPC);
    if (rc == 0)
        entry_set(e, to);
}

static void entry_drop(union entry *e, bool shared_out)
{
    union entry old = *e;
    entry_set(e, (union entry){0});
    store_unref(old.h);
    if (!shared_out) {
        uint32_t i = __atomic_fetch_add(&shared->ngone, 1, __ATOMIC_SEQ_CST) % GONE;
        entry_set(&shared->gone[i], old);
    }
}

static void entries_adopt(void)
{
    for (uint32_t i = 0; i < ENTRIES; i++) {
        union entry e = shared->e[i];
        if (!e.h)
            continue;
        REQUIRE(!store_adopt(e.h, e.version + 1));
        REQUIRE(store_adopt(e.h, e.version));
    }
    for (uint32_t i = 0; i < GONE; i++) {
        union entry e = shared->gone[i];
        if (!store_adopt(e.h, e.version))
            continue;
        REQUIRE(look(e.h, e.version) == 0); /* XPET had it in hand, or it would be free */
        store_unref(e.h);
    }
    REQUIRE(!store_adopt(0, 0) && !store_adopt(UINT32_MAX, 1));
}

static uint32_t entries_look(void)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < ENTRIES; i++) {
        if (!shared->e[i].h)
            continue;
        REQUIRE(look(shared->e[i].h, shared->e[i].version) == 0);
        n++;
    }
    return n;
}

static bool is_empty(void)
{
    struct store_stats st;
    struct timespec t = {0, 1000000};
    for (int i = 0; i < 10000; i++) { /* XPET ends what it has under way */
        store_get_stats(&st);
        if (st.memory.pages + st.disk.pages + st.memory.used_bytes + st.disk.used_bytes == 0)
            return true;
        nanosleep(&t, NULL);
    }
    return false;
}

/* ---- killed at any moment ---- */

struct worker {
    uint32_t rnd, first, steps; /* entries of its own from first on; steps 0: until killed */
};

/* The second half of a worker's entries share pages of the first half, as forked children do. */
static void *worker_main(void *arg)
{
    struct worker *w = arg;
    uint32_t half = ENTRIES / THREADS / 2;
    for (uint32_t n = 0; !w->steps || n < w->steps; n++) {
        uint32_t i = next_random(&w->rnd) % half;
        union entry *e = &shared->e[w->first + i], *copy = e + half;
        if (copy->h && next_random(&w->rnd) % 2) {
            entry_drop(copy, e->h == copy->h);
        } else if (e->h && !copy->h && next_random(&w->rnd) % 4 == 0) {
            store_ref(e->h);
            entry_set(copy, *e);
        } else if (e->h) {
            entry_drop(e, e->h == copy->h);
        } else {
            entry_put(e, next_random(&w->rnd) % 64 == 0);
        }
    }
    return NULL;
}

static void workers_run(uint32_t seed, uint32_t steps)
{
    struct worker w[THREADS];
    pthread_t t[THREADS];
    for (uint32_t i = 0; i < THREADS; i++) {
        w[i] = (struct worker){seed * 2654435761u + i + 1, i * (ENTRIES / THREADS), steps};
        REQUIRE(pthread_create(&t[i], NULL, worker_main, &w[i]) == 0);
    }
    for (uint32_t i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
}

/* One of a chain of servers: takes over, looks at everything, goes on until it is killed. */
static void generation(const struct job *j)
{
    if (!j->first) {
        struct store_stats st;
        REQUIRE((int32_t)(shared->version - store_version_max()) >= 0);
        store_get_stats(&st);
        REQUIRE(st.lost_pages == 0);
        entries_adopt();
        entries_look();
        workers_run(j->seed + 7, 20);
        store_reopen_end();
        entries_look();
    }
    workers_run(j->seed, 0);
}

static void last_generation(const struct job *j)
{
    union entry *e = shared->e;
    entries_adopt();
    store_reopen_end();
    entries_look();
    for (uint32_t i = 0; i < ENTRIES; i++)
        if (e[i].h)
            store_unref(e[i].h);
    REQUIRE(is_empty());
}

static uint32_t chain(struct job *j, uint32_t generations)
{
    uint32_t looked = 0, x = j->seed * 40503u + 1;
    memset(shared, 0, sizeof *shared);
    for (uint32_t g = 0; g < generations; g++) {
        uint32_t us = next_random(&x) % 40000;
        struct timespec t = {0, us * 1000};
        j->first = g == 0;
        j->work = generation;
        j->seed++;
        pid_t pid = job_start(j);
        nanosleep(&t, NULL);
        kill(pid, SIGKILL);
        job_end(pid);
    }
    for (uint32_t i = 0; i < ENTRIES; i++)
        looked += shared->e[i].h != 0;
    j->first = false;
    j->work = last_generation;
    job_end(job_start(j));
    fds_close();
    return looked;
}

static void killed_at_any_moment(void **state)
{
    const enum edm_compression modes[] = {EDM_COMPRESSION_AUTO, EDM_COMPRESSION_NONE,
                                          EDM_COMPRESSION_LZ4};
    uint32_t pages = 0;
    const char *env = getenv("EDM_TEST_ROUNDS");
    uint32_t rounds = env ? (uint32_t)strtoul(env, NULL, 10) : 160;
    for (uint32_t i = 0; i < rounds / 8; i++) {
        struct job j = {.opt = options(i % 4 == 3 ? 0 : 300, 2000, modes[i % 3]), .seed = i * 100};
        pages += chain(&j, 8);
    }
    assert_true(pages > rounds / 8 * 50); /* it was about something */
}

/* ---- other capacities ---- */

static void put_entries(const struct job *j)
{
    for (uint32_t i = 0; i < j->seed; i++)
        entry_put(&shared->e[i], false);
    while (j->opt.memory_bytes == 0) { /* all to disk */
        struct store_stats st;
        store_get_stats(&st);
        if (st.memory.pages == 0)
            break;
        sched_yield();
    }
}

static void first_job(struct store_options opt, uint32_t pages)
{
    struct job j = {.opt = opt, .work = put_entries, .seed = pages, .first = true};
    memset(shared, 0, sizeof *shared);
    fds_close();
    job_end(job_start(&j));
}

static void next_job(struct store_options opt, void (*work)(const struct job *j), uint32_t pages)
{
    struct job j = {.opt = opt, .work = work, .seed = pages};
    job_end(job_start(&j));
}

static void smaller_memory(const struct job *j)
{
    union entry one = {0};
    entries_adopt();
    store_reopen_end();
    REQUIRE(entries_look() == 400);
    entry_put(&one, false);
    REQUIRE(one.h == 0); /* refused */
    for (uint32_t i = 0; i < 300; i++)
        store_unref(shared->e[i].h);
    entry_put(&one, false);
    REQUIRE(one.h == 0);
    store_unref(shared->e[300].h);
    entry_put(&one, false);
    REQUIRE(one.h && look(one.h, one.version) == 0);
}

static void moves_to_disk(const struct job *j)
{
    struct store_stats st;
    entries_adopt();
    store_reopen_end();
    do
        store_get_stats(&st);
    while (st.memory.pages > 100);
    REQUIRE(st.disk.pages >= 300 && entries_look() == 400);
    for (uint32_t i = 1; i < 400; i++) /* those put first are the coldest */
        REQUIRE(store_is_memory(shared->e[i].h) >= store_is_memory(shared->e[i - 1].h));
}

static void stays_on_disk(const struct job *j)
{
    struct store_stats st;
    entries_adopt();
    store_reopen_end();
    store_get_stats(&st);
    REQUIRE(st.disk.pages >= 300 && entries_look() == 400);
    for (uint32_t i = 0; i < 400; i++)
        store_unref(shared->e[i].h);
    REQUIRE(is_empty());
}

static void capacities_may_change(void **state)
{
    first_job(options(512, 0, EDM_COMPRESSION_NONE), 400);
    next_job(options(100, 0, EDM_COMPRESSION_NONE), smaller_memory, 0);
    first_job(options(512, 0, EDM_COMPRESSION_NONE), 400);
    next_job(options(50000, 0, EDM_COMPRESSION_NONE), last_generation, 0);
    first_job(options(512, 600, EDM_COMPRESSION_NONE), 400);
    next_job(options(100, 600, EDM_COMPRESSION_NONE), moves_to_disk, 0);
    next_job(options(1000, 0, EDM_COMPRESSION_NONE), stays_on_disk, 0);
    first_job(options(0, 600, EDM_COMPRESSION_NONE), 400);
    next_job(options(0, 10, EDM_COMPRESSION_NONE), stays_on_disk, 0);
}

static void refuses_over_capacity(const struct job *j)
{
    union entry one = {0};
    entries_adopt();
    store_reopen_end();
    do /* memory on the way to disk fills, and stays */
        one.h = 0, entry_put(&one, false);
    while (one.h);
    struct store_stats st;
    store_get_stats(&st);
    REQUIRE(st.disk.pages == 400 && entries_look() == 400);
}

static void smaller_disk_takes_no_more(void **state)
{
    first_job(options(0, 600, EDM_COMPRESSION_NONE), 400);
    next_job(options(0, 400, EDM_COMPRESSION_NONE), refuses_over_capacity, 0);
}

/* ---- memory that does not survive ---- */

static void put_past_shm(const struct job *j)
{
    int fd = open("/dev/shm/ballast", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    REQUIRE(fd >= 0);
    while (fallocate(fd, 0, lseek(fd, 0, SEEK_END), PAGE) == 0) /* somebody else's */
        ;
    for (uint32_t i = 0; i < 600; i++)
        entry_put(&shared->e[i], true);
    REQUIRE(entries_look() == 600);
    close(fd);
    unlink("/dev/shm/ballast");
}

static void some_are_lost(const struct job *j)
{
    struct store_stats st;
    uint32_t there = 0, lost = 0;
    store_get_stats(&st);
    for (uint32_t i = 0; i < 600; i++) {
        if (store_adopt(shared->e[i].h, shared->e[i].version)) {
            REQUIRE(look(shared->e[i].h, shared->e[i].version) == 0);
            there++;
        } else {
            lost++;
        }
    }
    REQUIRE(there >= 128 && lost >= 128 && st.lost_pages == lost);
    for (uint32_t i = 600; i < 900; i++)
        entry_put(&shared->e[i], false);
    for (uint32_t i = 600; i < 900; i++)
        REQUIRE(look(shared->e[i].h, shared->e[i].version) == 0);
}

static void private_memory_is_recognised_as_lost(void **state)
{
    pid_t pid = fork();
    if (pid == 0) {
        if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
            mount("edm-test", "/dev/shm", "tmpfs", 0, "size=4m"))
            _exit(77);
        first_job(options(600, 0, EDM_COMPRESSION_NONE), 0);
        struct job j = {
            .opt = options(600, 0, EDM_COMPRESSION_NONE), .work = put_past_shm, .first = true};
        fds_close();
        job_end(job_start(&j));
        next_job(options(600, 0, EDM_COMPRESSION_NONE), some_are_lost, 0);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        skip();
    if (status)
        fail_msg("status %#x, %s", (unsigned)status, shared->said);
}

/* ---- garbage ---- */

/* Whatever the files say: right bytes, or an error. Then the store works. */
static void survive(const struct job *j)
{
    for (uint32_t i = 0; i < ENTRIES; i++) {
        union entry *e = &shared->e[i];
        if (e->h && !store_adopt(e->h, e->version))
            *e = (union entry){0};
    }
    for (uint32_t pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < ENTRIES; i++) {
            union entry e = shared->e[i];
            int rc = e.h ? look(e.h, e.version) : 0;
            REQUIRE(rc == 0 || rc == -EBADMSG || rc == -EIO);
        }
        if (pass == 0)
            store_reopen_end();
    }
    for (uint32_t i = 0; i < ENTRIES; i++)
        if (!shared->e[i].h)
            entry_put(&shared->e[i], i % 8 == 0);
    for (uint32_t i = 0; i < ENTRIES; i++)
        if (shared->e[i].h)
            entry_drop(&shared->e[i], false);
}

static uint64_t file_size(int fd)
{
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    return (uint64_t)st.st_size;
}

static void garble(int fd, uint64_t from, uint64_t to, uint32_t writes, uint32_t *x)
{
    unsigned char junk[64];
    char name[40];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    fd = open(name, O_RDWR | O_CLOEXEC); /* without O_DIRECT */
    assert_true(fd >= 0);
    for (uint32_t n = 0; n < writes; n++) {
        for (size_t i = 0; i < sizeof junk; i++)
            junk[i] = (unsigned char)next_random(x);
        uint64_t at = from + ((uint64_t)next_random(x) << 32 | next_random(x)) % (to - from);
        size_t len = 1 + next_random(x) % sizeof junk;
        if (at + len <= to)
            assert_int_equal(pwrite(fd, junk, len, (off_t)at), len);
    }
    close(fd);
}

/* Slots that look like slots, of anything anywhere. */
static void invent_slots(int fd, uint32_t n, uint32_t *x)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t h = 1 + next_random(x) % (ENTRIES * 2);
        struct slot sl = {.version = next_random(x) % ENTRIES,
                          .count = next_random(x),
                          .pins = (uint16_t)next_random(x),
                          .busy = next_random(x) & 1,
                          .next = next_random(x),
                          .prev = next_random(x),
                          .where = next_random(x) % (1u << next_random(x) % 32),
                          .len = next_random(x) & 0xfff,
                          .kind = next_random(x) & 3};
        assert_int_equal(pwrite(fd, &sl, sizeof sl, (off_t)(SLOTS_HEADER_SIZE + h * sizeof sl)),
                         sizeof sl);
    }
}

static void garbage_harms_nobody(void **state)
{
    struct store_options opt = options(700, 600, EDM_COMPRESSION_AUTO);
    uint32_t x = 4711;
    for (int round = 0; round < 40; round++) {
        first_job(opt, 1000);
        if (round % 4 == 0)
            garble(fds.slots, SLOTS_HEADER_SIZE, 64 << 10, 1 + next_random(&x) % 2000, &x);
        else if (round % 4 == 1)
            invent_slots(fds.slots, 1 + next_random(&x) % 3000, &x);
        else if (round % 4 == 2)
            garble(fds.memory, 0, 4 << 20, 1 + next_random(&x) % 3000, &x);
        else
            garble(fds.disk, 0, 1 << 20, 1 + next_random(&x) % 3000, &x);
        if (round % 8 > 5 && ftruncate(round % 16 > 7 ? fds.disk : fds.memory, 500000))
            fail_msg("ftruncate");
        next_job(opt, survive, 0);
    }
}

static void refused(struct store_fds f, int code)
{
    char err[256] = "";
    struct store_options opt = options(700, 600, EDM_COMPRESSION_AUTO);
    assert_int_equal(store_reopen(&opt, &f, err, sizeof err), code);
    assert_int_not_equal(err[0], 0);
    const int all[] = {f.memory, f.slots, f.disk};
    for (int i = 0; i < 3; i++)
        assert_true(all[i] < 0 || fcntl(all[i], F_GETFD) >= 0); /* still ours */
}

static void wrong_files_are_refused(void **state)
{
    int p[2];
    uint32_t bad = 99;
    first_job(options(700, 600, EDM_COMPRESSION_AUTO), 1000);
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    refused((struct store_fds){fds.memory, -1, fds.disk}, -EBADF);
    refused((struct store_fds){fds.memory, p[0], fds.disk}, -EINVAL);
    refused((struct store_fds){fds.memory, fds.disk, fds.disk}, -EINVAL);
    refused((struct store_fds){p[0], fds.slots, fds.disk}, -EINVAL);
    refused((struct store_fds){fds.memory, fds.slots, p[1]}, -EINVAL);
    close(p[0]);
    close(p[1]);
    uint64_t size = file_size(fds.slots);
    for (off_t at = 0; at < 16; at += 4) { /* magic, layout, size of a slot */
        uint32_t old;
        assert_int_equal(pread(fds.slots, &old, sizeof old, at), sizeof old);
        assert_int_equal(pwrite(fds.slots, &bad, sizeof bad, at), sizeof bad);
        refused(fds, -EINVAL);
        assert_int_equal(pwrite(fds.slots, &old, sizeof old, at), sizeof old);
    }
    assert_int_equal(file_size(fds.slots), size);
    next_job(options(700, 600, EDM_COMPRESSION_AUTO), last_generation, 0); /* and it is intact */
}

static void without_its_files_pages_are_lost(const struct job *j)
{
    struct store_stats st;
    store_get_stats(&st);
    REQUIRE(st.lost_pages == 400);
    survive(j);
}

static void missing_files_are_made_anew(void **state)
{
    first_job(options(512, 0, EDM_COMPRESSION_NONE), 400);
    close(fds.memory);
    fds.memory = -1;
    next_job(options(512, 0, EDM_COMPRESSION_NONE), without_its_files_pages_are_lost, 0);
    first_job(options(0, 600, EDM_COMPRESSION_NONE), 400);
    close(fds.disk);
    fds.disk = -1;
    next_job(options(512, 600, EDM_COMPRESSION_NONE), without_its_files_pages_are_lost, 0);
}

/* A slot as it was before it was used again, sum and all: the page is the one of that version. */
static void old_slot_comes_back(const struct job *j)
{
    union entry now = shared->e[0], old = shared->gone[0];
    REQUIRE(!store_adopt(now.h, now.version));
    REQUIRE(store_adopt(old.h, old.version));
    unsigned char buf[PAGE];
    struct store_view v;
    REQUIRE(store_view(now.h, now.version, buf, &v) == -EBADMSG);
    REQUIRE(store_read(now.h, now.version, buf) == -EBADMSG);
    REQUIRE(look(old.h, old.version) == -EBADMSG); /* its frame was used again, though */
}

static void replace_first(const struct job *j)
{
    entries_adopt();
    store_reopen_end();
    entry_drop(&shared->e[0], false);
    entry_put(&shared->e[0], false);
}

static void stale_version_is_refused(void **state)
{
    struct slot was;
    first_job(options(512, 0, EDM_COMPRESSION_NONE), 1);
    off_t at = (off_t)(SLOTS_HEADER_SIZE + shared->e[0].h * sizeof was);
    assert_int_equal(pread(fds.slots, &was, sizeof was, at), sizeof was);
    next_job(options(512, 0, EDM_COMPRESSION_NONE), replace_first, 0);
    assert_int_equal(shared->e[0].h, shared->gone[0].h);
    assert_int_equal(pwrite(fds.slots, &was, sizeof was, at), sizeof was);
    next_job(options(512, 0, EDM_COMPRESSION_NONE), old_slot_comes_back, 0);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(killed_at_any_moment),        T(capacities_may_change),
        T(smaller_disk_takes_no_more),  T(private_memory_is_recognised_as_lost),
        T(garbage_harms_nobody),        T(wrong_files_are_refused),
        T(missing_files_are_made_anew), T(stale_version_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
