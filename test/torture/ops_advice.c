/* madvise and mlock. */
#include "torture.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_DODUMP
#define MADV_DODUMP 17
#endif

static void expect_done(struct worker *w, struct run run, long ret, const char *what)
{
    if (ret)
        torture_fail(w, run_addr(run), "%s of %u pages: %s", what, run.n, strerror((int)-ret));
}

/* Locked memory is not given up: EINVAL, and nothing changes. */
static bool dontneed_locked(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED | P_LOCKED, 0, 8, false);
    long ret;

    if (!run.r)
        return false;
    ret = call_madvise(w, run_addr(run), run.n * PAGE, MADV_DONTNEED);
    if (ret != -EINVAL)
        torture_fail(w, run_addr(run), "DONTNEED of locked memory: %ld", ret);
    region_verify(w, run.r);
    return true;
}

bool op_dontneed(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED, P_LOCKED, w->region_max, false);

    if (!run.r || worker_chance(w, 5))
        return dontneed_locked(w);
    expect_done(w, run, call_madvise(w, run_addr(run), run.n * PAGE, MADV_DONTNEED), "DONTNEED");
    for (uint32_t i = 0; i < run.n; i++) {
        struct page *p = run_page(run, i);

        if (p->flags & (P_FILE | P_SHARED))
            page_from_file(p, p->file_page);
        else
            page_zero(p);
    }
    return true;
}

bool op_free(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED, P_LOCKED | P_FILE | P_SHARED, w->region_max, false);

    if (!run.r)
        return false;
    expect_done(w, run, call_madvise(w, run_addr(run), run.n * PAGE, MADV_FREE), "MADV_FREE");
    for (uint32_t i = 0; i < run.n; i++)
        run_page(run, i)->flags |= P_MAYZERO;
    return true;
}

bool op_remove(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED, P_FILE | P_SHARED, 64, false);
    long ret;

    if (!run.r)
        return false;
    ret = call_madvise(w, run_addr(run), run.n * PAGE, MADV_REMOVE);
    if (ret != -EINVAL)
        torture_fail(w, run_addr(run), "MADV_REMOVE of private memory: %ld", ret);
    return true;
}

/* Advice that changes no contents, whatever it answers. */
static bool harmless(struct worker *w, uint32_t max, int advice)
{
    struct run run = run_pick(w, P_MAPPED, 0, max, false);

    return run.r && call_madvise(w, run_addr(run), run.n * PAGE, advice) == 0;
}

bool op_willneed(struct worker *w)
{
    return harmless(w, 256, MADV_WILLNEED);
}

bool op_cold(struct worker *w)
{
    return harmless(w, w->region_max, MADV_COLD);
}

bool op_pageout(struct worker *w)
{
    return harmless(w, w->region_max, MADV_PAGEOUT);
}

bool op_hugepage(struct worker *w)
{
    static const int advices[] = {MADV_HUGEPAGE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLLAPSE};

    return harmless(w, w->region_max, advices[worker_random(w, 4)]);
}

bool op_dontdump(struct worker *w)
{
    return harmless(w, 256, worker_chance(w, 50) ? MADV_DONTDUMP : MADV_DODUMP);
}

bool op_populate_read(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED | P_READ, 0, 128, false);

    if (!run.r)
        return false;
    expect_done(w, run, call_madvise(w, run_addr(run), run.n * PAGE, MADV_POPULATE_READ),
                "POPULATE_READ");
    return true;
}

bool op_populate_write(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED | P_WRITE, 0, 128, false);

    if (!run.r)
        return false;
    expect_done(w, run, call_madvise(w, run_addr(run), run.n * PAGE, MADV_POPULATE_WRITE),
                "POPULATE_WRITE");
    return true;
}

/* DONTFORK, DOFORK, WIPEONFORK, KEEPONFORK: by libc only, since they raise no event. */
bool op_forkadvice(struct worker *w)
{
    static const struct {
        int advice;
        uint32_t set, clear;
        const char *name;
    } kinds[] = {{MADV_DONTFORK, P_DONTFORK, 0, "DONTFORK"},
                 {MADV_DOFORK, 0, P_DONTFORK, "DOFORK"},
                 {MADV_WIPEONFORK, P_WIPE, 0, "WIPEONFORK"},
                 {MADV_KEEPONFORK, 0, P_WIPE, "KEEPONFORK"}};
    size_t k = worker_random(w, 4);
    struct run run = run_pick(w, P_MAPPED, P_FILE | P_SHARED, 64, false);
    long ret;

    /* what libc's advice asked for is not known any more where a raw mremap takes it (README) */
    if (!run.r || settings.calls != CALLS_LIBC || !call_may_libc(w))
        return false;
    ret = madvise((void *)run_addr(run), run.n * PAGE, kinds[k].advice) ? -errno : 0;
    note(w, kinds[k].name, false, run_addr(run), run.n * PAGE, 0, 0, ret);
    expect_done(w, run, ret, kinds[k].name);
    for (uint32_t i = 0; i < run.n; i++) {
        run_page(run, i)->flags |= kinds[k].set;
        run_page(run, i)->flags &= ~kinds[k].clear;
    }
    return true;
}

static void expect_in_core(struct worker *w, struct run run)
{
    unsigned char in_core[LOCK_PAGES_MAX];

    if (mincore((void *)run_addr(run), run.n * PAGE, in_core))
        torture_fail(w, run_addr(run), "mincore: %s", strerror(errno));
    for (uint32_t i = 0; i < run.n; i++)
        if (!(in_core[i] & 1))
            torture_fail(w, run_addr(run) + i * PAGE, "locked page is not in memory");
}

bool op_lock(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED | P_READ, P_LOCKED | P_FILE | P_SHARED, 8, false);
    long ret;

    if (!run.r || !call_may_libc(w) || w->locked + run.n > LOCK_PAGES_MAX)
        return false;
    ret = mlock((void *)run_addr(run), run.n * PAGE) ? -errno : 0;
    note(w, "mlock", false, run_addr(run), run.n * PAGE, 0, 0, ret);
    if (ret == -EPERM || ret == -ENOMEM || ret == -EAGAIN) /* RLIMIT_MEMLOCK */
        return false;
    expect_done(w, run, ret, "mlock");
    expect_in_core(w, run);
    w->locked += run.n;
    for (uint32_t i = 0; i < run.n; i++)
        run_page(run, i)->flags |= P_LOCKED;
    return true;
}

bool op_unlock(struct worker *w)
{
    struct run run = run_pick(w, P_MAPPED | P_LOCKED, 0, 8, false);
    long ret;

    if (!run.r || !call_may_libc(w))
        return false;
    if (run_page(run, 0)->flags & P_READ)
        page_verify(w, run.r, run.at);
    ret = munlock((void *)run_addr(run), run.n * PAGE) ? -errno : 0;
    note(w, "munlock", false, run_addr(run), run.n * PAGE, 0, 0, ret);
    expect_done(w, run, ret, "munlock");
    w->locked -= run.n;
    for (uint32_t i = 0; i < run.n; i++)
        run_page(run, i)->flags &= ~(uint32_t)P_LOCKED;
    return true;
}
