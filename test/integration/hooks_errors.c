/*
 * Results and error numbers of memory calls, as the manual pages say, on memory from mmap. Run as
 * it is and with the shim preloaded. Each line of the table is one call.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

static int failures;

static void expect(const char *call, long got, int error, long want, int want_error)
{
    bool ok = got == want && (want != -1 || error == want_error);
    if (!ok) {
        printf("%s: %ld (%s), not %ld (%s)\n", call, got, strerrorname_np(error), want,
               strerrorname_np(want_error));
        failures++;
    }
}

#define CALL(call, want, want_error)                                                               \
    do {                                                                                           \
        errno = 0;                                                                                 \
        long got_ = (long)(call);                                                                  \
        expect(#call, got_, errno, (long)(want), want_error);                                      \
    } while (0)

static char *fresh(size_t pages)
{
    char *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        abort();
    return p;
}

static void mmap_calls(void)
{
    int anon = MAP_PRIVATE | MAP_ANONYMOUS;
    char *p = fresh(8);
    CALL(mmap(NULL, 0, PROT_READ, anon, -1, 0), -1, EINVAL);
    CALL(mmap(NULL, PAGE, PROT_READ, MAP_ANONYMOUS, -1, 0), -1, EINVAL);
    CALL(mmap(NULL, PAGE, PROT_READ, anon, -1, 1), -1, EINVAL);
    CALL(mmap(NULL, 1ul << 62, PROT_NONE, anon | MAP_NORESERVE, -1, 0), -1, ENOMEM);
    CALL(mmap(NULL, -PAGE + 1, PROT_NONE, anon, -1, 0), -1, ENOMEM);
    CALL(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, -1, 0), -1, EBADF);
    CALL(mmap(p + 1, PAGE, PROT_READ, anon | MAP_FIXED, -1, 0), -1, EINVAL);
    CALL(mmap(p, PAGE, PROT_READ, anon | MAP_FIXED_NOREPLACE, -1, 0), -1, EEXIST);
    CALL(mmap(p + PAGE, PAGE, PROT_READ, anon | MAP_FIXED, -1, 0), p + PAGE, 0);
    CALL(p[PAGE], 0, 0);
    CALL(munmap(p + 2 * PAGE, PAGE), 0, 0);
    CALL(mmap(p + 2 * PAGE, PAGE, PROT_READ | PROT_WRITE, anon | MAP_FIXED_NOREPLACE, -1, 0),
         p + 2 * PAGE, 0);
    p[2 * PAGE] = 1;
    CALL(mmap(p + 2 * PAGE, PAGE, PROT_READ | PROT_WRITE, anon | MAP_FIXED, -1, 0), p + 2 * PAGE,
         0);
    CALL(p[2 * PAGE], 0, 0);
    munmap(p + 4 * PAGE, 4 * PAGE);
    CALL(mmap(p + 4 * PAGE, PAGE, PROT_READ, anon, -1, 0), p + 4 * PAGE, 0); /* a hint */
    munmap(p, 8 * PAGE);
}

static void munmap_calls(void)
{
    char *p = fresh(8);
    CALL(munmap(p + 1, PAGE), -1, EINVAL);
    CALL(munmap(p, 0), -1, EINVAL);
    CALL(munmap((void *)-PAGE, 2 * PAGE), -1, EINVAL);
    CALL(munmap(p + 2 * PAGE, PAGE), 0, 0);
    CALL(munmap(p + 2 * PAGE, PAGE), 0, 0); /* nothing there: no error */
    CALL(munmap(p, 8 * PAGE), 0, 0);
    CALL(munmap(p, 8 * PAGE), 0, 0);
}

static void mprotect_calls(void)
{
    char *p = fresh(8);
    CALL(mprotect(p + 1, PAGE, PROT_READ), -1, EINVAL);
    CALL(mprotect(p, 0, PROT_READ), 0, 0);
    CALL(mprotect(p, PAGE, 0x40000), -1, EINVAL);
    CALL(mprotect(p, 8 * PAGE, PROT_READ), 0, 0);
    CALL(mprotect(p, 8 * PAGE, PROT_READ | PROT_WRITE), 0, 0);
    CALL(mprotect(p, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC), 0, 0);
    munmap(p + 3 * PAGE, PAGE);
    CALL(mprotect(p, 8 * PAGE, PROT_READ), -1, ENOMEM);
    CALL(mprotect(p + 3 * PAGE, PAGE, PROT_READ), -1, ENOMEM);
    munmap(p, 8 * PAGE);
}

