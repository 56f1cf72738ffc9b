/*
 * Random memory calls against a model of their meaning: every page of a few regions is unmapped,
 * or has a protection and a value. Run as it is (the kernel must agree with the model) and with the
 * shim preloaded (the hooks must agree with the kernel).
 *
 *     hooks_model [SEED [STEPS]]
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096ul
#define REGIONS 24
#define MOST 64

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

struct page {
    bool mapped;
    int prot;
    uint64_t value;
    uint64_t file; /* number of the file's page that is mapped here, from 1; 0: anonymous */
};

#define FILE_VALUE(number) ((1ul << 60) + (number))

struct region {
    char *at; /* NULL: none */
    size_t n;
    struct page page[MOST];
};

static struct region regions[REGIONS];
static uint64_t seed = 1, tag;
static const char *doing;
static int file;
static long remaps, refusals;

static uint32_t below(uint32_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 24) % n;
}

__attribute__((noreturn)) static void fail(const char *what, const struct region *r, size_t i)
{
    dprintf(1, "hooks_model: %s: %s, region %td page %zu of %zu at %p, errno %d\n", doing, what,
            r - regions, i, r->n, (void *)(r->at + i * PAGE), errno);
    _exit(1);
}

/* Reads and writes through the kernel, which answers EFAULT where the program would crash. */
static bool can_read(char *at, uint64_t *value)
{
    struct iovec here = {value, sizeof(*value)}, there = {at, sizeof(*value)};
    return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == sizeof(*value);
}

static bool can_write(char *at)
{
    int fds[2];
    if (pipe(fds))
        abort();
    bool ok = write(fds[1], "x", 1) == 1 && read(fds[0], at + 100, 1) == 1;
    close(fds[0]);
    close(fds[1]);
    return ok;
}

static void check_page(const struct region *r, size_t i)
{
    static const size_t places[] = {0, 2048, PAGE - 8};
    const struct page *p = &r->page[i];
    char *at = r->at + i * PAGE;
    if (!p->mapped)
        return; /* somebody else's by now, perhaps */
    for (size_t k = 0; k < 3; k++) {
        uint64_t v = 0;
        bool ok = can_read(at + places[k], &v);
        if (ok != ((p->prot & PROT_READ) != 0))
            fail(ok ? "is readable" : "is not readable", r, i);
        if (ok && v != p->value)
            fail("has another value", r, i);
    }
    if (below(8) == 0 && can_write(at) != ((p->prot & PROT_WRITE) != 0))
        fail("is (not) writable", r, i);
}

static void check_region(const struct region *r)
{
    for (size_t i = 0; r->at && i < r->n; i++)
        check_page(r, i);
}

static void check_unmapped(const struct region *r, size_t from, size_t n)
{
    uint64_t v;
    for (size_t i = from; i < from + n; i++)
        if (can_read(r->at + i * PAGE, &v))
            fail("is still readable", r, i);
}

static void set_pages(struct region *r, size_t from, size_t n, struct page p)
{
    for (size_t i = from; i < from + n; i++)
        r->page[i] = p;
}

/* A run of mapped pages of a region; false when there is none at the random place tried. */
static bool pick(struct region **r, size_t *from, size_t *n)
{
    *r = &regions[below(REGIONS)];
    if (!(*r)->at)
        return false;
    *from = below((uint32_t)(*r)->n);
    *n = 1 + below((uint32_t)((*r)->n - *from));
    for (size_t i = *from; i < *from + *n; i++)
        if (!(*r)->page[i].mapped)
            *n = i - *from;
    return *n > 0;
}

static int random_prot(void)
{
    static const int prots[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE,
                                PROT_READ | PROT_WRITE};
    return prots[below(4)];
}

static void drop(struct region *r)
{
    for (size_t i = 0; r->at && i < r->n; i++)
        if (r->page[i].mapped && munmap(r->at + i * PAGE, PAGE))
            fail("munmap", r, i);
    r->at = NULL;
}

static void do_map(void)
{
    struct region *r = &regions[below(REGIONS)];
    int prot = random_prot();
    doing = "mmap";
    drop(r);
    size_t n = 1 + below(MOST);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (below(2) ? MAP_NORESERVE : 0) |
                (below(4) ? 0 : MAP_POPULATE);
    char *at = mmap(NULL, n * PAGE - below(PAGE), prot, flags, -1, 0);
    if (at == MAP_FAILED)
        fail("mmap", r, 0);
    r->at = at;
    r->n = n;
    set_pages(r, 0, n, (struct page){true, prot, 0, 0});
    check_region(r);
}

