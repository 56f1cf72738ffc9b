/*
 * The LPET and attaching, for real: a userfaultfd, a server process (fake_server.c), and this
 * program's own memory as the arena. Skipped where /dev/userfaultfd cannot be opened.
 */
#include "../../preload/arena.h"
#include "../../preload/attach.h"
#include "../../preload/hooks.h"
#include "../../preload/ops.h"
#include "../../preload/shim.h"
#include "fake_server.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define ARENA_LEN (64ul << 20)
#define PAGE EDM_PAGE_SIZE

/* ------------------------------------------------------------------ what the shim's other files
 * are */

struct shim_config shim_config;
struct shim_state *shim_state;
static char *arena;
static char sock_path[64];
static int server;

uint64_t arena_start(void)
{
    return (uint64_t)arena;
}

uint64_t arena_len(void)
{
    return ARENA_LEN;
}

void arena_used(uint64_t *start, uint64_t *end)
{
    *start = (uint64_t)arena;
    *end = *start + ARENA_LEN;
}

void arena_lock_for_fork(void)
{
}

void arena_unlock_after_fork(void)
{
}

void arena_forget_locks(void)
{
}

void arena_set_state(uint64_t addr, uint64_t len, uint32_t clear, uint32_t set)
{
}

void hooks_misc_forked(void)
{
}

void hooks_misc_attached(void)
{
}

int __real_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void));
int __real_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void))
{
    return pthread_atfork(prepare, parent, child);
}

/* ------------------------------------------------------------------ helpers */

static struct edm_cmd command_of(uint32_t instance, uint32_t kind, const void *addr, uint32_t n,
                                 uint32_t slot, uint32_t state)
{
    struct fake_request req = {.kind = FAKE_COMMAND, .instance = instance};
    req.cmd = (struct edm_cmd){
        .addr = (uint64_t)addr, .npages = n, .slot = slot, .kind = kind, .state = state};
    assert_true(fake_server_ask(&req));
    return req.cmd;
}

static struct edm_cmd move(const void *addr, uint32_t n)
{
    return command_of(1, EDM_CMD_MOVE, addr, n, 0, EDM_CMD_POSTED);
}

static void protect(const void *addr, uint32_t n)
{
    struct fake_request req = {.kind = FAKE_PROTECT, .instance = 1};
    req.cmd.addr = (uint64_t)addr;
    req.cmd.npages = n;
    assert_true(fake_server_ask(&req));
}

static const unsigned char *ring(uint32_t slot)
{
    struct edm_chan *c = atomic_load(&shim_state->chan);
    return (const unsigned char *)c + c->data_offset + slot * PAGE;
}

static void fill(char *p, uint32_t n, char seed)
{
    for (uint32_t i = 0; i < n; i++)
        memset(p + i * PAGE, seed + (int)i, PAGE);
}

static void assert_once(const struct edm_cmd *c)
{
    uint64_t all = c->npages == 64 ? ~0ull : (1ull << c->npages) - 1;
    assert_int_equal(c->moved | c->zero | c->busy | c->gone | c->refused, all);
    assert_int_equal(__builtin_popcountll(c->moved) + __builtin_popcountll(c->zero) +
                         __builtin_popcountll(c->busy) + __builtin_popcountll(c->gone) +
                         __builtin_popcountll(c->refused),
                     c->npages);
}

static void assert_ring(uint32_t slot, char value)
{
    for (size_t i = 0; i < PAGE; i++)
        assert_int_equal(ring(slot)[i], (unsigned char)value);
}

static int child_status(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return status;
}

/* ------------------------------------------------------------------ before anything is attached */

