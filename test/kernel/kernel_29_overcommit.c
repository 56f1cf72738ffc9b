/* Rule 29: memory that nobody could ever store is refused, as the kernel would; a reservation of
 * address space is not. */
#include "../lib/edmtest.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define HUGE_SIZE (32ul << 40)

int main(void)
{
    FILE *f;
    int mode = -1;
    char *p;

    edmtest_begin("kernel_29_overcommit", 60);
    f = fopen("/proc/sys/vm/overcommit_memory", "re");
    EXPECT(f && fscanf(f, "%d", &mode) == 1, "vm.overcommit_memory");
    fclose(f);
    if (mode == 1)
        edmtest_skip("vm.overcommit_memory is 1");
    for (int i = 0; i < 2; i++) {
        p = mmap(NULL, HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        EXPECT(p == MAP_FAILED && errno == ENOMEM, "32 TiB were given out by mmap");
        EXPECT(malloc(HUGE_SIZE) == NULL, "32 TiB were given out by malloc");
        p = mmap(NULL, 64ul << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        EXPECT(p != MAP_FAILED, "reserving address space: %m");
        EXPECT_CALL(mprotect(p + EDMTEST_MIB, EDMTEST_MIB, PROT_READ | PROT_WRITE));
        edmtest_fill(p + EDMTEST_MIB, EDMTEST_MIB, 1);
        edmtest_expect(p + EDMTEST_MIB, EDMTEST_MIB, 1, "in reserved address space");
        EXPECT_CALL(munmap(p, 64ul << 30));
        edmtest_pressure(); /* once before the program is attached, once after */
    }
    edmtest_ok();
}