static void madvise_calls(void)
{
    static const int known[] = {MADV_NORMAL,
                                MADV_RANDOM,
                                MADV_SEQUENTIAL,
                                MADV_WILLNEED,
                                MADV_FREE,
                                MADV_DONTFORK,
                                MADV_DOFORK,
                                MADV_WIPEONFORK,
                                MADV_KEEPONFORK,
                                MADV_DONTDUMP,
                                MADV_DODUMP,
                                MADV_COLD,
                                MADV_PAGEOUT,
                                MADV_HUGEPAGE,
                                MADV_NOHUGEPAGE,
                                MADV_MERGEABLE,
                                MADV_UNMERGEABLE,
                                22 /* POPULATE_READ */,
                                23 /* POPULATE_WRITE */,
                                24 /* DONTNEED_LOCKED */};
    char *p = fresh(8);
    CALL(madvise(p + 1, PAGE, MADV_DONTNEED), -1, EINVAL);
    CALL(madvise(p, PAGE, 12345), -1, EINVAL);
    CALL(madvise(p, 0, MADV_DONTNEED), 0, 0);
    CALL(madvise(p, PAGE, MADV_REMOVE), -1, EINVAL);
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        errno = 0;
        if (madvise(p, 2 * PAGE, known[i])) {
            printf("madvise %d: %s\n", known[i], strerrorname_np(errno));
            failures++;
        }
    }
    p[0] = 1;
    CALL(posix_madvise(p, PAGE, POSIX_MADV_DONTNEED), 0, 0);
    CALL(p[0], 1, 0);
    CALL(posix_madvise(p, PAGE, 777), EINVAL, 0);
    CALL(posix_madvise(p, PAGE, POSIX_MADV_WILLNEED), 0, 0);
    CALL(madvise(p, PAGE - 7, MADV_DONTNEED), 0, 0);
    CALL(p[0], 0, 0);
    p[0] = p[5 * PAGE] = 1;
    munmap(p + 3 * PAGE, PAGE);
    CALL(madvise(p, 8 * PAGE, MADV_DONTNEED), -1, ENOMEM);
    CALL(p[0] + p[5 * PAGE], 0, 0); /* done on both sides of the hole */
    CALL(madvise(p, 8 * PAGE, 12345), -1, EINVAL);
    munmap(p, 8 * PAGE);
}

static void mlock_calls(void)
{
    char *p = fresh(8);
    CALL(mlock(p + 100, PAGE), 0, 0);
    CALL(madvise(p, PAGE, MADV_DONTNEED), -1, EINVAL);
    CALL(munlock(p, 2 * PAGE), 0, 0);
    p[0] = 1;
    CALL(madvise(p, PAGE, MADV_DONTNEED), 0, 0);
    CALL(p[0], 0, 0);
    CALL(mlock2(p, PAGE, MLOCK_ONFAULT), 0, 0);
    CALL(mlock2(p, PAGE, 77), -1, EINVAL);
    CALL(mlock(p, 2 * PAGE), 0, 0);
    p[0] = 7;
    CALL(munmap(p, PAGE), 0, 0); /* locked memory given back... */
    CALL(mmap(p, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), p, 0);
    CALL(p[0], 0, 0); /* ...is new when it comes again */
    CALL(madvise(p, PAGE, MADV_DONTNEED), 0, 0);
    munmap(p + 3 * PAGE, PAGE);
    CALL(mlock(p + PAGE, 6 * PAGE), -1, ENOMEM);
    CALL(munlock(p + PAGE, 6 * PAGE), -1, ENOMEM);
    munmap(p, 8 * PAGE);
}

