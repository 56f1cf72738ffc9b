#include "torture.h"
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

char *model_start;
size_t model_len;
static size_t model_used;
static volatile uint64_t *wrong_address; /* shared with forked children */

/* One piece, with a page without rights on both sides, so that it stays a mapping of its own. */
void model_init(size_t len)
{
    char *p;

    len = (len + PAGE - 1) & ~(PAGE - 1);
    p = mmap(NULL, len + 2 * PAGE, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    EXPECT(p != MAP_FAILED, "mmap of %zu bytes for the model: %m", len);
    EXPECT_CALL(mprotect(p + PAGE, len, PROT_READ | PROT_WRITE));
    wrong_address = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(wrong_address != MAP_FAILED, "mmap: %m");
    model_start = p + PAGE;
    model_len = len;
}

void *model_alloc(size_t len)
{
    void *p = model_start + model_used;

    model_used += (len + 63) & ~63ul;
    EXPECT(model_used <= model_len, "the model needs more than %zu bytes", model_len);
    return p;
}

uint64_t worker_random(struct worker *w, uint64_t below)
{
    uint64_t x = w->rng;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    w->rng = x;
    return ((x * 0x2545f4914f6cdd1dull) >> 20) % below;
}

bool worker_chance(struct worker *w, unsigned percent)
{
    return worker_random(w, 100) < percent;
}

uint32_t worker_length(struct worker *w, uint32_t max)
{
    uint32_t limit = 1;

    while (limit < max && worker_chance(w, 75))
        limit *= 2;
    if (limit > max)
        limit = max;
    return 1 + (uint32_t)worker_random(w, limit);
}

/* ---- contents ---- */

uint64_t model_word(uint64_t id, uint32_t block, uint32_t version, uint32_t word)
{
    uint64_t key, x;

    if (version == 0)
        return 0;
    key = (settings.seed ^ id) * 0x9e3779b97f4a7c15ull + version * 0xd1342543de82ef95ull + block;
    key ^= key >> 31;
    key *= 0xbf58476d1ce4e5b9ull;
    switch (key >> 60) {
    case 0: /* nearly all zero */
        return word == (key & 63) ? key : 0;
    case 1:
    case 2: /* compresses well */
        return key | 1;
    default:
        x = key + word * 0x94d049bb133111ebull;
        return x ^ (x >> 27);
    }
}

void page_zero(struct page *p)
{
    memset(p->version, 0, sizeof(p->version));
    p->flags &= ~(uint32_t)P_MAYZERO;
}

void page_unmap(struct worker *w, struct page *p)
{
    if (p->flags & P_LOCKED)
        w->locked--;
    memset(p, 0, sizeof(*p));
}

void page_from_file(struct page *p, uint32_t file_page)
{
    p->id = ~(uint64_t)file_page;
    p->file_page = file_page;
    for (uint32_t b = 0; b < BLOCKS; b++)
        p->version[b] = 1;
    p->flags &= ~(uint32_t)P_MAYZERO;
}

/* First wrong word of a page, or -1. as_zero: compare with zeros instead. */
static int page_compare(const volatile uint64_t *mem, const struct page *p, bool as_zero)
{
    for (uint32_t b = 0; b < BLOCKS; b++)
        for (uint32_t i = 0; i < BLOCK_WORDS; i++)
            if (mem[b * BLOCK_WORDS + i] != model_word(p->id, b, as_zero ? 0 : p->version[b], i))
                return (int)(b * BLOCK_WORDS + i);
    return -1;
}

void page_verify(struct worker *w, struct region *r, uint32_t i)
{
    struct page *p = &r->page[i];
    volatile uint64_t *mem = (volatile uint64_t *)page_addr(r, i);
    int bad = page_compare(mem, p, false);

    w->verified++;
    if (bad >= 0 && (p->flags & P_MAYZERO) && page_compare(mem, p, true) < 0) {
        page_zero(p); /* given up by the kernel: zeros from now on */
        return;
    }
    if (bad >= 0)
        torture_fail(w, (uint64_t)(mem + bad),
                     "wrong contents: page %016lx word %d is %016lx, expected %016lx%s; id %lx "
                     "version %u flags %x",
                     page_addr(r, i), bad, mem[bad],
                     model_word(p->id, (uint32_t)bad / BLOCK_WORDS,
                                p->version[(uint32_t)bad / BLOCK_WORDS],
                                (uint32_t)bad % BLOCK_WORDS),
                     p->flags & P_MAYZERO ? " (or all zeros)" : "", p->id,
                     p->version[(uint32_t)bad / BLOCK_WORDS], p->flags);
}

static void block_write(struct page *p, uint64_t *mem, uint32_t b)
{
    for (uint32_t i = 0; i < BLOCK_WORDS; i++)
        mem[b * BLOCK_WORDS + i] = model_word(p->id, b, p->version[b], i);
}

/* A write to a part settles what MADV_FREE left open for the rest. */
static void page_write_part(struct worker *w, struct region *r, uint32_t i)
{
    struct page *p = &r->page[i];
    uint64_t *mem = (uint64_t *)page_addr(r, i);
    uint32_t b = (uint32_t)worker_random(w, BLOCKS);
    struct page old = *p;

    p->version[b] = worker_chance(w, 10) ? 0 : ++w->next_version;
    block_write(p, mem, b);
    if (!(old.flags & P_MAYZERO))
        return;
    p->flags &= ~(uint32_t)P_MAYZERO;
    if (page_compare(mem, p, false) < 0)
        return;
    for (uint32_t k = 0; k < BLOCKS; k++)
        if (k != b)
            p->version[k] = 0;
    page_verify(w, r, i);
}

void page_write(struct worker *w, struct region *r, uint32_t i)
{
    struct page *p = &r->page[i];
    uint64_t *mem = (uint64_t *)page_addr(r, i);

    if (worker_chance(w, 30))
        return page_write_part(w, r, i);
    p->flags &= ~(uint32_t)P_MAYZERO;
    p->id = ++w->next_id << 8 | w->index;
    for (uint32_t b = 0; b < BLOCKS; b++)
        p->version[b] = ++w->next_version;
    if (worker_chance(w, 3))
        page_zero(p);
    for (uint32_t b = 0; b < BLOCKS; b++)
        block_write(p, mem, b);
}

/* ---- regions ---- */

uint64_t page_addr(const struct region *r, uint32_t i)
{
    return r->base + i * PAGE;
}

struct region *region_free(struct worker *w)
{
    for (uint32_t i = 0; i < REGIONS; i++)
        if (!w->regions[i].n)
            return &w->regions[i];
    return NULL;
}

struct region *region_new(struct worker *w, uint64_t base, uint32_t n)
{
    struct region *r = region_free(w);

    r->base = base;
    r->n = n;
    memset(r->page, 0, n * sizeof(*r->page));
    return r;
}

void region_settle(struct region *r)
{
    for (uint32_t i = 0; i < r->n; i++)
        if (r->page[i].flags & P_MAPPED)
            return;
    r->n = 0;
}

uint32_t worker_count(const struct worker *w, uint32_t flag)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < REGIONS; i++)
        for (uint32_t k = 0; k < w->regions[i].n; k++)
            n += (w->regions[i].page[k].flags & flag) != 0;
    return n;
}

