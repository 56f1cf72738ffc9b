/*
 * How much memory is there: the machine's, or the memory cgroup's limit where that is smaller.
 */
#include "config.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

/* Reads a small file as text. Returns its length or -1. No malloc, no stdio streams. */
static ssize_t slurp(const char *path, char *buf, size_t len)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0)
        return -1;
    n = read(fd, buf, len - 1);
    close(fd);
    if (n >= 0)
        buf[n] = '\0';
    return n;
}

/* The smallest limit of the cgroup root/path and those above it. */
static uint64_t least_limit(const char *root, char *path, const char *name, uint64_t least)
{
    for (;;) {
        char file[1200], text[64], *slash;

        snprintf(file, sizeof(file), "%s%s/%s", root, path, name);
        if (slurp(file, text, sizeof(text)) > 0 && text[0] >= '0' && text[0] <= '9') {
            uint64_t v = strtoull(text, NULL, 10);

            if (v < least)
                least = v;
        }
        slash = strrchr(path, '/');
        if (!slash)
            return least;
        *slash = '\0';
    }
}

uint64_t edm_memory_total(void)
{
    struct sysinfo si;
    char text[4096], *save = NULL;
    uint64_t total;

    if (sysinfo(&si))
        return 0;
    total = (uint64_t)si.totalram * si.mem_unit;
    if (slurp("/proc/self/cgroup", text, sizeof(text)) <= 0)
        return total;
    for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
        char *kind = strchr(l, ':'), *path = kind ? strchr(kind + 1, ':') : NULL;
        char buf[1024];

        if (!path)
            continue;
        *path++ = '\0';
        kind++;
        snprintf(buf, sizeof(buf), "%s", path);
        if (!*kind)
            total = least_limit("/sys/fs/cgroup", buf, "memory.max", total);
        else if (!strcmp(kind, "memory"))
            total = least_limit("/sys/fs/cgroup/memory", buf, "memory.limit_in_bytes", total);
    }
    return total;
}
