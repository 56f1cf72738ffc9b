/*
 * fault_raw PAGES: the least that a fault costs when another process serves it: both kept on CPU 0,
 * one UFFDIO_COPY a fault from memory of as many pages, nothing else. Touches PAGES times a page
 * chosen at random. Prints microseconds per fault, the number of faults, and the 50th and 99th
 * percentile of the faults' times. Needs root.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void serve(int uffd, uint64_t start, uint64_t source, size_t n, int ready)
{
    volatile char *pages = (char *)source;
    struct pollfd p = {.fd = uffd, .events = POLLIN};
    struct uffd_msg m;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (size_t i = 0; i < n; i++) /* in this process's page table, as a store's are */
        (void)pages[i * PAGE];
    (void)!write(ready, "", 1);
    while (poll(&p, 1, -1) > 0)
        while (read(uffd, &m, sizeof(m)) == (ssize_t)sizeof(m)) {
            uint64_t at = m.arg.pagefault.address & ~(uint64_t)(PAGE - 1);
            struct uffdio_copy c = {.dst = at, .src = source + (at - start), .len = PAGE};
            ioctl(uffd, UFFDIO_COPY, &c);
        }
}

static int by_size(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* Touches n times one of the n pages; took[] gets the times of those that were missing. */
static size_t touch(char *m, size_t n, double *took)
{
    uint64_t state = 88172645463325252u;
    size_t faults = 0;
    for (size_t i = 0; i < n; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        volatile char *p = m + state % n * PAGE;
        double start = now_us();
        if (*p == 1) /* its first touch */
            took[faults++] = now_us() - start;
        *p = 2;
    }
    return faults;
}

int main(int argc, char **argv)
{
    size_t n = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    char *m = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *source = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register reg = {.range = {(uintptr_t)m, n * PAGE},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    if (!n || m == MAP_FAILED || source == MAP_FAILED || uffd < 0 ||
        ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg) ||
        sched_setaffinity(0, sizeof(one), &one)) {
        fprintf(stderr, "usage: fault_raw PAGES, as root\n");
        return 1;
    }
    memset(source, 1, n * PAGE);
    int ready[2];
    char byte;
    pid_t server = pipe(ready) ? -1 : fork();
    if (server == 0)
        serve(uffd, (uintptr_t)m, (uintptr_t)source, n, ready[1]);
    if (server < 0 || read(ready[0], &byte, 1) != 1)
        return 1;
    double begin = now_us(), *took = malloc(n * sizeof(*took));
    size_t faults = took ? touch(m, n, took) : 0;
    double all = now_us() - begin;
    kill(server, SIGKILL);
    if (!faults)
        return 1;
    qsort(took, faults, sizeof(*took), by_size);
    printf("%.2f %zu %.2f %.2f\n", all / (double)faults, faults, took[faults / 2],
           took[faults * 99 / 100]);
    return 0;
}