uint32_t worker_mapped(const struct worker *w)
{
    return worker_count(w, P_MAPPED);
}

struct page *run_page(struct run run, uint32_t i)
{
    return &run.r->page[run.at + i];
}

uint64_t run_addr(struct run run)
{
    return page_addr(run.r, run.at);
}

struct run run_pick(struct worker *w, uint32_t need, uint32_t not, uint32_t max, bool uniform)
{
    uint32_t first = (uint32_t)worker_random(w, REGIONS), want = worker_length(w, max);

    for (uint32_t k = 0; k < REGIONS; k++) {
        struct region *r = &w->regions[(first + k) % REGIONS];
        struct run run = {.r = r};

        if (!r->n)
            continue;
        for (unsigned tries = 0; tries < 8; tries++) {
            run.at = (uint32_t)worker_random(w, r->n);
            run.n = 0;
            while (run.n < want && run.at + run.n < r->n) {
                uint32_t flags = run_page(run, run.n)->flags, start = run_page(run, 0)->flags;

                if ((flags & need) != need || (flags & not ))
                    break;
                if (uniform && ((flags ^ start) & ~(uint32_t)P_MAYZERO))
                    break;
                run.n++;
            }
            if (run.n)
                return run;
        }
    }
    return (struct run){0};
}

void model_expect_free(struct worker *w, uint64_t addr, uint64_t len, const char *what)
{
    for (uint32_t k = 0; k < REGIONS; k++) {
        struct region *r = &w->regions[k];

        for (uint64_t a = addr; a < addr + len; a += PAGE) {
            if (a < r->base || a >= r->base + r->n * PAGE)
                continue;
            if (r->page[(a - r->base) / PAGE].flags & P_MAPPED)
                torture_fail(w, a, "%s gave out %lx..%lx, but %lx is in use", what, addr,
                             addr + len, a);
        }
    }
}

void region_verify(struct worker *w, struct region *r)
{
    for (uint32_t i = 0; i < r->n; i++)
        if (r->page[i].flags & P_READ)
            page_verify(w, r, i);
}

