#include "lpet_int.h"
#include <errno.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

/*
 * Everything down to "starting and ending it" runs on the LPET: no libc, no TLS but the bare block
 * made in lpet_map, no access to managed memory.
 */

/* ASan's work before a call that does not return needs a thread of libc's. */
#define LPET_BARE __attribute__((no_sanitize_address))

#define RECONNECT_PAUSE_MS 50

/* ------------------------------------------------------------------ the end of the server */

/* The program's stderr as it is now: the LPET keeps none, for that would hold a pipe open that the
 * program has closed. Only when it is still the file that it was. -1 when there is none. */
static int program_stderr(const struct lpet *l)
{
    struct stat st;
    long pidfd = sys_call3(SYS_pidfd_open, sys_getpid(), 0, 0);
    if (sys_is_error(pidfd))
        return -1;
    long fd = sys_call3(SYS_pidfd_getfd, pidfd, 2, 0);
    sys_close((int)pidfd);
    if (sys_is_error(fd))
        return -1;
    if (sys_call3(SYS_fstat, fd, (long)&st, 0) || st.st_dev != l->err_dev ||
        st.st_ino != l->err_ino) {
        sys_close((int)fd);
        return -1;
    }
    return (int)fd;
}

LPET_BARE void lpet_end_program(const struct lpet *l)
{
    struct lpet_text t = {.len = 0};
    lpet_text_put(&t, "edm: the server is gone and none took over in ");
    lpet_text_num(&t, shim_config.settings.reconnect_timeout_ms / 1000);
    lpet_text_put(&t, " s, memory is missing: ending the program\n");
    int fd = program_stderr(l);
    if (fd >= 0)
        sys_write(fd, t.s, t.len);

    struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        uint64_t mask;
    } dfl = {NULL, 0, NULL, 0};
    uint64_t abrt = 1ull << (SIGABRT - 1);
    sys_call4(SYS_rt_sigaction, SIGABRT, (long)&dfl, 0, sizeof(dfl.mask));
    sys_sigprocmask(SIG_UNBLOCK, &abrt, NULL);
    sys_call3(SYS_tgkill, sys_getpid(), sys_gettid(), SIGABRT);
    sys_exit_group(128 + SIGABRT);
}

/*
 * Nothing may return zeros or hang past the limit: pages that only the server has cannot be had
 * until a successor comes. Commands wait for it, too: doing one may need a page.
 */
LPET_BARE static void server_lost(struct lpet *l)
{
    const struct edm_settings *s = &shim_config.settings;
    l->until_ms = lpet_now_ms() + s->reconnect_timeout_ms;
    lpet_staging_drop(l);
    sys_close(l->socket_fd);
    l->socket_fd = -1;
    while (l->calls.again(l)) {
        if (s->on_server_lost != EDM_LOST_WAIT && lpet_now_ms() >= l->until_ms)
            lpet_end_program(l);
        lpet_pause_ms(RECONNECT_PAUSE_MS);
    }
}

/* True when the connection is over. The server has nothing to say on it; what it says is read. */
static bool socket_ended(int fd)
{
    char buf[64];
    long got = sys_call6(SYS_recvfrom, fd, (long)buf, sizeof(buf), 0x40 /* MSG_DONTWAIT */, 0, 0);
    return got == 0 || (got < 0 && got != -EAGAIN && got != -EINTR);
}

/* ------------------------------------------------------------------ the thread */

static void follow_cpu(struct lpet *l)
{
    int32_t cpu = __atomic_load_n(&l->chan->lpet_cpu, __ATOMIC_RELAXED);
    if (cpu == l->cpu)
        return;
    l->cpu = cpu;
    if (cpu < 0 || cpu >= 1024) {
        sys_call3(SYS_sched_setaffinity, 0, sizeof(l->all_cpus), (long)l->all_cpus);
        return;
    }
    uint64_t one[16] = {0};
    one[cpu / 64] = 1ull << (cpu % 64);
    sys_call3(SYS_sched_setaffinity, 0, sizeof(one), (long)one);
}

static void drop_capabilities(void)
{
    struct __user_cap_header_struct hdr = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    sys_call3(SYS_capset, (long)&hdr, (long)none, 0);
}

/* The server that ends on purpose posts EXIT before it hangs up. What else it left is not done: its
 * contents would have no reader. */
static bool exit_posted(const struct edm_chan *c)
{
    uint32_t head = __atomic_load_n(&c->cmd_head, __ATOMIC_ACQUIRE);
    for (uint32_t i = c->cmd_tail; i != head && head - i <= EDM_CHAN_CMDS; i++)
        if (c->cmds[i % EDM_CHAN_CMDS].kind == EDM_CMD_EXIT)
            return true;
    return false;
}

