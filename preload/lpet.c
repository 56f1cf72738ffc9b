#include "lpet.h"
#include "uffd_abi.h"
#include <emmintrin.h>
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
 * made in lpet_map, no access to managed memory but by MOVE, /proc/self/mem and madvise, none of
 * which can crash when the program unmaps the range at that moment.
 */

/* ASan's work before a call that does not return needs a thread of libc's. */
#define LPET_BARE __attribute__((no_sanitize_address))

#define RECONNECT_PAUSE_MS 50
#define LPET_AGAIN_MAX 64 /* EAGAINs on one page before it is left alone as busy */

static uint64_t mask_of(uint32_t first, uint32_t n)
{
    uint64_t m = n >= 64 ? ~0ull : (1ull << n) - 1;
    return m << first;
}

/* ------------------------------------------------------------------ pages */

static bool page_is_zero(const void *page)
{
    const __m128i *p = page;
    const __m128i zero = _mm_setzero_si128();
    for (size_t i = 0; i < EDM_PAGE_SIZE / sizeof(*p); i += 4) {
        __m128i a = _mm_or_si128(_mm_load_si128(p + i), _mm_load_si128(p + i + 1));
        __m128i b = _mm_or_si128(_mm_load_si128(p + i + 2), _mm_load_si128(p + i + 3));
        if (_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_or_si128(a, b), zero)) != 0xffff)
            return false;
    }
    return true;
}