static int count_fds(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static void programs_that_attach_and_end(void **state)
{
    for (int i = 0; i < 150; i++) {
        pid_t pid = fork();
        if (!pid) {
            attach_now();
            _exit(atomic_load(&shim_state->attach_state) == SHIM_ATTACHED &&
                          atomic_load(&shim_state->chan)->lpet_tid
                      ? 0
                      : 1);
        }
        assert_int_equal(child_status(pid), 0);
    }
}

static void program_without_standard_descriptors(void **state)
{
    pid_t pid = fork();
    if (!pid) {
        close(0);
        close(1);
        close(2);
        attach_now();
        bool none = fcntl(0, F_GETFD) < 0 && fcntl(1, F_GETFD) < 0 && fcntl(2, F_GETFD) < 0;
        _exit(none && atomic_load(&shim_state->attach_state) == SHIM_ATTACHED ? 0 : 1);
    }
    assert_int_equal(child_status(pid), 0);
}

/* Its own table is full, the limit leaves the LPET's copy just enough room. */
static void program_that_is_out_of_descriptors(void **state)
{
    pid_t pid = fork();
    if (!pid) {
        struct rlimit lim = {32, 32};
        setrlimit(RLIMIT_NOFILE, &lim);
        while (dup(0) >= 0)
            ;
        attach_now();
        _exit(atomic_load(&shim_state->attach_state) == SHIM_ATTACHED ? 0 : 1);
    }
    assert_int_equal(child_status(pid), 0);
}

/* One clear line, and the program goes on. */
static void limit_too_small_for_the_lpet(void **state)
{
    int out[2];
    char line[512] = "";
    assert_int_equal(pipe(out), 0);
    pid_t pid = fork();
    if (!pid) {
        struct rlimit lim = {3, 3};
        dup2(out[1], 2);
        setrlimit(RLIMIT_NOFILE, &lim);
        attach_now();
        _exit(atomic_load(&shim_state->attach_state) == SHIM_UNMANAGED ? 0 : 1);
    }
    close(out[1]);
    assert_int_equal(child_status(pid), 0);
    assert_true(read(out[0], line, sizeof(line) - 1) > 0);
    assert_non_null(strstr(line, "no free descriptor: running unmanaged\n"));
    assert_ptr_equal(strchr(line, '\n') + 1, line + strlen(line));
    close(out[0]);
}

static void nobody_answers(void **state)
{
    pid_t pid = fork();
    if (!pid) {
        close(2);
        strcpy(shim_config.config.socket, "/nonexistent/dms.sock");
        attach_now();
        _exit(atomic_load(&shim_state->attach_state) == SHIM_UNMANAGED ? 0 : 1);
    }
    assert_int_equal(child_status(pid), 0);
}

static void require_ends_with_125(void **state)
{
    pid_t pid = fork();
    if (!pid) {
        close(2);
        strcpy(shim_config.config.socket, "/nonexistent/dms.sock");
        shim_config.config.server = EDM_SERVER_REQUIRE;
        attach_now();
        _exit(0);
    }
    int status = child_status(pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 125);
}

static void server_that_says_nothing(void **state)
{
    struct fake_request req = {.kind = FAKE_MUTE, .cmd = {.slot = 1}};
    assert_true(fake_server_ask(&req));
    pid_t pid = fork();
    if (!pid) {
        close(2);
        uint64_t before = lpet_now_ms();
        attach_now();
        uint64_t took = lpet_now_ms() - before;
        _exit(atomic_load(&shim_state->attach_state) == SHIM_UNMANAGED && took > 9000 &&
                      took < 20000
                  ? 0
                  : 1);
    }
    assert_int_equal(child_status(pid), 0);
    req.kind = FAKE_MUTE;
    req.cmd.slot = 0;
    assert_true(fake_server_ask(&req));
}

/* State that the kernel did not wipe, as before there is an arena: nothing hangs in the child. */
static void forks_before_there_is_an_arena(void **state)
{
    struct shim_state *wiped = shim_state;
    shim_state = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pid_t pid = fork();
    if (!pid) {
        alarm(20);
        pid_t inner = fork();
        if (!inner)
            _exit(atomic_load(&shim_state->attach_state) || atomic_load(&shim_state->ops_owner));
        _exit(child_status(inner) != 0);
    }
    assert_int_equal(child_status(pid), 0);
    munmap(shim_state, PAGE);
    shim_state = wiped;
}

static void probe_finds_the_server(void **state)
{
    char err[200] = "";
    char path[sizeof(shim_config.config.socket)];
    assert_int_equal(attach_probe(err, sizeof(err)), 0);
    strcpy(path, shim_config.config.socket);
    strcpy(shim_config.config.socket, "/nonexistent/dms.sock");
    assert_int_equal(attach_probe(err, sizeof(err)), -ENOENT);
    assert_string_equal(
        err, "no server at /nonexistent/dms.sock: not there: start one with `edm start`");
    strcpy(shim_config.config.socket, path);
}

/* From here on this process is instance 1 of a server of its own. */
static void attaches_without_using_our_descriptors(void **state)
{
    fake_server_stop(server);
    server = fake_server_start(sock_path);
    int before = count_fds();
    attach_now();
    assert_int_equal(atomic_load(&shim_state->attach_state), SHIM_ATTACHED);
    assert_non_null(atomic_load(&shim_state->chan));
    assert_int_equal(count_fds(), before);
}

/* ------------------------------------------------------------------ MOVE */

static void move_takes_contents_out(void **state)
{
    char *p = arena + (1 << 20);
    fill(p, 8, 'a');
    memset(p + 3 * PAGE, 0, PAGE);
    struct edm_cmd c = move(p, 8);
    assert_once(&c);
    assert_int_equal(c.zero, 1 << 3);
    assert_int_equal(c.moved, 0xff & ~(1 << 3));
    for (uint32_t i = 0; i < 8; i++)
        if (i != 3)
            assert_ring(i, (char)('a' + i));
    for (uint32_t i = 0; i < 8; i++) /* missing: the server serves zeros */
        assert_int_equal(p[i * PAGE + 5], 0);
}

/* A page that differs from zero in one byte only, wherever that is. */
static void zero_test_sees_every_byte(void **state)
{
    char *p = arena + (1 << 20);
    for (size_t at = 0; at < PAGE; at += 61) {
        memset(p, 0, PAGE);
        p[at] = 1;
        struct edm_cmd c = move(p, 1);
        assert_int_equal(c.moved, 1);
        assert_int_equal(ring(0)[at], 1);
    }
}

/* Staging wraps many times; every frame is fresh. */
static void move_again_and_again(void **state)
{
    char *p = arena + (2 << 20);
    for (int round = 0; round < 40; round++) {
        fill(p, 64, (char)round);
        struct edm_cmd c = move(p, 64);
        assert_once(&c);
        for (uint32_t i = 0; i < 64; i++)
            if (c.moved & (1ull << i))
                assert_ring(i, (char)(round + (int)i));
        assert_int_equal(c.moved | c.zero, ~0ull);
    }
}

static void move_meets_a_hole(void **state)
{
    char *p = arena + (3 << 20);
    fill(p, 8, 'a');
    madvise(p + 2 * PAGE, 2 * PAGE, MADV_DONTNEED);
    struct edm_cmd c = move(p, 8);
    assert_once(&c);
    assert_int_equal(c.gone, 0x0c);
    assert_int_equal(c.moved, 0xf3);
}

static void move_meets_unmapped_pages(void **state)
{
    char *p = arena + (60ul << 20);
    fill(p, 8, 'a');
    munmap(p + 4 * PAGE, 4 * PAGE);
    struct edm_cmd c = move(p, 8);
    assert_once(&c);
    assert_int_equal(c.moved, 0x0f);
    assert_int_equal(c.gone | c.refused, 0xf0);
}

static void move_leaves_read_only_pages(void **state)
{
    char *p = arena + (4 << 20);
    fill(p, 16, 'a');
    mprotect(p + 5 * PAGE, 2 * PAGE, PROT_READ);
    struct edm_cmd c = move(p, 16);
    assert_once(&c);
    assert_int_equal(c.refused, 0x60);
    assert_int_equal(c.moved, 0xff9f);
    assert_int_equal(p[5 * PAGE], 'a' + 5);
}

static void move_of_a_huge_page(void **state)
{
    char *p = arena + (8 << 20);
    p = (char *)(((uint64_t)p + EDM_CHUNK_SIZE - 1) & ~(EDM_CHUNK_SIZE - 1));
    madvise(p, EDM_CHUNK_SIZE, MADV_HUGEPAGE);
    fill(p, 64, 'a');
    struct edm_cmd c = move(p + 7 * PAGE, 20);
    assert_once(&c);
    assert_int_equal(c.moved, (1 << 20) - 1);
    assert_ring(0, 'a' + 7);
    assert_int_equal(p[30 * PAGE], (char)('a' + 30));
}

/* Shared with a child that lives, and shared once with one that is dead (KERNEL.md 17). */
static void move_after_fork(void **state)
{
    char *p = arena + (12 << 20);
    int go[2];
    char byte = 0;
    assert_int_equal(pipe(go), 0);
    fill(p, 32, 'a');
    pid_t pid = fork();
    if (!pid) {
        close(go[1]);
        (void)!read(go[0], &byte, 1);
        for (int i = 0; i < 32; i++)
            if (p[i * PAGE + 9] != (char)('a' + i))
                _exit(1);
        _exit(0);
    }
    struct edm_cmd c = move(p, 16);
    assert_once(&c);
    assert_int_equal(c.moved, 0xffff);
    assert_ring(3, 'a' + 3);
    close(go[0]);
    close(go[1]);
    assert_int_equal(child_status(pid), 0);
    c = move(p + 16 * PAGE, 16);
    assert_once(&c);
    assert_int_equal(c.moved, 0xffff);
    assert_ring(3, 'a' + 19);
}

/* Holes between pages that were shared: making them exclusive must not wait for the server. */
static void move_after_fork_meets_holes(void **state)
{
    char *p = arena + (13 << 20);
    fill(p, 32, 'a');
    pid_t pid = fork();
    if (!pid)
        _exit(0);
    assert_int_equal(child_status(pid), 0);
    madvise(p + 5 * PAGE, 3 * PAGE, MADV_DONTNEED);
    madvise(p + 31 * PAGE, PAGE, MADV_DONTNEED);
    struct edm_cmd c = move(p, 32);
    assert_once(&c);
    assert_int_equal(c.gone, 0xe0u | 1u << 31);
    assert_int_equal(c.moved, ~(0xe0u | 1u << 31));
}

static void move_leaves_pinned_pages(void **state)
{
    char *p = arena + (14 << 20);
    struct io_uring uring;
    struct iovec iov = {p + 3 * PAGE, 2 * PAGE};
    fill(p, 8, 'a');
    assert_int_equal(io_uring_queue_init(4, &uring, 0), 0);
    assert_int_equal(io_uring_register_buffers(&uring, &iov, 1), 0);
    struct edm_cmd c = move(p, 8);
    assert_once(&c);
    assert_int_equal(c.busy, 0x18);
    assert_int_equal(c.moved, 0xe7);
    assert_int_equal(p[3 * PAGE], 'a' + 3);
    io_uring_queue_exit(&uring);
}

/* ------------------------------------------------------------------ COPY */

static void copy_takes_contents_out(void **state)
{
    char *p = arena + (16 << 20);
    fill(p, 8, 'a');
    memset(p + PAGE, 0, PAGE);
    madvise(p + 6 * PAGE, PAGE, MADV_DONTNEED);
    mprotect(p, 8 * PAGE, PROT_READ);
    protect(p, 8);
    struct edm_cmd c = command_of(1, EDM_CMD_COPY, p, 8, 64, EDM_CMD_POSTED);
    assert_once(&c);
    assert_int_equal(c.zero, 1 << 1);
    assert_int_equal(c.gone, 1 << 6);
    assert_int_equal(c.moved, 0xff & ~0x42);
    assert_ring(64, 'a');
    assert_ring(71, 'a' + 7);
    mprotect(p, 8 * PAGE, PROT_READ | PROT_WRITE);
    assert_int_equal(p[0], 0);
}

static void copy_of_unreadable_and_unmapped_pages(void **state)
{
    char *p = arena + (17 << 20);
    fill(p, 4, 'a');
    protect(p, 4);
    mprotect(p, 4 * PAGE, PROT_NONE);
    struct edm_cmd c = command_of(1, EDM_CMD_COPY, p, 4, 0, EDM_CMD_POSTED);
    assert_once(&c);
    assert_int_equal(c.moved, 0x0f);
    assert_ring(2, 'a' + 2);
    p = arena + (62ul << 20);
    munmap(p, 4 * PAGE);
    c = command_of(1, EDM_CMD_COPY, p, 4, 0, EDM_CMD_POSTED);
    assert_once(&c);
    assert_int_equal(c.gone, 0x0f);
}

/* ------------------------------------------------------------------ odd commands */

static void cancelled_command_does_nothing(void **state)
{
    char *p = arena + (18 << 20);
    fill(p, 4, 'a');
    struct edm_cmd c = command_of(1, EDM_CMD_MOVE, p, 4, 0, EDM_CMD_CANCELLED);
    assert_once(&c);
    assert_int_equal(c.busy, 0x0f);
    assert_int_equal(p[PAGE], 'b');
}

static void command_out_of_bounds_does_nothing(void **state)
{
    char *p = arena + (18 << 20);
    fill(p, 4, 'a');
    struct edm_cmd c = command_of(1, EDM_CMD_MOVE, p, 4, FAKE_RING_PAGES - 3, EDM_CMD_POSTED);
    assert_int_equal(c.busy, 0x0f);
    c = command_of(1, EDM_CMD_MOVE, p, 65, 0, EDM_CMD_POSTED);
    assert_int_equal(c.moved | c.zero, 0);
    c = command_of(1, EDM_CMD_COPY, p + 1, 2, 0, EDM_CMD_POSTED);
    assert_int_equal(c.busy, 3);
    assert_int_equal(p[PAGE], 'b');
}

/* ------------------------------------------------------------------ races */

static atomic_bool storm_over;

static void *storm_thread(void *arg)
{
    char *p = arg;
    unsigned x = (unsigned)(uint64_t)arg;
    while (!atomic_load(&storm_over)) {
        x = x * 1664525 + 1013904223;
        char *q = p + (x >> 8) % 16 * PAGE;
        size_t len = (1 + (x >> 20) % 4) * PAGE;
        munmap(q, len);
        mmap(q, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        memset(q, 'x', len);
        if (x & 1)
            madvise(q, len, MADV_DONTNEED);
        if (x & 2)
            mprotect(q, len, x & 4 ? PROT_NONE : PROT_READ);
    }
    return NULL;
}

/* The program unmaps and remaps under commands: no crash, every page in one mask. */
static void commands_in_a_storm_of_unmaps(void **state)
{
    char *p = arena + (56ul << 20);
    pthread_t t[3];
    uint64_t moved = 0, other = 0;
    for (int i = 0; i < 3; i++)
        pthread_create(&t[i], NULL, storm_thread, p + i * 21 * (long)PAGE);
    for (int i = 0; i < 1500; i++) {
        struct edm_cmd c =
            command_of(1, i % 3 ? EDM_CMD_MOVE : EDM_CMD_COPY, p, 64, 0, EDM_CMD_POSTED);
        assert_once(&c);
        moved += (uint64_t)__builtin_popcountll(c.moved);
        other += (uint64_t)__builtin_popcountll(c.gone | c.refused | c.busy);
    }
    atomic_store(&storm_over, true);
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], NULL);
    assert_true(moved > 0 && other > 0);
}