void worker_verify(struct worker *w)
{
    for (uint32_t i = 0; i < REGIONS; i++)
        region_verify(w, &w->regions[i]);
}

/* ---- history ---- */

void note(struct worker *w, const char *what, bool raw, uint64_t addr, uint64_t len, uint64_t to,
          uint64_t to_len, long result)
{
    struct event *e = &w->history[w->history_next++ % HISTORY];

    *e = (struct event){.number = w->ops,
                        .addr = addr,
                        .len = len,
                        .to = to,
                        .to_len = to_len,
                        .result = result,
                        .what = what,
                        .raw = raw};
}

static void say(const char *fmt, ...)
{
    char line[512];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    if (n >= (int)sizeof(line))
        n = (int)sizeof(line) - 1;
    if (write(1, line, (size_t)n) != n)
        _exit(2);
}

static void event_print(const struct event *e)
{
    say("#   op %lu: %s%s %lx +%lx to %lx +%lx = %ld (%lx)\n", e->number, e->what,
        e->raw ? " (raw)" : "", e->addr, e->len, e->to, e->to_len, e->result,
        (unsigned long)e->result);
}

/* Backwards from the newest; follows a page that was moved to where it came from. */
static void history_print(const struct worker *w, uint64_t addr)
{
    uint64_t last = w->history_next, shown = 0;

    for (uint64_t k = 1; k <= HISTORY && k <= last && shown < 60; k++) {
        const struct event *e = &w->history[(last - k) % HISTORY];
        bool source = addr - e->addr < e->len, target = addr - e->to < e->to_len;

        if (addr && !source && !target)
            continue;
        event_print(e);
        shown++;
        if (target && !source && strncmp(e->what, "mremap", 6) == 0 && !is_error(e->result))
            addr = addr - e->to + e->addr;
    }
}

/* One line of fd, without its end; no malloc, since this may be the child of a raw clone. */
static bool read_line(int fd, char *line, size_t size)
{
    static char buf[4096];
    static ssize_t have, at;
    size_t n = 0;

    for (;;) {
        if (at == have) {
            have = read(fd, buf, sizeof(buf));
            at = 0;
            if (have <= 0) {
                have = 0;
                return false;
            }
        }
        if (buf[at] == '\n')
            break;
        if (n + 1 < size)
            line[n++] = buf[at];
        at++;
    }
    at++;
    line[n] = 0;
    return true;
}

/* What the kernel says is mapped at addr. */
static void mapping_print(uint64_t addr)
{
    int fd = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
    bool here = false;
    char line[512];

    while (fd >= 0 && read_line(fd, line, sizeof(line))) {
        unsigned long start, end;

        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            here = addr >= start && addr < end;
        else if (strncmp(line, "Rss:", 4) != 0 && strncmp(line, "VmFlags:", 8) != 0)
            continue;
        if (here)
            say("#   mapping: %s\n", line);
    }
    if (fd >= 0)
        close(fd);
}

/* This thread alone, and not by libc's raise: in the child of a raw clone that takes it for
 * another. */
__attribute__((noreturn)) static void end_by(int sig)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, sig);
    signal(sig, SIG_DFL);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    syscall(SYS_tgkill, getpid(), (pid_t)syscall(SYS_gettid), sig);
    _exit(2);
}

void torture_lost(struct worker *w, const char *fmt, ...)
{
    char why[200];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(why, sizeof(why), fmt, ap);
    va_end(ap);
    say("lost: torture: %s\n#   seed %lu worker %u op %lu pid %d%s\n", why, settings.seed, w->index,
        w->ops, (int)getpid(), w->in_child ? " (forked child)" : "");
    end_by(SIGBUS);
}

void torture_fail(struct worker *w, uint64_t addr, const char *fmt, ...)
{
    char why[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(why, sizeof(why), fmt, ap);
    va_end(ap);
    say("not ok torture: %s\n#   seed %lu worker %u op %lu pid %d%s; newest operation first:\n",
        why, settings.seed, w->index, w->ops, (int)getpid(), w->in_child ? " (forked child)" : "");
    if (addr && !*wrong_address)
        *wrong_address = addr;
    else if (*wrong_address) /* a child found it: is it wrong here too? */
        say("#   word %lx is %016lx here\n", *wrong_address, *(uint64_t *)*wrong_address);
    if (addr)
        mapping_print(addr);
    history_print(w, addr ? addr & ~(PAGE - 1) : 0);
    if (getenv("TORTURE_STOP")) /* for a debugger */
        kill(getpid(), SIGSTOP);
    end_by(SIGABRT);
}