static void mremap_calls(void)
{
    char *p = fresh(8), *q = fresh(8);
    CALL(mremap(p + 1, PAGE, PAGE, 0), -1, EINVAL);
    CALL(mremap(p, PAGE, 0, 0), -1, EINVAL);
    CALL(mremap(p, PAGE, PAGE, 64), -1, EINVAL);
    CALL(mremap(p, PAGE, PAGE, MREMAP_FIXED, q), -1, EINVAL);
    CALL(mremap(p, PAGE, PAGE, MREMAP_DONTUNMAP), -1, EINVAL);
    CALL(mremap(p, PAGE, 2 * PAGE, MREMAP_DONTUNMAP | MREMAP_MAYMOVE), -1, EINVAL);
    CALL(mremap(p, 4 * PAGE, 4 * PAGE, MREMAP_FIXED | MREMAP_MAYMOVE, p + PAGE), -1, EINVAL);
    CALL(mremap(p, PAGE, PAGE, MREMAP_FIXED | MREMAP_MAYMOVE, q + 1), -1, EINVAL);
    CALL(mremap(p, 0, PAGE, MREMAP_MAYMOVE), -1, EINVAL);
    CALL(mremap(p, PAGE, 1ul << 60, MREMAP_MAYMOVE), -1, EINVAL);
    CALL(mremap(p, 8 * PAGE, 8 * PAGE, 0), p, 0);
    CALL(mremap(p, 8 * PAGE, 6 * PAGE, 0), p, 0);
    CALL(mremap(p, 4 * PAGE, 5 * PAGE, 0), -1, ENOMEM); /* page 4 is in the way */
    p[0] = 1;
    CALL(mremap(p, PAGE, PAGE, MREMAP_FIXED | MREMAP_MAYMOVE, q), q, 0);
    CALL(q[0], 1, 0);
    CALL(mremap(p, PAGE, PAGE, MREMAP_MAYMOVE), -1, EFAULT);
    CALL(mprotect(p, PAGE, PROT_READ), -1, ENOMEM);
    CALL(mremap(q, PAGE, PAGE, MREMAP_FIXED | MREMAP_MAYMOVE | MREMAP_DONTUNMAP, p), p, 0);
    CALL(p[0] * 10 + q[0], 10, 0);
    munmap(p, 8 * PAGE);
    munmap(q, 8 * PAGE);
}

/* A file mapped over part of anonymous memory, moved and given back. */
static void foreign_calls(void)
{
    char name[] = "/tmp/edm-hooks-XXXXXX", text[2 * PAGE];
    int fd = mkstemp(name);
    memset(text, 'f', sizeof(text));
    if (fd < 0 || unlink(name) || write(fd, text, sizeof(text)) != sizeof(text))
        abort();
    char *p = fresh(8), *q = fresh(8);
    memset(p, 'a', 8 * PAGE);
    CALL(mmap(p + 2 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0),
         p + 2 * PAGE, 0);
    CALL(p[2 * PAGE] + 1000 * p[PAGE] + 1000000 * p[4 * PAGE], 'f' + 1000 * 'a' + 1000000 * 'a', 0);
    p[3 * PAGE] = 'g';
    CALL(pread(fd, text, 1, PAGE), 1, 0);
    CALL(text[0], 'g', 0);
    CALL(mremap(p + 2 * PAGE, 2 * PAGE, 2 * PAGE, MREMAP_FIXED | MREMAP_MAYMOVE, q + PAGE),
         q + PAGE, 0);
    CALL(q[2 * PAGE], 'g', 0);
    CALL(mprotect(p + 2 * PAGE, PAGE, PROT_READ), -1, ENOMEM);
    CALL(munmap(q, 8 * PAGE), 0, 0);
    CALL(mmap(q, 8 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), q, 0);
    CALL(q[PAGE] + q[2 * PAGE], 0, 0);
    munmap(p, 8 * PAGE);
    munmap(q, 8 * PAGE);
    close(fd);
}

int main(void)
{
    /* The first small mappings of a process are not managed: have more. */
    if (mmap(NULL, 4ul << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
        abort();
    mmap_calls();
    munmap_calls();
    mprotect_calls();
    madvise_calls();
    mlock_calls();
    mremap_calls();
    foreign_calls();
    printf("%d failures\n", failures);
    return failures != 0;
}
