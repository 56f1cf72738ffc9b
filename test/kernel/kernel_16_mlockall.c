/* Rule 16: mlockall, and a reader of everything that is mapped, end in reasonable time. */
#include "../lib/edmtest.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Reads a byte of every page that is mapped readable, by process-foreign means. */
static void read_everything(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    unsigned long start, end, pages = 0;
    static char line[512];
    char perm[5];

    EXPECT(maps && mem >= 0, "/proc/self: %m");
    while (fgets(line, sizeof(line), maps)) {
        if (sscanf(line, "%lx-%lx %4s", &start, &end, perm) != 3 || perm[0] != 'r')
            continue;
        for (unsigned long a = start; a < end && a < start + 64 * EDMTEST_MIB; a += EDMTEST_PAGE) {
            char byte;

            pages += pread(mem, &byte, 1, (off_t)a) == 1; /* evicted ones may give an error */
        }
    }
    EXPECT(pages > 100, "read %lu pages", pages);
    fclose(maps);
    close(mem);
}

int main(void)
{
    size_t len = 5 * edmtest_budget() / 2 / EDMTEST_PAGE * EDMTEST_PAGE;
    char *p;

    edmtest_begin("kernel_16_mlockall", 90);
    p = edmtest_map(len);
    edmtest_fill(p, len, 1);
    edmtest_evicted_at_least(edmtest_budget());
    read_everything();
    EXPECT_CALL(mlockall(MCL_CURRENT));
    EXPECT(edmtest_present(p, len) == len / EDMTEST_PAGE, "mlockall left pages out");
    edmtest_expect(p, len, 1, "locked");
    EXPECT_CALL(munlockall());
    edmtest_evict(p, 64 * EDMTEST_PAGE);
    edmtest_expect(p, len, 1, "unlocked");
    read_everything();
    edmtest_ok();
}