static void do_write(void)
{
    struct region *r;
    size_t from, n;
    doing = "write";
    if (!pick(&r, &from, &n))
        return;
    for (size_t i = from; i < from + n; i++) {
        if (!(r->page[i].prot & PROT_WRITE))
            continue;
        uint64_t *at = (uint64_t *)(r->at + i * PAGE);
        r->page[i].value = at[0] = at[256] = at[511] = ++tag;
    }
}

static void do_unmap(void)
{
    struct region *r;
    size_t from, n;
    doing = "munmap";
    if (!pick(&r, &from, &n))
        return;
    if (munmap(r->at + from * PAGE, n * PAGE - below(PAGE)))
        fail("munmap", r, from);
    check_unmapped(r, from, n);
    set_pages(r, from, n, (struct page){0});
}

static void do_protect(void)
{
    struct region *r;
    size_t from, n;
    doing = "mprotect";
    if (!pick(&r, &from, &n))
        return;
    int prot = random_prot();
    if (mprotect(r->at + from * PAGE, n * PAGE - below(PAGE), prot))
        fail("mprotect", r, from);
    for (size_t i = from; i < from + n; i++)
        r->page[i].prot = prot;
}

static void do_advise(void)
{
    static const int advice[] = {MADV_DONTNEED,   MADV_DONTNEED,  MADV_WILLNEED,   MADV_COLD,
                                 MADV_PAGEOUT,    MADV_HUGEPAGE,  MADV_NOHUGEPAGE, MADV_DONTDUMP,
                                 MADV_DODUMP,     MADV_DONTFORK,  MADV_DOFORK,     MADV_WIPEONFORK,
                                 MADV_KEEPONFORK, MADV_SEQUENTIAL};
    struct region *r;
    size_t from, n;
    int a = advice[below(sizeof(advice) / sizeof(advice[0]))];
    doing = "madvise";
    if (!pick(&r, &from, &n))
        return;
    bool plain = true; /* file pages come back, and cannot be wiped */
    for (size_t i = from; i < from + n; i++)
        plain &= !r->page[i].file;
    if (!plain)
        return;
    if (munlock(r->at + from * PAGE, n * PAGE)) /* locked pages cannot be discarded */
        fail("munlock", r, from);
    if (madvise(r->at + from * PAGE, n * PAGE, a))
        fail("madvise", r, from);
    for (size_t i = from; i < from + n && a == MADV_DONTNEED; i++)
        r->page[i].value = 0;
}

static void do_fixed(void)
{
    struct region *r;
    size_t from, n;
    doing = "MAP_FIXED";
    if (!pick(&r, &from, &n))
        return;
    int prot = random_prot();
    int flags = MAP_FIXED | MAP_PRIVATE;
    bool of_file = below(3) == 0;
    char *at = mmap(r->at + from * PAGE, n * PAGE, prot, flags | (of_file ? 0 : MAP_ANONYMOUS),
                    of_file ? file : -1, 0);
    if (at != r->at + from * PAGE)
        fail("mmap", r, from);
    for (size_t i = from; i < from + n; i++)
        r->page[i] = (struct page){true, prot, of_file ? FILE_VALUE(i - from + 1) : 0,
                                   of_file ? i - from + 1 : 0};
}

