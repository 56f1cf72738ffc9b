/* Rule 13: MADV_WIPEONFORK memory is zero in a child, evicted or not; DONTFORK is not there. */
#include "../lib/edmtest.h"
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN (64 * EDMTEST_PAGE)

static void one(bool evicted, uint64_t seed)
{
    char *wipe = edmtest_map(LEN), *skip = edmtest_map(LEN), *back = edmtest_map(LEN);
    int fds[2];
    pid_t pid;

    EXPECT_CALL(pipe(fds));
    edmtest_fill(wipe, LEN, seed);
    edmtest_fill(skip, LEN, seed + 1);
    edmtest_fill(back, LEN, seed + 2);
    EXPECT_CALL(madvise(wipe, LEN, MADV_WIPEONFORK));
    EXPECT_CALL(madvise(skip, LEN, MADV_DONTFORK));
    EXPECT_CALL(madvise(back, LEN, MADV_WIPEONFORK));
    EXPECT_CALL(madvise(back, LEN, MADV_KEEPONFORK));
    if (evicted) {
        edmtest_evict(wipe, LEN);
        edmtest_evict(skip, LEN);
        edmtest_evict(back, LEN);
    }
    EXPECT_CALL(pid = fork());
    if (pid == 0) {
        edmtest_expect_zero(wipe, LEN, "WIPEONFORK in the child");
        edmtest_expect(back, LEN, seed + 2, "KEEPONFORK in the child");
        EXPECT(write(fds[1], skip, 1) == -1 && errno == EFAULT, "DONTFORK memory in the child");
        edmtest_fill(wipe, LEN, seed + 3);
        edmtest_expect(wipe, LEN, seed + 3, "written in the child");
        _exit(0);
    }
    edmtest_reap(pid, "child");
    edmtest_expect(wipe, LEN, seed, "WIPEONFORK in the parent");
    edmtest_expect(skip, LEN, seed + 1, "DONTFORK in the parent");
    edmtest_expect(back, LEN, seed + 2, "KEEPONFORK in the parent");
    munmap(wipe, LEN), munmap(skip, LEN), munmap(back, LEN);
    close(fds[0]), close(fds[1]);
}

/* The advice goes along when the memory is moved, to where memory is not managed (MAP_STACK) too.
 */
static void moved(int flags, bool advise_first, uint64_t seed)
{
    char *p = edmtest_map(LEN);
    char *to = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    pid_t pid;

    EXPECT(to != MAP_FAILED, "mmap: %m");
    edmtest_fill(p, LEN, seed);
    if (advise_first)
        EXPECT_CALL(madvise(p, LEN, MADV_WIPEONFORK));
    edmtest_evict(p, LEN);
    EXPECT(mremap(p, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap: %m");
    if (!advise_first)
        EXPECT_CALL(madvise(to, LEN, MADV_WIPEONFORK));
    EXPECT_CALL(pid = fork());
    if (pid == 0) {
        edmtest_expect_zero(to, LEN, "WIPEONFORK memory that was moved, in the child");
        _exit(0);
    }
    edmtest_reap(pid, flags ? "moved out, child" : "moved, child");
    edmtest_expect(to, LEN, seed, "WIPEONFORK memory that was moved, in the parent");
    EXPECT_CALL(munmap(to, LEN));
}

/* What mremap adds behind the moved memory is as its last page is. */
static void grown(int flags, uint64_t seed)
{
    char *p = edmtest_map(LEN);
    char *to =
        mmap(NULL, 2 * LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    pid_t pid;

    EXPECT(to != MAP_FAILED, "mmap: %m");
    edmtest_fill(p, LEN, seed);
    EXPECT_CALL(madvise(p, LEN, MADV_WIPEONFORK));
    EXPECT(mremap(p, LEN, 2 * LEN, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap: %m");
    edmtest_fill(to + LEN, LEN, seed + 1);
    EXPECT_CALL(pid = fork());
    if (pid == 0) {
        edmtest_expect_zero(to, 2 * LEN, "WIPEONFORK memory that was moved and grew, in the child");
        _exit(0);
    }
    edmtest_reap(pid, flags ? "moved out and grown, child" : "moved and grown, child");
    edmtest_expect(to + LEN, LEN, seed + 1, "what was grown, in the parent");
    EXPECT_CALL(munmap(to, 2 * LEN));
}

int main(void)
{
    struct edmtest_counters before;

    edmtest_begin("kernel_13_wipeonfork", 60);
    one(false, 1);
    grown(MAP_STACK, 190);
    edmtest_pressure();
    before = edmtest_now();
    one(false, 10);
    one(true, 20);
    for (int i = 0; i < 4; i++)
        moved(i & 1 ? MAP_STACK : 0, i & 2, 100 + (uint64_t)i * 10);
    grown(0, 200);
    grown(MAP_STACK, 210);
    edmtest_came_back(&before, 3 * LEN / EDMTEST_PAGE);
    edmtest_pressure_check();
    edmtest_ok();
}