static void page_copy(void *to, const void *from)
{
    size_t n = EDM_PAGE_SIZE / 8;
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

static void *ring_page(const struct lpet *l, uint32_t slot)
{
    return (char *)l->chan + l->data_offset + (uint64_t)slot * EDM_PAGE_SIZE;
}

/* Bits of the pages of [addr, +n) whose pagemap entry has one of these bits; `unknown` when they
 * cannot be read. */
static uint64_t pages_with(const struct lpet *l, uint64_t addr, uint32_t n, uint64_t bits,
                           uint64_t unknown)
{
    uint64_t entries[EDM_CMD_PAGES], with = 0;
    long got = sys_call4(SYS_pread64, l->pagemap_fd, (long)entries, (long)(n * 8ul),
                         (long)((addr >> EDM_PAGE_SHIFT) * 8));
    if (got != (long)(n * 8ul))
        return unknown;
    for (uint32_t i = 0; i < n; i++)
        if (entries[i] & bits)
            with |= 1ull << i;
    return with;
}

/* … that are there: present or swapped out by the kernel. None is called missing that may be there.
 */
static uint64_t pages_there(const struct lpet *l, uint64_t addr, uint32_t n)
{
    return pages_with(l, addr, n, EDM_PM_PRESENT | EDM_PM_SWAPPED, mask_of(0, n));
}

/* ------------------------------------------------------------------ staging */

/* Gives frames back. They are never written again by us: somebody may still hold a plain reference
 * to them (KERNEL.md 14). DONTNEED_LOCKED because of mlockall (KERNEL.md 16). */
static void frames_drop(uint64_t addr, uint64_t len)
{
    if (sys_is_error(sys_madvise(addr, len, MADV_DONTNEED_LOCKED)))
        sys_madvise(addr, len, MADV_DONTNEED);
}

static void staging_drop(struct lpet *l)
{
    if (l->staging_used)
        frames_drop(l->staging, l->staging_used * EDM_PAGE_SIZE);
    l->staging_used = 0;
}

/* Staging for n pages; what is handed out has no page yet. */
static uint64_t staging_take(struct lpet *l, uint32_t n)
{
    if (l->staging_used + n > EDM_STAGING_PAGES)
        staging_drop(l);
    uint64_t addr = l->staging + l->staging_used * EDM_PAGE_SIZE;
    l->staging_used += n;
    return addr;
}

/* ------------------------------------------------------------------ EDM_CMD_MOVE */

struct move_run {
    uint64_t src, dst;
    uint32_t n;
    uint64_t out, busy, gone, refused; /* pages, by outcome */
    uint64_t populated;                /* pages that were made exclusive already */
    uint32_t limit;                    /* most pages of the next call */
    uint32_t again;                    /* EAGAINs since the last progress */
};

/* One UFFDIO_MOVE. Returns the pages that moved (> 0) or -errno. */
static long move_once(const struct lpet *l, const struct move_run *r, uint32_t first, uint32_t n)
{
    struct uffdio_move mv = {.dst = r->dst + first * EDM_PAGE_SIZE,
                             .src = r->src + first * EDM_PAGE_SIZE,
                             .len = n * EDM_PAGE_SIZE,
                             .mode = UFFDIO_MOVE_MODE_DONTWAKE};
    long ret = sys_ioctl(l->staging_uffd, UFFDIO_MOVE, &mv);
    if (!ret)
        return n;
    if (mv.move > 0)
        return (long)((uint64_t)mv.move >> EDM_PAGE_SHIFT);
    return ret;
}

/*
 * Pages shared with a forked child, or ever shared since, are not exclusive: a populating write
 * makes them so (KERNEL.md 17). Only pages that are there, for a fault on a hole would wait for the
 * server. The program may still discard one in between: the server answers faults of the LPET's own
 * thread with zeros, whatever command is outstanding.
 */
static void make_exclusive(const struct lpet *l, struct move_run *r, uint32_t first)
{
    uint64_t there = pages_there(l, r->src + first * EDM_PAGE_SIZE, r->n - first) << first;
    uint32_t i = first;
    r->populated |= mask_of(first, r->n - first);
    while (i < r->n) {
        uint32_t end = i;
        while (end < r->n && (there & (1ull << end)))
            end++;
        if (end > i)
            sys_madvise(r->src + i * EDM_PAGE_SIZE, (end - i) * EDM_PAGE_SIZE, MADV_POPULATE_WRITE);
        i = end + 1;
    }
}

/*
 * Linux 6.18 may have moved pages that it does not count: when a page table entry changes while it
 * looks (a processor notes that the page was read), it goes round again, meets what it has just
 * moved, and says EEXIST. Staging has their only copy then. Somebody who reads or locks all memory
 * leaves a page of zeros there, and the page is still where it was.
 */
static bool has_moved(const struct lpet *l, const struct move_run *r, uint32_t i)
{
    uint64_t dst = r->dst + i * EDM_PAGE_SIZE, src = r->src + i * EDM_PAGE_SIZE;
    if (!pages_there(l, dst, 1))
        return false;
    return !pages_there(l, src, 1) || !page_is_zero((const void *)dst);
}

/* What a failed move of page `i` (and those behind it) means. Returns the next page to look at. */
static uint32_t move_failed(const struct lpet *l, struct move_run *r, uint32_t i, uint32_t tried,
                            long err)
{
    uint64_t bit = 1ull << i;
    if ((err == -EEXIST || err == -ENOENT) && has_moved(l, r, i)) {
        r->out |= bit;
        r->again = 0;
        return i + 1;
    }
    switch (err) {
    case -EAGAIN: /* a lock of the page's was taken just then, or mappings are changing */
        if (++r->again < LPET_AGAIN_MAX) {
            sys_sched_yield();
            return i;
        }
        r->again = 0;
        r->busy |= bit;
        return i + 1;
    case -ENOENT:
        r->gone |= bit;
        return i + 1;
    case -EBUSY:
        if (!(r->populated & bit)) {
            make_exclusive(l, r, i);
            return i;
        }
        r->busy |= bit;
        return i + 1;
    case -EINVAL: /* a mapping ends inside, or it is not plain read-write memory */
        if (tried > 1) {
            r->limit = tried / 2;
            return i;
        }
        r->refused |= bit;
        return i + 1;
    case -EEXIST: /* an outside reader touched our staging, or mlockall filled it */
        if (++r->again < LPET_AGAIN_MAX) {
            frames_drop(r->dst + i * EDM_PAGE_SIZE, EDM_PAGE_SIZE);
            return i;
        }
        r->again = 0;
        r->busy |= bit;
        return i + 1;
    default: /* ENOMEM, EFAULT, ESRCH: it is still where it was */
        r->busy |= bit;
        return i + 1;
    }
}

static void cmd_move(struct lpet *l, struct edm_cmd *cmd, uint32_t slot, uint64_t staged,
                     struct move_run *r)
{
    uint32_t i = 0;
    r->dst = staged;
    r->limit = r->n;
    while (i < r->n) {
        uint32_t n = r->n - i < r->limit ? r->n - i : r->limit;
        long got = move_once(l, r, i, n);
        if (got > 0) {
            r->out |= mask_of(i, (uint32_t)got);
            r->again = 0;
            i += (uint32_t)got;
            if (r->limit < r->n) /* beyond the boundary the run may be whole again */
                r->limit *= 2;
        } else {
            i = move_failed(l, r, i, n, got);
        }
    }
    uint64_t zero = 0;
    for (i = 0; i < r->n; i++) {
        if (!(r->out & (1ull << i)))
            continue;
        const void *page = (const void *)(r->dst + i * EDM_PAGE_SIZE);
        if (page_is_zero(page))
            zero |= 1ull << i;
        else
            page_copy(ring_page(l, slot + i), page);
    }
    cmd->moved = r->out & ~zero;
    cmd->zero = zero;
    cmd->busy = r->busy;
    cmd->gone = r->gone;
    cmd->refused = r->refused;
}

/* ------------------------------------------------------------------ EDM_CMD_COPY */

/*
 * Could the page be moved by now? It is copied because MOVE refused it once, and the program may
 * have given it other rights since and have it pinned (KERNEL.md 6): MOVE knows of that, a copy
 * does not. Asked without moving anything, by its errors: EINVAL comes before EEXIST.
 */
static bool is_movable(const struct lpet *l, uint64_t at)
{
    struct uffdio_move mv = {
        .dst = l->probe, .src = at, .len = EDM_PAGE_SIZE, .mode = UFFDIO_MOVE_MODE_DONTWAKE};
    return shim_config.settings.evict_method != EDM_EVICT_COPY &&
           sys_ioctl(l->staging_uffd, UFFDIO_MOVE, &mv) != -EINVAL;
}

/*
 * The server has write-protected the page; the program, writing to it meanwhile, waits for the
 * outcome. Read through /proc/self/mem: EIO for a hole or an unmapped page where a load would wait
 * or crash, and no read permission needed. One that is not protected has come here since: its
 * contents are still being changed. Page by page: the kernel repeats the REMOVE event of a range
 * whose mapping is split meanwhile, which would look like the program's own discard (KERNEL.md 7);
 * and the next page must not wait, copied, for that event to be read.
 */
static bool page_take_copy(const struct lpet *l, void *to, uint64_t at)
{
    return !is_movable(l, at) &&
           sys_call4(SYS_pread64, l->mem_fd, (long)to, EDM_PAGE_SIZE, (long)at) ==
               (long)EDM_PAGE_SIZE &&
           pages_with(l, at, 1, EDM_PM_UFFD_WP, 0) &&
           !sys_is_error(sys_madvise(at, EDM_PAGE_SIZE, MADV_DONTNEED));
}

static void cmd_copy(struct lpet *l, struct edm_cmd *cmd, uint32_t slot, uint64_t addr, uint32_t n)
{
    uint64_t moved = 0, zero = 0, gone = 0;
    for (uint32_t i = 0; i < n; i++) {
        void *to = ring_page(l, slot + i);
        uint64_t at = addr + i * EDM_PAGE_SIZE, bit = 1ull << i;
        if (page_take_copy(l, to, at))
            *(page_is_zero(to) ? &zero : &moved) |= bit;
        else if (!pages_there(l, at, 1))
            gone |= bit;
    }
    cmd->moved = moved;
    cmd->zero = zero;
    cmd->busy = mask_of(0, n) & ~(moved | zero | gone);
    cmd->gone = gone;
    cmd->refused = 0;
}

/* ------------------------------------------------------------------ commands */

/* Says that a command is being done, unless a fork wants none: then waits for the fork first. */
static void busy_begin(struct edm_chan *c)
{
    for (;;) {
        __atomic_store_n(&c->lpet_busy, 1, __ATOMIC_SEQ_CST);
        if (!__atomic_load_n(&c->fork_hold, __ATOMIC_SEQ_CST))
            return;
        __atomic_store_n(&c->lpet_busy, 0, __ATOMIC_SEQ_CST);
        sys_futex_wake(&c->lpet_busy, INT32_MAX, 0);
        sys_futex_wait(&c->fork_hold, 1, NULL, 0);
    }
}

static void busy_end(struct edm_chan *c)
{
    __atomic_store_n(&c->lpet_busy, 0, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&c->fork_hold, __ATOMIC_SEQ_CST))
        sys_futex_wake(&c->lpet_busy, INT32_MAX, 0);
}