static atomic_int held, not_held;
static atomic_bool forks_over;

/* Registered before the shim's handlers, so it runs after them. */
static void check_hold(void)
{
    struct edm_chan *c = shim_state ? atomic_load(&shim_state->chan) : NULL;
    if (!c)
        return;
    bool still = __atomic_load_n(&c->fork_hold, __ATOMIC_SEQ_CST);
    uint32_t tail = __atomic_load_n(&c->cmd_tail, __ATOMIC_SEQ_CST);
    for (int i = 0; i < 2000; i++) { /* busy for a moment is no command: it sees the hold then */
        const struct edm_cmd *next = &c->cmds[tail % EDM_CHAN_CMDS];
        still = still && __atomic_load_n(&c->cmd_tail, __ATOMIC_SEQ_CST) == tail &&
                (tail == __atomic_load_n(&c->cmd_head, __ATOMIC_SEQ_CST) ||
                 __atomic_load_n(&next->state, __ATOMIC_SEQ_CST) != EDM_CMD_RUNNING);
    }
    atomic_fetch_add(still ? &held : &not_held, 1);
}

static void *forking_thread(void *arg)
{
    void *bad = NULL;
    for (int i = 0; i < 100 && !bad; i++) {
        pid_t pid = fork();
        if (!pid) {
            int *p = arg;
            /* claimed: managed like its parent */
            bool ok = atomic_load(&shim_state->attach_state) == SHIM_ATTACHED &&
                      atomic_load(&shim_state->chan) && *p == 4711;
            _exit(ok ? 0 : 1);
        }
        bad = (void *)(intptr_t)child_status(pid);
    }
    atomic_store(&forks_over, true);
    return bad;
}

