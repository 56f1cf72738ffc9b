#include "lasting.h"
#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define HEADER_SIZE 4096u

struct header {
    uint32_t magic, layout;
    uint64_t item;
};

static size_t bytes_of(const struct lasting_kind *k)
{
    return HEADER_SIZE + k->item * k->n;
}

static int check(int fd, const struct lasting_kind *k)
{
    struct header h;
    struct stat st;
    if (fstat(fd, &st))
        return -errno;
    bool ours = S_ISREG(st.st_mode) && st.st_size == (off_t)bytes_of(k) &&
                pread(fd, &h, sizeof(h), 0) == (ssize_t)sizeof(h) && h.magic == k->magic &&
                h.layout == k->layout && h.item == k->item;
    return ours ? 0 : -EPROTO;
}

static int make(const struct lasting_kind *k)
{
    struct header h = {k->magic, k->layout, k->item};
    int fd = memfd_create(k->name, MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)bytes_of(k)) == 0 && pwrite(fd, &h, sizeof(h), 0) == sizeof(h))
        return fd;
    int err = -errno;
    close(fd);
    return err;
}

int lasting_open(struct lasting *t, int fd, const struct lasting_kind *k)
{
    int own = fd < 0 ? make(k) : fd;
    int err = fd < 0 ? (own < 0 ? own : 0) : check(fd, k);
    if (err)
        return err;
    void *p = mmap(NULL, bytes_of(k), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, own, 0);
    if (p == MAP_FAILED) {
        err = -errno;
        if (fd < 0)
            close(own);
        return err;
    }
    madvise(p, bytes_of(k), MADV_DONTDUMP);
    *t = (struct lasting){own, (char *)p + HEADER_SIZE, k->item, k->n};
    return 0;
}

bool lasting_next(const struct lasting *t, uint64_t *from, uint64_t *to)
{
    while (*to < t->n) {
        off_t at = (off_t)(HEADER_SIZE + *to * t->item);
        off_t data = lseek(t->fd, at, SEEK_DATA), hole = lseek(t->fd, data, SEEK_HOLE);
        if (data < 0 || hole < 0)
            return false;
        *from = *to;
        if (data > at)
            *from = (uint64_t)(data - HEADER_SIZE) / t->item;
        *to = ((uint64_t)hole - HEADER_SIZE + t->item - 1) / t->item;
        *to = *to < t->n ? *to : t->n;
        if (*to > *from)
            return true;
    }
    return false;
}