static void results_none(struct edm_cmd *cmd, uint32_t n)
{
    cmd->moved = cmd->zero = cmd->gone = cmd->refused = 0;
    cmd->busy = n ? mask_of(0, n > EDM_CMD_PAGES ? EDM_CMD_PAGES : n) : 0;
}

/* Fields are read once: what was checked is what is used. Returns the command's kind. */
static uint32_t cmd_run(struct lpet *l, struct edm_cmd *cmd)
{
    uint64_t addr = __atomic_load_n(&cmd->addr, __ATOMIC_RELAXED);
    uint32_t n = __atomic_load_n(&cmd->npages, __ATOMIC_RELAXED);
    uint32_t slot = __atomic_load_n(&cmd->slot, __ATOMIC_RELAXED);
    uint32_t kind = __atomic_load_n(&cmd->kind, __ATOMIC_RELAXED);
    bool is_move = kind == EDM_CMD_MOVE, is_copy = kind == EDM_CMD_COPY;
    uint64_t staged = 0;

    if (is_move || is_copy) {
        uint64_t room = (l->chan_size - l->data_offset) >> EDM_PAGE_SHIFT;
        if (!n || n > EDM_CMD_PAGES || addr % EDM_PAGE_SIZE || (uint64_t)slot + n > room ||
            addr + n * EDM_PAGE_SIZE < addr) {
            results_none(cmd, n);
            return EDM_CMD_NOP;
        }
    }
    if (is_move) {
        staged = staging_take(l, n);
        __atomic_store_n(&cmd->staged, staged, __ATOMIC_RELAXED);
    }
    uint32_t posted = EDM_CMD_POSTED;
    if (!__atomic_compare_exchange_n(&cmd->state, &posted, EDM_CMD_RUNNING, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST)) {
        if (is_move) /* nothing was put there */
            l->staging_used -= n;
        results_none(cmd, n);
        return EDM_CMD_NOP;
    }
    if (is_move) {
        struct move_run r;
        r.src = addr;
        r.n = n;
        r.out = r.busy = r.gone = r.refused = r.populated = 0;
        r.again = 0;
        cmd_move(l, cmd, slot, staged, &r);
    } else if (is_copy) {
        cmd_copy(l, cmd, slot, addr, n);
    } else {
        results_none(cmd, 0);
    }
    return kind;
}

