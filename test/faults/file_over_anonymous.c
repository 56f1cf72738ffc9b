/* A file mapped over part of evicted anonymous memory, and anonymous memory over the file again. */
#include "../lib/edmtest.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN (64 * EDMTEST_PAGE)
#define PART (16 * EDMTEST_PAGE)

int main(void)
{
    static char buf[PART];
    int fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    struct edmtest_counters before;
    char *p, *q;

    edmtest_begin("faults_file_over_anonymous", 60);
    edmtest_fill(buf, PART, 7);
    EXPECT(fd >= 0 && write(fd, buf, PART) == PART, "temporary file: %m");
    p = edmtest_map(LEN);
    edmtest_fill(p, LEN, 1);
    edmtest_pressure();
    edmtest_evict(p, LEN);
    before = edmtest_now();
    q = p + PART;
    EXPECT(mmap(q, PART, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED, fd, 0) == q, "mmap: %m");
    edmtest_expect(q, PART, 7, "file");
    edmtest_expect(p, PART, 1, "before the file");
    q[5] = 99;
    EXPECT(pread(fd, buf, 16, 0) == 16 && buf[5] == 99, "a write did not reach the file");
    EXPECT(mmap(q, PART, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
               q,
           "mmap: %m");
    edmtest_expect_zero(q, PART, "anonymous memory over the file");
    edmtest_fill(q, PART, 8);
    if (edmtest_try_evict(q, PART, 1000))
        edmtest_expect(q, PART, 8, "anonymous memory over the file, evicted");
    edmtest_expect(q, PART, 8, "anonymous memory over the file");
    for (size_t i = 2 * PART; i < LEN; i += 8) { /* behind: the words of the first fill */
        static uint64_t copy[LEN / 8];

        if (i == 2 * PART)
            edmtest_fill(copy, LEN, 1);
        EXPECT(*(uint64_t *)(p + i) == copy[i / 8], "behind the file: wrong at %zu", i);
    }
    edmtest_came_back(&before, 2);
    EXPECT_CALL(munmap(p, LEN));
    edmtest_pressure_check();
    edmtest_ok();
}