LPET_BARE static void loop(struct lpet *l)
{
    struct pollfd fds[2] = {{.fd = l->cmd_fd, .events = POLLIN},
                            {.fd = l->socket_fd, .events = POLLIN}};
    for (;;) {
        int kind = lpet_command_next(l);
        if (kind == EDM_CMD_EXIT)
            return;
        if (kind >= 0)
            continue;
        lpet_staging_drop(l);
        follow_cpu(l);
        long n = sys_poll(fds, 2, -1);
        if (n <= 0)
            continue;
        if (fds[0].revents) {
            char calls[64];
            if (sys_read(l->cmd_fd, calls, sizeof(calls)) == 0)
                fds[0].fd =
                    -1; /* neither the server nor a keeper is there: the socket tells more */
        }
        if (fds[1].revents && socket_ended(l->socket_fd)) {
            if (exit_posted(l->chan))
                return;
            server_lost(l);
            fds[1].fd = l->socket_fd;
        }
    }
}

static void phase_set(struct lpet *l, enum lpet_phase phase)
{
    __atomic_store_n(&l->phase, phase, __ATOMIC_SEQ_CST);
    sys_futex_wake(&l->phase, 1, FUTEX_PRIVATE_FLAG);
}

static void stderr_note(struct lpet *l)
{
    struct stat st;
    if (sys_call3(SYS_fstat, 2, (long)&st, 0))
        return;
    l->err_dev = st.st_dev;
    l->err_ino = st.st_ino;
}

LPET_BARE static int lpet_main(void *arg)
{
    struct lpet *l = arg;
    stderr_note(l);
    /* the program's descriptors are copies here, and so is its current directory: let go */
    sys_call3(SYS_close_range, 0, ~0u, 0);
    sys_call3(SYS_chdir, (long)"/", 0, 0);
    sys_call3(SYS_prctl, 15 /* PR_SET_NAME */, (long)"edm-lpet", 0);
    sys_call3(SYS_sched_getaffinity, 0, sizeof(l->all_cpus), (long)l->all_cpus);
    int rc = l->calls.setup(l);
    if (rc) {
        phase_set(l, LPET_FAILED);
        return 0;
    }
    drop_capabilities();
    l->cpu = -1;
    phase_set(l, LPET_RUNNING);
    loop(l);
    struct edm_chan *c = l->chan;
    if (l->calls.released)
        l->calls.released();
    sys_call3(SYS_close_range, 0, ~0u, 0);
    __atomic_store_n(&c->lpet_tid, 0, __ATOMIC_SEQ_CST);
    sys_futex_wake(&c->lpet_tid, INT32_MAX, 0);
    return 0;
}

/* ------------------------------------------------------------------ starting and ending it */

struct clone_call {
    int (*fn)(void *);
    void *arg;
};

__attribute__((noreturn, used)) static void clone_entry(struct clone_call *call)
{
    int code = call->fn(call->arg);
    for (;;)
        sys_call3(SYS_exit, code, 0, 0);
}

long lpet_clone(uint64_t flags, uint64_t stack, int *parent_fd, uint32_t *tid_word, uint64_t tls,
                int (*fn)(void *), void *arg)
{
    uint64_t top = (stack - sizeof(struct clone_call)) & ~15ull;
    struct clone_call *call = (struct clone_call *)top;
    long ret;
    call->fn = fn;
    call->arg = arg;
    register long r10 __asm__("r10") = (long)tid_word;
    register long r8 __asm__("r8") = (long)tls;
    __asm__ volatile("syscall\n\t"
                     "testq %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xorl %%ebp, %%ebp\n\t"
                     "movq %%rsp, %%rdi\n\t"
                     "call *%[entry]\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(ret)
                     : "a"(SYS_clone), "D"(flags), "S"(top), "d"(parent_fd), "r"(r10),
                       "r"(r8), [entry] "r"(clone_entry)
                     : "rcx", "r11", "memory");
    return ret;
}

/* Guard page, stack, page below the thread pointer, thread block with struct lpet, guard page,
 * stacks of autostart.c's two children. */
static struct lpet *lpet_map(uint64_t *tls, uint64_t *stack)
{
    const uint64_t page = EDM_PAGE_SIZE, block = 2 * page;
    const uint64_t len = page + LPET_STACK_SIZE + block + page + LPET_SPAWN_STACK_SIZE;
    _Static_assert(sizeof(struct lpet) + 256 <= EDM_PAGE_SIZE, "struct lpet fits its page");
    long base = sys_mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (sys_is_error(base))
        return NULL;
    uint64_t start = (uint64_t)base;
#ifdef __SANITIZE_ADDRESS__ /* what a thread that was here before, or the parent's, had in its     \
                               frames */
    __asan_unpoison_memory_region((void *)start, len);
#endif
    sys_mprotect(start, page, PROT_NONE);
    sys_mprotect(start + page + LPET_STACK_SIZE + block, page, PROT_NONE);
    sys_madvise(start, len, MADV_DONTFORK);
    sys_madvise(start, len, MADV_DONTDUMP);
    *stack = start + page + LPET_STACK_SIZE;
    *tls = *stack + page;
    *(uint64_t *)*tls = *tls;          /* %fs:0, the thread block's address */
    *(uint64_t *)(*tls + 0x10) = *tls; /* %fs:16, the same for glibc */
    struct lpet *l = (struct lpet *)(*tls + 256);
    l->map_start = start;
    l->map_len = len;
    l->spawn_stack = start + len;
    return l;
}

