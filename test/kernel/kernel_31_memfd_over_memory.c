/* Rule 31: the program maps its own memfd into managed memory: that is not EDM's to page. */
#include "../lib/edmtest.h"
#include <sys/mman.h>
#include <unistd.h>

#define CHUNK (2 * EDMTEST_MIB)
#define PART (64 * EDMTEST_PAGE)

int main(void)
{
    static char buf[PART];
    char *room, *p, *q;
    int fd;

    edmtest_begin("kernel_31_memfd_over_memory", 60);
    edmtest_pressure();
    EXPECT_CALL(fd = memfd_create("own", MFD_CLOEXEC));
    EXPECT_CALL(ftruncate(fd, PART));
    room = edmtest_map(4 * CHUNK);
    p = (char *)(((uintptr_t)room + CHUNK - 1) & ~(CHUNK - 1));
    q = p + CHUNK / 2;
    for (uint64_t round = 0; round < 10; round++) {
        edmtest_fill(p, CHUNK / 2, round);
        EXPECT(mmap(q, PART, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED, fd, 0) == q,
               "mmap: %m");
        edmtest_fill(q, PART, 100 + round);
        edmtest_evict(p, CHUNK / 2);
        madvise(q, PART, MADV_PAGEOUT);
        edmtest_pressure_check(); /* leases and evictions around it */
        edmtest_expect(q, PART, 100 + round, "memfd");
        EXPECT(pread(fd, buf, PART, 0) == (ssize_t)PART, "pread: %m");
        edmtest_expect(buf, PART, 100 + round, "memfd by its descriptor");
        EXPECT_CALL(madvise(q, PART, MADV_DONTNEED)); /* shared: the contents stay */
        edmtest_expect(q, PART, 100 + round, "memfd after DONTNEED");
        edmtest_expect(p, CHUNK / 2, round, "managed memory before it");
        EXPECT(mmap(q, PART, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1,
                    0) == q,
               "mmap: %m");
        edmtest_expect_zero(q, PART, "anonymous memory in its place");
    }
    edmtest_ok();
}
