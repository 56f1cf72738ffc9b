#include "keep_off.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#define MET_MAX 8
#define REST_NS 1000000000ull

uint32_t keep_off_machine(void)
{
    char id[64];
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, id, sizeof(id));
    if (fd >= 0)
        close(fd);
    return n > 0 ? XXH32(id, (size_t)n, 0) : 0;
}

uint32_t keep_off_cpu(void)
{
    return (uint32_t)(sched_getcpu() + 1);
}

void keep_off_init(struct keep_off *k)
{
    *k = (struct keep_off){.machine = keep_off_machine()};
}

static void leave(struct keep_off *k, uint32_t cpu)
{
    cpu_set_t others;
    if (!k->off && sched_getaffinity(0, sizeof(k->all), &k->all))
        return; /* more CPUs than the set has room for */
    others = k->all;
    CPU_CLR(cpu - 1, &others);
    if (CPU_COUNT(&others) > 0)
        k->off = sched_setaffinity(0, sizeof(others), &others) == 0 || k->off;
}

void keep_off_asked(struct keep_off *k, uint32_t machine, uint32_t cpu, uint64_t now_ns)
{
    if (!machine || machine != k->machine)
        return;
    k->asked_ns = now_ns;
    k->met = cpu && cpu == keep_off_cpu() ? k->met + 1 : 0;
    if (k->met == MET_MAX) {
        k->met = 0;
        leave(k, cpu);
    }
}

void keep_off_tick(struct keep_off *k, uint64_t now_ns)
{
    if (!k->off || now_ns < k->asked_ns + REST_NS)
        return;
    sched_setaffinity(0, sizeof(k->all), &k->all);
    k->off = false;
}