static void fork_holds_the_lpet(void **state)
{
    char *p = arena + (20 << 20), *q = arena + (21 << 20);
    pthread_t t;
    void *bad;
    atomic_store(&held, 0);
    memcpy(q, &(int){4711}, sizeof(int));
    pthread_create(&t, NULL, forking_thread, q);
    while (!atomic_load(&forks_over)) {
        fill(p, 64, 'a');
        struct edm_cmd c = move(p, 64);
        assert_once(&c);
        assert_int_equal(c.moved, ~0ull);
    }
    pthread_join(t, &bad);
    assert_ptr_equal(bad, NULL);
    assert_int_equal(atomic_load(&held), 100);
    assert_int_equal(atomic_load(&not_held), 0);
}

/* ------------------------------------------------------------------ children */

static void forked_child_has_an_lpet(void **state)
{
    char *p = arena + (24 << 20);
    int say[2], go[2];
    uint64_t instance = 0;
    assert_int_equal(pipe(say), 0);
    assert_int_equal(pipe(go), 0);
    fill(p, 8, 'a');
    pid_t pid = fork();
    if (!pid) {
        struct edm_chan *c = atomic_load(&shim_state->chan);
        close(go[1]);
        fill(p, 8, 'k');
        instance = c ? (uint64_t)c->lpet_tid : 0;
        if (write(say[1], &instance, sizeof(instance)) < 0)
            _exit(1);
        (void)!read(go[0], &instance, 1);
        _exit(p[PAGE] == 0 ? 0 : 1); /* gone from the child, served as zero */
    }
    close(say[1]);
    assert_int_equal(read(say[0], &instance, sizeof(instance)), sizeof(instance));
    assert_true(instance != 0);
    struct fake_request req = {.kind = FAKE_COUNT};
    assert_true(fake_server_ask(&req));
    struct edm_cmd c = command_of(1 + req.cmd.slot, EDM_CMD_MOVE, p, 8, 0, EDM_CMD_POSTED);
    assert_once(&c);
    assert_int_equal(c.moved, 0xff);
    assert_int_equal(p[PAGE], 'b'); /* not the parent's */
    close(go[1]);
    assert_int_equal(child_status(pid), 0);
    close(say[0]);
    close(go[0]);
}

