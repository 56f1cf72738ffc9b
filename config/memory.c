/*
 * How much memory is there: the machine's, or the memory cgroup's limit where that is smaller.
 */
#include "config.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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

/* Lowers *least to the smallest limit of the cgroup root/path and those above it, and names that
 * cgroup by its inode. */
static void least_limit(const char *root, char *path, const char *name, uint64_t *least,
                        uint64_t *group)
{
    for (;;) {
        char file[1200], text[64], *slash;
        struct stat st;

        snprintf(file, sizeof(file), "%s%s/%s", root, path, name);
        if (slurp(file, text, sizeof(text)) > 0 && text[0] >= '0' && text[0] <= '9') {
            uint64_t v = strtoull(text, NULL, 10);

            if (v < *least && stat(file, &st) == 0) {
                *least = v;
                *group = st.st_ino;
            }
        }
        slash = strrchr(path, '/');
        if (!slash)
            return;
        *slash = '\0';
    }
}

uint64_t edm_memory_of(pid_t pid, uint64_t *group)
{
    struct sysinfo si;
    char text[4096], *save = NULL;
    uint64_t total;

    *group = 0;
    if (sysinfo(&si))
        return 0;
    total = (uint64_t)si.totalram * si.mem_unit;
    snprintf(text, sizeof(text), "/proc/%d/cgroup", (int)pid);
    if (slurp(text, text, sizeof(text)) <= 0)
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
            least_limit("/sys/fs/cgroup", buf, "memory.max", &total, group);
        else if (!strcmp(kind, "memory"))
            least_limit("/sys/fs/cgroup/memory", buf, "memory.limit_in_bytes", &total, group);
    }
    return total;
}

uint64_t edm_memory_total(void)
{
    uint64_t group;

    return edm_memory_of(getpid(), &group);
}
