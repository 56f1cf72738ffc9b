/* Private and shared file mappings are the kernel's: under pressure they stay as they are. */
#include "../lib/edmtest.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN (256 * EDMTEST_PAGE)

static int make_file(uint64_t seed)
{
    static char buf[LEN];
    int fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    EXPECT(fd >= 0, "temporary file: %m");
    edmtest_fill(buf, LEN, seed);
    EXPECT(write(fd, buf, LEN) == LEN, "temporary file: %m");
    return fd;
}

static char *map_file(int fd, int flags)
{
    char *p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, flags, fd, 0);

    EXPECT(p != MAP_FAILED, "mmap of a file: %m");
    return p;
}

int main(void)
{
    static char buf[LEN];
    char *priv, *share, *anon, *untouched;
    int fd;

    edmtest_begin("faults_file_mappings", 60);
    fd = make_file(1);
    priv = map_file(fd, MAP_PRIVATE);
    share = map_file(make_file(2), MAP_SHARED);
    untouched = map_file(fd, MAP_PRIVATE);
    anon = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(anon != MAP_FAILED, "mmap: %m");
    edmtest_expect(priv, LEN, 1, "private mapping");
    edmtest_expect(share, LEN, 2, "shared mapping");
    edmtest_fill(priv, LEN, 3);
    edmtest_fill(share, LEN, 4);
    edmtest_fill(anon, LEN, 5);
    edmtest_pressure();
    EXPECT(edmtest_present(priv, LEN) == LEN / EDMTEST_PAGE,
           "dirty pages of a private file mapping were taken away");
    edmtest_expect(priv, LEN, 3, "private mapping after a write");
    edmtest_expect(share, LEN, 4, "shared mapping after a write");
    edmtest_expect(anon, LEN, 5, "shared anonymous mapping");
    edmtest_expect(untouched, LEN, 1, "private mapping, never written");
    EXPECT(pread(fd, buf, LEN, 0) == LEN, "pread: %m");
    edmtest_expect(buf, LEN, 1, "file under a private mapping");
    EXPECT_CALL(madvise(priv, LEN, MADV_DONTNEED));
    edmtest_expect(priv, LEN, 1, "private mapping after DONTNEED");
    edmtest_pressure_check();
    edmtest_ok();
}