static void grandchild_has_one_too(void **state)
{
    pid_t pid = fork();
    if (!pid) {
        pid_t inner = fork();
        if (!inner)
            _exit(atomic_load(&shim_state->attach_state) == SHIM_ATTACHED ? 0 : 1);
        _exit(child_status(inner) ? 2 : 0);
    }
    assert_int_equal(child_status(pid), 0);
}

/* No hook saw it: it never takes part, and never touches its parent's channel. */
static void raw_clone_child_stays_out(void **state)
{
    char *p = arena + (25 << 20);
    fill(p, 2, 'a');
    pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (!pid) {
        attach_now();
        _exit(atomic_load(&shim_state->attach_state) == SHIM_UNMANAGED &&
                      !atomic_load(&shim_state->chan) && p[PAGE] == 'b'
                  ? 0
                  : 1);
    }
    assert_int_equal(child_status(pid), 0);
}

/* ------------------------------------------------------------------ the end */

/* Last: the server dies, and an instance must end by SIGABRT after the limit. */
static void server_dies(void **state)
{
    int ready[2];
    char line[8];
    struct fake_request req = {.kind = FAKE_QUIT};
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (!pid) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        close(ready[0]);
        close(ready[1]);
        for (;;)
            pause();
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], line, 1), 0);        /* it is there */
    shim_config.settings.on_server_lost = EDM_LOST_WAIT; /* this process is to live on */
    uint64_t before = lpet_now_ms();
    assert_false(fake_server_ask(&req));
    int status = child_status(pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
    assert_in_range(lpet_now_ms() - before, 250, 5000);
    close(ready[0]);
}

