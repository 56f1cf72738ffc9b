#include "image.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define IMAGE_SIZE (IMAGE_CHUNKS_OFFSET + (uint64_t)IMAGE_CHUNKS * sizeof(struct chunk))

/* NULL with errno set when it cannot be. */
static struct image *image_map(int fd)
{
    void *at = mmap(NULL, IMAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

int image_create(int *fd, struct image **out)
{
    int f = memfd_create("edm-image", MFD_CLOEXEC);
    if (f < 0)
        return -errno;
    struct image *img = ftruncate(f, (off_t)IMAGE_SIZE) ? NULL : image_map(f);
    if (!img) {
        int err = -errno;
        close(f);
        return err;
    }
    img->magic = IMAGE_MAGIC;
    img->layout = IMAGE_LAYOUT;
    *fd = f;
    *out = img;
    return 0;
}

int image_open(int fd, struct image **out)
{
    struct stat st;
    if (fstat(fd, &st) || (uint64_t)st.st_size != IMAGE_SIZE)
        return -EPROTO;
    struct image *img = image_map(fd);
    if (!img)
        return -errno;
    if (img->magic != IMAGE_MAGIC || img->layout != IMAGE_LAYOUT || img->nchunks > IMAGE_CHUNKS) {
        image_close(img);
        return -EPROTO;
    }
    *out = img;
    return 0;
}

int image_fork_fd(const struct image *img, uint64_t id, uint32_t n)
{
    for (int i = 0; i < 2; i++)
        if (img->forks[i].server == id)
            return img->forks[i].fds[n];
    return (int)img->msgs[n].arg.fork.ufd;
}

void image_close(struct image *img)
{
    if (img)
        munmap(img, IMAGE_SIZE);
}