static void do_noreplace(void)
{
    struct region *r;
    size_t from, n;
    doing = "MAP_FIXED_NOREPLACE";
    if (!pick(&r, &from, &n))
        return;
    if (mmap(r->at + from * PAGE, n * PAGE, PROT_READ,
             MAP_FIXED_NOREPLACE | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED ||
        errno != EEXIST)
        fail("mmap over a mapping", r, from);
}

static void do_lock(void)
{
    struct region *r;
    size_t from, n;
    doing = "mlock";
    if (!pick(&r, &from, &n))
        return;
    for (size_t i = from; i < from + n; i++)
        if (r->page[i].prot == PROT_NONE)
            return;
    if (below(2) ? mlock(r->at + from * PAGE, n * PAGE) : munlock(r->at + from * PAGE, n * PAGE))
        fail("mlock", r, from);
}

/* Several mappings: the kernel may refuse to move or grow them. */
static bool refused(const void *at)
{
    bool no = at == MAP_FAILED && (errno == EFAULT || errno == EINVAL);
    refusals += no;
    return no;
}

static void do_resize(void)
{
    struct region *r;
    size_t from, n, want = 1 + below(MOST);
    doing = "mremap";
    remaps++;
    if (!pick(&r, &from, &n))
        return;
    char *old = r->at + from * PAGE;
    char *at = mremap(old, n * PAGE, want * PAGE, below(4) ? MREMAP_MAYMOVE : 0);
    if (at == MAP_FAILED) {
        if (errno != ENOMEM && !refused(at))
            fail("mremap", r, from);
        return;
    }
    struct page moved[MOST];
    memcpy(moved, r->page + from, n * sizeof(moved[0]));
    const struct page last = moved[n - 1];
    for (size_t i = n; i < want; i++) {
        uint64_t number = last.file ? last.file + i - n + 1 : 0;
        moved[i] = (struct page){true, last.prot, number ? FILE_VALUE(number) : 0, number};
    }
    if (at == old && want <= n) {
        check_unmapped(r, from + want, n - want);
        set_pages(r, from + want, n - want, (struct page){0});
        return;
    }
    if (at != old && n > 0 && want != n)
        set_pages(r, from, n, (struct page){0});
    else if (at == old)
        set_pages(r, from, n, (struct page){0}); /* continues below as a region of its own */
    struct region *d = &regions[below(REGIONS)];
    while (d == r)
        d = &regions[below(REGIONS)];
    doing = "mremap, making room";
    drop(d);
    doing = "mremap";
    d->at = at;
    d->n = want;
    memcpy(d->page, moved, want * sizeof(moved[0]));
    check_region(d);
}

static void do_move(void)
{
    struct region *r, *d;
    size_t from, n, to, room;
    doing = "MREMAP_FIXED";
    remaps++;
    if (!pick(&r, &from, &n) || !pick(&d, &to, &room) || r == d)
        return;
    bool keep = below(3) == 0;
    size_t want = keep ? n : 1 + below((uint32_t)room);
    if (want > room)
        return;
    for (size_t i = 0; i < n; i++)
        if (r->page[from + i].file) /* moving file pages has rules of its own */
            return;
    char *old = r->at + from * PAGE;
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (keep ? MREMAP_DONTUNMAP : 0);
    char *at = mremap(old, n * PAGE, want * PAGE, flags, d->at + to * PAGE);
    if (at == MAP_FAILED) {
        /* What is lost when it fails half way is not said: start these two afresh. */
        if (!refused(at))
            fail("mremap", r, from);
        drop(r);
        drop(d);
        return;
    }
    if (at != d->at + to * PAGE)
        fail("went elsewhere", d, to);
    for (size_t i = 0; i < want; i++)
        d->page[to + i] =
            i < n ? r->page[from + i] : (struct page){true, r->page[from + n - 1].prot, 0, 0};
    for (size_t i = 0; i < n; i++) {
        if (keep)
            r->page[from + i].value = 0;
        else
            r->page[from + i].mapped = false;
    }
    if (!keep)
        check_unmapped(r, from, n);
    check_region(d);
    check_region(r);
}

static void make_file(void)
{
    char name[] = "/tmp/edm-hooks-XXXXXX";
    file = mkstemp(name);
    if (file < 0 || unlink(name))
        abort();
    uint64_t page[PAGE / 8];
    for (uint64_t i = 0; i < 4 * MOST; i++) {
        memset(page, 0, sizeof(page));
        page[0] = page[256] = page[511] = FILE_VALUE(i + 1);
        if (write(file, page, sizeof(page)) != sizeof(page))
            abort();
    }
}

int main(int argc, char **argv)
{
    static void (*const what[])(void) = {do_map,     do_write,  do_write, do_write,     do_unmap,
                                         do_protect, do_advise, do_fixed, do_noreplace, do_lock,
                                         do_resize,  do_resize, do_move,  do_move};
    if (argc > 1)
        seed = strtoull(argv[1], NULL, 0) * 2654435761ul + 88172645463325252ul;
    long steps = argc > 2 ? atol(argv[2]) : 20000;
    /* The first small mappings of a process are not managed: have more. */
    if (mmap(NULL, 4ul << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
        abort();
    make_file();
    for (long i = 0; i < steps; i++) {
        what[below(sizeof(what) / sizeof(what[0]))]();
        if (i % 64 == 0) {
            doing = "sweep";
            for (size_t k = 0; k < REGIONS; k++)
                check_region(&regions[k]);
        }
    }
    for (size_t k = 0; k < REGIONS; k++)
        drop(&regions[k]);
    printf("ok %ld steps, %ld of %ld mremaps refused\n", steps, refusals, remaps);
    return refusals * 2 > remaps; /* then this tests nothing */
}