/* ------------------------------------------------------------------ set up */

static int setup(void **state)
{
    void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(page, PAGE, MADV_WIPEONFORK);
    shim_state = page;
    char *at = mmap(NULL, ARENA_LEN + EDM_CHUNK_SIZE, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    arena = (char *)(((uint64_t)at + EDM_CHUNK_SIZE - 1) & ~(EDM_CHUNK_SIZE - 1));
    madvise(arena, ARENA_LEN, MADV_NOHUGEPAGE);
    snprintf(sock_path, sizeof(sock_path), "/tmp/edm-test-lpet.%d", getpid());
    shim_config.enabled = true;
    shim_config.config.server = EDM_SERVER_AUTO;
    strcpy(shim_config.config.socket, sock_path);
    shim_config.settings.reconnect_timeout_ms = 300;
    shim_config.settings.on_server_lost = EDM_LOST_ABORT;
    pthread_atfork(check_hold, NULL, NULL);
    attach_init();
    server = fake_server_start(sock_path);
    return server > 0 ? 0 : -1;
}

static int teardown(void **state)
{
    fake_server_stop(server);
    unlink(sock_path);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(programs_that_attach_and_end),
        cmocka_unit_test(program_without_standard_descriptors),
        cmocka_unit_test(program_that_is_out_of_descriptors),
        cmocka_unit_test(limit_too_small_for_the_lpet),
        cmocka_unit_test(nobody_answers),
        cmocka_unit_test(require_ends_with_125),
        cmocka_unit_test(server_that_says_nothing),
        cmocka_unit_test(forks_before_there_is_an_arena),
        cmocka_unit_test(probe_finds_the_server),
        cmocka_unit_test(attaches_without_using_our_descriptors),
        cmocka_unit_test(move_takes_contents_out),
        cmocka_unit_test(zero_test_sees_every_byte),
        cmocka_unit_test(move_again_and_again),
        cmocka_unit_test(move_meets_a_hole),
        cmocka_unit_test(move_meets_unmapped_pages),
        cmocka_unit_test(move_leaves_read_only_pages),
        cmocka_unit_test(move_of_a_huge_page),
        cmocka_unit_test(move_after_fork),
        cmocka_unit_test(move_after_fork_meets_holes),
        cmocka_unit_test(move_leaves_pinned_pages),
        cmocka_unit_test(copy_takes_contents_out),
        cmocka_unit_test(copy_of_unreadable_and_unmapped_pages),
        cmocka_unit_test(cancelled_command_does_nothing),
        cmocka_unit_test(command_out_of_bounds_does_nothing),
        cmocka_unit_test(commands_in_a_storm_of_unmaps),
        cmocka_unit_test(fork_holds_the_lpet),
        cmocka_unit_test(forked_child_has_an_lpet),
        cmocka_unit_test(grandchild_has_one_too),
        cmocka_unit_test(raw_clone_child_stays_out),
        cmocka_unit_test(server_dies),
    };
    int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        printf("skipped: /dev/userfaultfd cannot be opened: %s\n", strerror(errno));
        return 77;
    }
    close(fd);
    return cmocka_run_group_tests(tests, setup, teardown);
}
