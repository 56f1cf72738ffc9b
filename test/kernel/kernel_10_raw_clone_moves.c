/* Rule 10: a child made by a raw clone while evictions of its parent are under way moves the pages
 * before their outcome is known: they are at their new place then, and nothing at the old one. */
#include "../lib/edmtest.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LEN (2 * EDMTEST_MIB)
#define PIECE (16 * 4096ul)
#define ROUNDS 20

/* Moves the piece at `from` to `to`; false: the kernel would not. */
static bool move(char *from, char *to)
{
    return syscall(SYS_mremap, from, PIECE, PIECE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == (long)to;
}

static void child(char *p, char *to, uint64_t seed)
{
    static bool moved[LEN / PIECE];
    static char copy[LEN];
    pid_t parent = getppid();

    EXPECT_CALL(kill(parent, SIGSTOP)); /* its evictions stand still */
    for (size_t i = 0; i < LEN / PIECE; i++)
        moved[i] = move(p + i * PIECE, to + i * PIECE);
    EXPECT_CALL(kill(parent, SIGCONT));
    for (size_t i = 0; i < LEN / PIECE; i++)
        __builtin_memcpy(copy + i * PIECE, (moved[i] ? to : p) + i * PIECE, PIECE);
    edmtest_expect(copy, LEN, seed, "moved by a raw child");
    for (size_t i = 0; i < LEN / PIECE; i++)
        if (moved[i])
            EXPECT_CALL(syscall(SYS_madvise, to + i * PIECE, PIECE, MADV_DONTNEED));
    for (size_t i = 0; i < LEN / PIECE; i++)
        if (moved[i])
            edmtest_expect_zero(to + i * PIECE, PIECE, "discarded by a raw child");
    _exit(0);
}

int main(void)
{
    char *p, *to;

    edmtest_begin("kernel_10_raw_clone_moves", 90);
    edmtest_pressure();
    p = edmtest_map(LEN);
    to = edmtest_map(LEN);
    for (uint64_t round = 0; round < ROUNDS; round++) {
        long pid;

        edmtest_fill(p, LEN, round);
        EXPECT_CALL(madvise(p, LEN, MADV_PAGEOUT)); /* under way at the fork */
        pid = edmtest_raw_fork();
        EXPECT(pid >= 0, "clone: %ld", pid);
        if (pid == 0)
            child(p, to, round);
        edmtest_reap((pid_t)pid, "raw child");
        edmtest_expect(p, LEN, round, "parent");
    }
    edmtest_pressure_check();
    edmtest_ok();
}
