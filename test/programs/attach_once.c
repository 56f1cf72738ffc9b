/*
 * attach_once N: N times, one after the other, a child that executes `attach_once 0`.
 * attach_once 0: writes 16 MiB, checks it, ends.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS ((size_t)16 * 1024 * 1024 / sizeof(uint64_t))

static int work(void)
{
    uint64_t *p =
        mmap(NULL, WORDS * sizeof(*p), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return 2;
    for (size_t i = 0; i < WORDS; i++)
        p[i] = i * 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < WORDS; i++)
        if (p[i] != i * 0x9e3779b97f4a7c15u)
            return 3;
    return 0;
}

static int cycle(const char *self)
{
    int status;
    pid_t pid = vfork();

    if (pid == 0) {
        execl(self, self, "0", (char *)NULL);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return -1;
    return status;
}

int main(int argc, char **argv)
{
    long n = argc > 1 ? atol(argv[1]) : 0;

    if (n == 0)
        return work();
    for (long i = 0; i < n; i++) {
        int status = cycle(argv[0]);

        if (status) {
            fprintf(stderr, "cycle %ld: status %d\n", i, status);
            return 1;
        }
    }
    return 0;
}
