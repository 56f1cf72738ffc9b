/* Rule 27: address space that EDM reserves or that was given back is left out of core dumps. */
#include "../lib/edmtest.h"
#include <string.h>
#include <sys/mman.h>

/* Bytes of private anonymous memory without rights that would go into a dump. */
static uint64_t dumped_reserve(void)
{
    static char line[512];
    FILE *f = fopen("/proc/self/smaps", "re");
    unsigned long start = 0, end = 0, inode;
    uint64_t total = 0;
    bool reserve = false;
    char perm[5];

    EXPECT(f, "/proc/self/smaps: %m");
    while (fgets(line, sizeof(line), f)) {
        if (sscanf(line, "%lx-%lx %4s %*x %*s %lu", &start, &end, perm, &inode) == 4)
            reserve = inode == 0 && strcmp(perm, "---p") == 0;
        else if (strncmp(line, "VmFlags:", 8) == 0 && reserve && !strstr(line, " dd"))
            total += end - start;
    }
    fclose(f);
    return total;
}

int main(void)
{
    size_t len;
    char *p;

    edmtest_begin("kernel_27_core_dump_size", 60);
    edmtest_pressure();
    len = 4 * edmtest_budget();
    for (int i = 0; i < 3; i++) {
        p = edmtest_map(len);
        edmtest_fill(p, len, 1);
        EXPECT_CALL(munmap(p, len));
    }
    EXPECT(dumped_reserve() < 1ul << 30, "%lu bytes of reserved address space would be dumped",
           dumped_reserve());
    edmtest_ok();
}
