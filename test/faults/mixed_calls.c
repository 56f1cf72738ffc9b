/*
 * A program that uses libc's calls and raw system calls on the same memory: what the raw ones did
 * must be what the libc ones find.
 */
#include "../lib/edmtest.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PART (4 * EDMTEST_PAGE)

static long raw(long nr, long a, long b, long c, long d, long e, long f)
{
    long ret;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;

    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}

/* The new pages of a grown mapping have the rights of the old ones, whoever gave those. */
static void rights_of_grown_pages(void)
{
    for (int fixed = 0; fixed < 2; fixed++) {
        char *p = edmtest_map(PART), *to = edmtest_map(2 * PART), *q;

        EXPECT_CALL(mprotect(p, PART, PROT_READ));
        EXPECT(raw(SYS_mprotect, (long)p, PART, PROT_READ | PROT_WRITE, 0, 0, 0) == 0, "mprotect");
        edmtest_fill(p, PART, 1);
        edmtest_evict(p, PART);
        q = mremap(p, PART, 2 * PART, MREMAP_MAYMOVE | (fixed ? MREMAP_FIXED : 0), to);
        EXPECT(q != MAP_FAILED, "mremap: %m");
        edmtest_expect(q, PART, 1, "grown mapping");
        edmtest_expect_zero(q + PART, PART, "new pages");
        edmtest_fill(q + PART, PART, 2); /* SIGSEGV if the rights are wrong */
        edmtest_expect(q + PART, PART, 2, "new pages");
    }
}

static int make_file(char *buf)
{
    int fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    edmtest_fill(buf, PART, 7);
    EXPECT(fd >= 0 && write(fd, buf, PART) == (ssize_t)PART, "temporary file: %m");
    return fd;
}

/* A file mapped over managed memory by a raw call; then libc's calls replace or free it. */
static void raw_file_over_memory(void)
{
    static char buf[PART];
    int fd = make_file(buf);

    for (int how = 0; how < 4; how++) {
        char *p = edmtest_map(PART), *q;

        edmtest_fill(p, PART, 1);
        if (how & 1)
            edmtest_evict(p, PART);
        EXPECT(raw(SYS_mmap, (long)p, PART, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED, fd,
                   0) == (long)p,
               "raw mmap");
        edmtest_expect(p, PART, 7, "file");
        if (how & 2)
            q = mmap(p, PART, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1,
                     0);
        else
            q = munmap(p, PART) == 0 ? edmtest_map(PART) : MAP_FAILED;
        EXPECT(q != MAP_FAILED, "mmap: %m");
        edmtest_expect_zero(q, PART, "memory where the file was");
        edmtest_fill(q, PART, 8);
        EXPECT(pread(fd, buf, PART, 0) == (ssize_t)PART, "pread: %m");
        edmtest_expect(buf, PART, 7, "the file, after a write to memory");
        EXPECT_CALL(munmap(q, PART));
    }
    close(fd);
}

static void raw_unmap_and_advice(void)
{
    char *p = edmtest_map(3 * PART), *q;

    edmtest_fill(p, 3 * PART, 1);
    edmtest_evict(p, 3 * PART);
    EXPECT(raw(SYS_madvise, (long)p, PART, MADV_DONTNEED, 0, 0, 0) == 0, "raw madvise");
    EXPECT(raw(SYS_munmap, (long)(p + PART), PART, 0, 0, 0, 0) == 0, "raw munmap");
    edmtest_expect_zero(p, PART, "after raw DONTNEED");
    q = mmap(p + PART, PART, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1,
             0);
    EXPECT(q == p + PART, "mmap: %m");
    edmtest_expect_zero(q, PART, "mapped again after raw munmap");
    edmtest_fill(q, PART, 2);
    EXPECT_CALL(munmap(p, 3 * PART));
    q = edmtest_map(3 * PART);
    edmtest_expect_zero(q, 3 * PART, "new memory");
}

int main(void)
{
    edmtest_begin("faults_mixed_calls", 60);
    rights_of_grown_pages();
    raw_file_over_memory();
    edmtest_pressure();
    rights_of_grown_pages();
    raw_file_over_memory();
    raw_unmap_and_advice();
    edmtest_pressure_check();
    edmtest_ok();
}