/* Until setup is over. */
static void setup_await(struct lpet *l)
{
    const struct timespec tick = {.tv_sec = 1};
    uint64_t began = lpet_now_ms();
    while (__atomic_load_n(&l->phase, __ATOMIC_ACQUIRE) == LPET_STARTING)
        if (sys_futex_wait(&l->phase, LPET_STARTING, &tick, FUTEX_PRIVATE_FLAG) == -ETIMEDOUT)
            l->calls.overdue(l, lpet_now_ms() - began);
}

int lpet_create(const struct lpet_calls *calls, bool is_claim, struct lpet **out,
                struct lpet_text *why)
{
    uint64_t tls, stack;
    struct lpet *l = lpet_map(&tls, &stack);
    if (!l) {
        lpet_text_put(why, "no memory for a thread");
        return -ENOMEM;
    }
    l->calls = *calls;
    l->is_claim = is_claim;
    l->tid = 1;
    /* no CLONE_FILES, no CLONE_FS: its own descriptors and directory, nothing held open, and
     * setns and chroot in the program work as if it were alone */
    long tid = lpet_clone(CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |
                              CLONE_CHILD_CLEARTID,
                          stack, NULL, &l->tid, tls, lpet_main, l);
    if (sys_is_error(tid)) {
        lpet_text_put(why, "cannot make a thread");
        lpet_text_errno(why, tid);
        sys_munmap(l->map_start, l->map_len);
        return (int)tid;
    }
    setup_await(l);
    l->id = (int)tid;
    if (l->phase == LPET_FAILED) {
        *why = l->why;
        while (lpet_join(l, 1000))
            ;
        return -EIO;
    }
    *out = l;
    return 0;
}

int lpet_join(struct lpet *l, int timeout_ms)
{
    uint64_t until = lpet_now_ms() + (uint64_t)timeout_ms;
    uint32_t tid;
    while ((tid = __atomic_load_n(&l->tid, __ATOMIC_ACQUIRE)) != 0) {
        struct timespec tick = {.tv_sec = 0, .tv_nsec = 50 * 1000 * 1000};
        if (lpet_now_ms() >= until)
            return -ETIMEDOUT;
        sys_futex_wait(&l->tid, tid, &tick, 0);
    }
    /* the word is cleared a little before the thread leaves its group */
    while (sys_call3(SYS_tgkill, sys_getpid(), l->id, 0) != -ESRCH) {
        if (lpet_now_ms() >= until)
            return -ETIMEDOUT;
        sys_sched_yield();
    }
    sys_munmap(l->map_start, l->map_len);
    return 0;
}

/* ------------------------------------------------------------------ small things */

void lpet_pause_ms(int ms)
{
    struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000l};
    sys_call3(SYS_nanosleep, (long)&ts, 0, 0);
}

uint64_t lpet_now_ms(void)
{
    struct timespec ts = {0, 0};
    sys_call3(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&ts, 0);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

void lpet_text_put(struct lpet_text *t, const char *s)
{
    while (*s && t->len + 1 < sizeof(t->s))
        t->s[t->len++] = *s++;
    t->s[t->len] = 0;
}

void lpet_text_num(struct lpet_text *t, uint64_t n)
{
    char digits[24];
    size_t i = sizeof(digits);
    digits[--i] = 0;
    do
        digits[--i] = (char)('0' + n % 10);
    while (n /= 10);
    lpet_text_put(t, digits + i);
}

void lpet_text_errno(struct lpet_text *t, long err)
{
    static const struct {
        short code;
        char text[30];
    } known[] = {{EPERM, "not permitted"},
                 {ENOENT, "not there"},
                 {ENOMEM, "no memory"},
                 {EACCES, "permission denied"},
                 {EMFILE, "no free descriptor"},
                 {ENFILE, "no free descriptor"},
                 {ECONNREFUSED, "nobody listens"},
                 {EAGAIN, "no answer in time"},
                 {ETIMEDOUT, "no answer in time"},
                 {ECONNRESET, "the other side hung up"},
                 {EPIPE, "the other side hung up"},
                 {EPROTO, "an answer that makes no sense"},
                 {ENOSYS, "not in this kernel"}};
    lpet_text_put(t, ": ");
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (known[i].code == -err) {
            lpet_text_put(t, known[i].text);
            return;
        }
    lpet_text_put(t, "error ");
    lpet_text_num(t, (uint64_t)-err);
}
