/*
 * Static arrays of the program, managed by `manage = "bss"`: they go and come back, in forked
 * children too; calls on parts of them; stacks and mutexes that the kernel does not wait for. This
 * program is not position independent, so that variables of libc are among them.
 */
#include "../lib/edmtest.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN (64 * EDMTEST_MIB)
#define PART (4 * EDMTEST_MIB)
#define STACK (256 * 1024ul)

static char area[LEN] __attribute__((aligned(4096)));
static char stack[STACK] __attribute__((aligned(4096)));
static pthread_mutex_t mutex;

static char *part(size_t i)
{
    return area + i * PART;
}

static void expect_parts(size_t from, const char *what)
{
    for (size_t i = from; i < LEN / PART; i++)
        edmtest_expect(part(i), PART, i, what);
}

static void goes_and_comes_back(void)
{
    struct edmtest_counters before;

    edmtest_expect_zero(area, PART, "never written");
    for (size_t i = 0; i < LEN / PART; i++)
        edmtest_fill(part(i), PART, i);
    edmtest_evicted_at_least(LEN - edmtest_budget());
    before = edmtest_now();
    expect_parts(0, "static array");
    edmtest_came_back(&before, (LEN - edmtest_budget()) / EDMTEST_PAGE);
}

static void forked(void)
{
    pid_t pid = fork();

    EXPECT_CALL(pid);
    if (pid == 0) {
        expect_parts(0, "in the child");
        edmtest_fill(part(0), PART, 100);
        edmtest_pressure();
        edmtest_expect(part(0), PART, 100, "written by the child");
        expect_parts(1, "in the child, later");
        _exit(0);
    }
    edmtest_reap(pid, "child");
    expect_parts(0, "after the child");
}

static void by_the_kernel(void)
{
    static char copy[PART]; /* managed, too */
    char path[] = "/tmp/edm-test-bss.XXXXXX";
    int fd = mkstemp(path);

    EXPECT_CALL(fd);
    unlink(path);
    edmtest_evict(part(3), PART);
    EXPECT(write(fd, part(3), PART) == (ssize_t)PART, "write: %m");
    edmtest_evict(copy, PART);
    EXPECT(pread(fd, copy, PART, 0) == (ssize_t)PART, "pread: %m");
    edmtest_expect(copy, PART, 3, "through a file");
    close(fd);
}

static void calls_on_parts(void)
{
    char *moved;

    EXPECT_CALL(madvise(part(1), PART, MADV_DONTNEED));
    edmtest_expect_zero(part(1), PART, "discarded");
    edmtest_fill(part(1), PART, 1);
    EXPECT_CALL(mprotect(part(2), PART, PROT_READ));
    edmtest_pressure();
    edmtest_expect(part(2), PART, 2, "read-only");
    EXPECT_CALL(mprotect(part(2), PART, PROT_READ | PROT_WRITE));
    moved = mremap(part(4), PART, 2 * PART, MREMAP_MAYMOVE, NULL);
    EXPECT(moved != MAP_FAILED && moved != part(4), "mremap: %m");
    edmtest_pressure();
    edmtest_expect(moved, PART, 4, "moved");
    edmtest_expect_zero(moved + PART, PART, "grown");
    EXPECT(mmap(part(4), PART, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                0) == part(4),
           "mmap: %m");
    edmtest_expect_zero(part(4), PART, "mapped anew");
    edmtest_fill(part(4), PART, 4);
    expect_parts(0, "after calls");
}

static void *work(void *arg)
{
    volatile char room[100000];

    for (size_t i = 0; i < sizeof(room); i++)
        room[i] = (char)(i * 7);
    madvise(stack, STACK, MADV_PAGEOUT);
    EXPECT(pthread_mutex_lock(&mutex) == 0, "lock");
    EXPECT(pthread_mutex_unlock(&mutex) == 0, "unlock");
    for (size_t i = 0; i < sizeof(room); i++)
        EXPECT(room[i] == (char)(i * 7), "the stack lost bytes");
    madvise(stack, STACK, MADV_PAGEOUT);
    return arg;
}

static void not_waited_for(void)
{
    pthread_mutexattr_t ma;
    pthread_attr_t a;
    pthread_t t;

    pthread_mutexattr_init(&ma);
    pthread_mutexattr_setprotocol(&ma, PTHREAD_PRIO_INHERIT);
    EXPECT(pthread_mutex_init(&mutex, &ma) == 0, "pthread_mutex_init");
    pthread_attr_init(&a);
    EXPECT(pthread_attr_setstack(&a, stack, STACK) == 0, "pthread_attr_setstack");
    for (int round = 0; round < 10; round++) {
        EXPECT(pthread_mutex_lock(&mutex) == 0, "lock");
        EXPECT(pthread_create(&t, &a, work, NULL) == 0, "pthread_create");
        edmtest_pressure();
        madvise(&mutex, sizeof(mutex), MADV_PAGEOUT);
        EXPECT(pthread_mutex_unlock(&mutex) == 0, "unlock");
        EXPECT(pthread_join(t, NULL) == 0, "pthread_join");
    }
}

int main(void)
{
    edmtest_begin("faults_bss", 80);
    EXPECT(getenv("PATH"), "no environment");
    goes_and_comes_back();
    forked();
    by_the_kernel();
    calls_on_parts();
    not_waited_for();
    expect_parts(0, "at the end");
    edmtest_ok();
}