static void tell_server(struct lpet *l)
{
    uint64_t one = 1;
    l->since_comp = 0;
    sys_write(l->comp_fd, &one, sizeof(one));
}

/* One command, if there is one. Returns its kind, or -1. */
static int command_next(struct lpet *l)
{
    struct edm_chan *c = l->chan;
    uint32_t tail = c->cmd_tail;
    uint32_t head = __atomic_load_n(&c->cmd_head, __ATOMIC_ACQUIRE);
    if (head == tail || head - tail > EDM_CHAN_CMDS)
        return -1;
    busy_begin(c);
    uint32_t kind = cmd_run(l, &c->cmds[tail % EDM_CHAN_CMDS]);
    __atomic_store_n(&c->cmd_tail, tail + 1, __ATOMIC_SEQ_CST);
    busy_end(c);
    l->since_comp++;
    if (__atomic_load_n(&c->comp_wanted, __ATOMIC_SEQ_CST) || l->since_comp >= 4 ||
        __atomic_load_n(&c->cmd_head, __ATOMIC_ACQUIRE) == tail + 1)
        tell_server(l);
    return (int)kind;
}

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
    staging_drop(l);
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
        int kind = command_next(l);
        if (kind == EDM_CMD_EXIT)
            return;
        if (kind >= 0)
            continue;
        staging_drop(l);
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
