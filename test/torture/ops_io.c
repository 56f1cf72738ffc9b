/* Reads, writes and copies, by the program and by the kernel. */
#include "torture.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

bool op_write(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED | P_WRITE | P_READ, 0, 128, false);

    if (!run.r)
        return false;
    for (uint32_t i = 0; i < run.n; i++)
        page_write(w, run.r, run.at + i);
    note(w, "write", false, run_addr(run), run.n * PAGE, 0, 0, 0);
    return true;
}

bool op_read(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED | P_READ, 0, 128, false);

    if (!run.r)
        return false;
    for (uint32_t i = 0; i < run.n; i++)
        page_verify(w, run.r, run.at + i);
    return true;
}

/* A source whose contents are known and a target of the same length elsewhere. */
static bool pick_pair(struct worker *w, uint32_t max, struct run *from, struct run *to)
{
    *from = run_pick(w, P_MAPPED | P_READ, P_MAYZERO, max, false);
    if (!from->r)
        return false;
    *to = run_pick(w, P_MAPPED | P_WRITE, 0, from->n, false);
    if (!to->r)
        return false;
    from->n = to->n;
    return from->r != to->r || from->at + from->n <= to->at || to->at + to->n <= from->at;
}

static void copied(struct worker *w, struct run from, struct run to, const char *how)
{
    for (uint32_t i = 0; i < to.n; i++) {
        struct page *a = run_page(from, i), *b = run_page(to, i);

        b->id = a->id;
        memcpy(b->version, a->version, sizeof(a->version));
        b->flags &= ~(uint32_t)P_MAYZERO;
    }
    note(w, how, false, run_addr(from), from.n * PAGE, run_addr(to), to.n * PAGE, 0);
}

bool op_copy(struct worker *w)
{
    struct run from, to;

    if (!pick_pair(w, 64, &from, &to))
        return false;
    memcpy((void *)run_addr(to), (void *)run_addr(from), to.n * PAGE);
    copied(w, from, to, "memcpy");
    return true;
}

/* Moves all of len bytes, however many calls it takes. */
static void transfer(struct worker *w, int fd, bool is_write, uint64_t addr, uint64_t len)
{
    uint64_t done = 0;

    while (done < len) {
        uint64_t part = (len - done) / 3;
        struct iovec v[2] = {{(void *)(addr + done), part},
                             {(void *)(addr + done + part), len - done - part}};
        ssize_t n = is_write ? writev(fd, v, 2) : readv(fd, v, 2);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            torture_fail(w, addr + done, "%s of %lu bytes at %lx: %s",
                         is_write ? "writev" : "readv", len - done, addr + done,
                         n ? strerror(errno) : "end of file");
        done += (uint64_t)n;
    }
}

bool op_pipe(struct worker *w)
{
    struct run from, to;

    if (!pick_pair(w, PIPE_PAGES, &from, &to))
        return false;
    transfer(w, w->pipe[1], true, run_addr(from), from.n * PAGE);
    transfer(w, w->pipe[0], false, run_addr(to), to.n * PAGE);
    copied(w, from, to, "pipe");
    return true;
}

bool op_file(struct worker *w)
{
    uint64_t len, off = worker_random(w, 256) * PAGE;
    struct run from, to;
    ssize_t n;

    if (!pick_pair(w, 128, &from, &to))
        return false;
    len = from.n * PAGE;
    n = pwrite(w->file, (void *)run_addr(from), len, (off_t)off);
    if (n != (ssize_t)len)
        torture_fail(w, run_addr(from), "pwrite of %lu bytes: %zd, %s", len, n, strerror(errno));
    n = pread(w->file, (void *)run_addr(to), len, (off_t)off);
    if (n != (ssize_t)len)
        torture_fail(w, run_addr(to), "pread of %lu bytes: %zd, %s", len, n, strerror(errno));
    copied(w, from, to, "file");
    return true;
}

bool op_common(struct worker *w)
{
    uint32_t n = worker_length(w, 64), at = (uint32_t)worker_random(w, common.n);
    static const int advices[] = {MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED};

    if (at + n > common.n)
        n = common.n - at;
    for (uint32_t i = 0; i < n; i++)
        page_verify(w, &common, at + i);
    if (worker_chance(w, 20))
        call_madvise(w, page_addr(&common, at), n * PAGE, advices[worker_random(w, 3)]);
    return true;
}

void expect_no_access(struct worker *w, uint64_t addr, bool write_access)
{
    char byte = 1;
    ssize_t n;

    if (write_access) {
        transfer(w, w->pipe[1], true, (uint64_t)&byte, 1);
        n = read(w->pipe[0], (void *)addr, 1);
    } else {
        n = write(w->pipe[1], (void *)addr, 1);
    }
    if (n != -1 || errno != EFAULT)
        torture_fail(w, addr, "%s of memory without that right: %zd, %s",
                     write_access ? "write" : "read", n, n < 0 ? strerror(errno) : "done");
    if (write_access)
        transfer(w, w->pipe[0], false, (uint64_t)&byte, 1);
}

/* Memory without rights: neither the program nor the kernel for it may read or write. */
bool op_probe(struct worker *w)
{
    bool write_access = worker_chance(w, 50);
    struct run run = run_pick(w, P_MAPPED, write_access ? P_WRITE : P_READ, 1, false);

    if (!run.r)
        return false;
    expect_no_access(w, run_addr(run), write_access);
    return true;
}
