#include "uffd.h"
#include "../preload/uffd_abi.h"
#include "proto/proto.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

bool uffd_is_one(int fd)
{
    static const char name[] = "anon_inode:[userfaultfd]";
    char path[40], to[sizeof(name)];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return readlink(path, to, sizeof(to)) == sizeof(name) - 1 &&
           memcmp(to, name, sizeof(name) - 1) == 0;
}

bool uffd_is_of_proc(int fd)
{
    struct statfs st;
    return fstatfs(fd, &st) == 0 && st.f_type == PROC_SUPER_MAGIC;
}

int uffd_api(int fd, uint64_t *features)
{
    const uint64_t must = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
                          UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP |
                          UFFD_FEATURE_THREAD_ID;
    const uint64_t more[] = {UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_POISON,
                             UFFD_FEATURE_PAGEFAULT_FLAG_WP, 0};
    int err = -EINVAL;
    for (unsigned i = 0; i < sizeof(more) / sizeof(*more); i++) {
        struct uffdio_api api = {.api = UFFD_API, .features = must | more[i]};
        if (ioctl(fd, UFFDIO_API, &api) == 0) {
            *features = must | more[i];
            return 0;
        }
        err = -errno;
        if (err == -EPERM)
            break;
    }
    return err;
}

void uffd_set_nonblock(int fd)
{
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

int uffd_register(int fd, uint64_t start, uint64_t len, int mode)
{
    struct uffdio_register r = {.range = {start, len}};
    if (mode & UFFD_MISSING)
        r.mode |= UFFDIO_REGISTER_MODE_MISSING;
    if (mode & UFFD_WP)
        r.mode |= UFFDIO_REGISTER_MODE_WP;
    return ioctl(fd, UFFDIO_REGISTER, &r) ? -errno : 0;
}

int uffd_unregister(int fd, uint64_t start, uint64_t len)
{
    struct uffdio_range r = {start, len};
    return ioctl(fd, UFFDIO_UNREGISTER, &r) ? -errno : 0;
}

int uffd_copy(int fd, uint64_t dst, const void *src, uint32_t npages, bool wake, uint32_t *done)
{
    struct uffdio_copy c = {.dst = dst,
                            .src = (uintptr_t)src,
                            .len = (uint64_t)npages << EDM_PAGE_SHIFT,
                            .mode = wake ? 0 : UFFDIO_COPY_MODE_DONTWAKE};
    int err = ioctl(fd, UFFDIO_COPY, &c) ? -errno : 0;
    uint32_t n = err == 0 ? npages : c.copy > 0 ? (uint32_t)(c.copy >> EDM_PAGE_SHIFT) : 0;
    if (done)
        *done = n;
    return err;
}

int uffd_zero(int fd, uint64_t dst, uint32_t npages)
{
    struct uffdio_zeropage z = {.range = {dst, (uint64_t)npages << EDM_PAGE_SHIFT}};
    return ioctl(fd, UFFDIO_ZEROPAGE, &z) ? -errno : 0;
}

int uffd_wake(int fd, uint64_t start, uint64_t len)
{
    struct uffdio_range r = {start, len};
    return ioctl(fd, UFFDIO_WAKE, &r) ? -errno : 0;
}

int uffd_protect(int fd, uint64_t start, uint64_t len, bool on)
{
    struct uffdio_writeprotect w = {.range = {start, len},
                                    .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
    return ioctl(fd, UFFDIO_WRITEPROTECT, &w) ? -errno : 0;
}

int uffd_poison(int fd, uint64_t start, uint64_t len)
{
    struct uffdio_poison p = {.range = {start, len}};
    return ioctl(fd, UFFDIO_POISON, &p) ? -errno : 0;
}

/* The instance shares the descriptor's O_NONBLOCK: the call itself says that it does not wait. */
int uffd_read(int fd, struct uffd_msg *msgs, int max)
{
    static atomic_bool is_old; /* before Linux 6.10, where the flag is all there is */
    struct iovec iov = {msgs, (size_t)max * sizeof(*msgs)};
    ssize_t n = -1;
    bool old = atomic_load_explicit(&is_old, memory_order_relaxed);
    if (!old && (n = preadv2(fd, &iov, 1, -1, RWF_NOWAIT)) < 0 && errno == EOPNOTSUPP)
        atomic_store(&is_old, old = true);
    if (old)
        n = read(fd, msgs, iov.iov_len);
    return n <= 0 ? 0 : (int)((size_t)n / sizeof(*msgs));
}

#define PM_PRESENT (1ull << 63)
#define PM_SWAPPED (1ull << 62)

/* For kernels before 6.7. */
static int present_pagemap(int fd, uint64_t start, uint32_t npages, uint64_t *bits)
{
    uint64_t entries[EDM_CHUNK_PAGES];
    ssize_t want = (ssize_t)(npages * sizeof(*entries));
    ssize_t n = pread(fd, entries, (size_t)want, (off_t)((start >> EDM_PAGE_SHIFT) * 8));
    if (n != want)
        return n < 0 ? -errno : -EIO;
    for (uint32_t i = 0; i < npages; i++)
        if (entries[i] & (PM_PRESENT | PM_SWAPPED))
            bits[i / 64] |= 1ull << (i % 64);
    return 0;
}

static long pagemap_scan(int fd, uint64_t start, uint64_t end, uint64_t inverted,
                         struct page_region *vec, uint64_t nvec, uint64_t *walked)
{
    struct pm_scan_arg a = {.size = sizeof(a),
                            .start = start,
                            .end = end,
                            .vec = (uintptr_t)vec,
                            .vec_len = nvec,
                            .category_inverted = inverted,
                            .category_mask = inverted,
                            .category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                            .return_mask = PAGE_IS_PRESENT};
    long n = ioctl(fd, PAGEMAP_SCAN, &a);
    *walked = a.walk_end;
    return n < 0 ? -errno : n;
}

int uffd_present(int pagemap_fd, uint64_t start, uint32_t npages, uint64_t *bits)
{
    struct page_region vec[EDM_CHUNK_PAGES / 2];
    uint64_t end = start + ((uint64_t)npages << EDM_PAGE_SHIFT), walked = start;
    memset(bits, 0, (npages + 63) / 64 * sizeof(*bits));
    while (walked < end) {
        long n = pagemap_scan(pagemap_fd, walked, end, 0, vec, EDM_CHUNK_PAGES / 2, &walked);
        if (n == -ENOTTY || n == -EINVAL)
            return present_pagemap(pagemap_fd, start, npages, bits);
        if (n < 0)
            return (int)n;
        for (long r = 0; r < n; r++)
            for (uint64_t a = vec[r].start; a < vec[r].end; a += EDM_PAGE_SIZE) {
                uint64_t i = (a - start) >> EDM_PAGE_SHIFT;
                bits[i / 64] |= 1ull << (i % 64);
            }
    }
    return 0;
}

int uffd_next_present(int pagemap_fd, uint64_t *addr, uint64_t end)
{
    struct page_region first;
    uint64_t walked;
    long n = pagemap_scan(pagemap_fd, *addr, end, 0, &first, 1, &walked);
    if (n == -ENOTTY || n == -EINVAL)
        return 0;
    if (n < 0)
        return (int)n;
    *addr = n ? first.start : end;
    return 0;
}

int64_t uffd_count(int pagemap_fd, uint64_t start, uint64_t end)
{
    struct page_region vec[128];
    int64_t sum = 0;
    for (uint64_t walked = start; walked < end;) {
        long n = pagemap_scan(pagemap_fd, walked, end, PAGE_IS_PFNZERO, vec, 128, &walked);
        if (n < 0)
            return n;
        for (long r = 0; r < n; r++)
            sum += (int64_t)((vec[r].end - vec[r].start) >> EDM_PAGE_SHIFT);
    }
    return sum;
}

int uffd_next_mapping(int maps_fd, uint64_t addr, uint64_t *start, uint64_t *end, bool *anonymous)
{
    struct procmap_query q = {
        .size = sizeof(q), .query_addr = addr, .query_flags = PROCMAP_QUERY_COVERING_OR_NEXT_VMA};
    if (ioctl(maps_fd, PROCMAP_QUERY, &q))
        return -errno;
    bool shared = q.vma_flags & PROCMAP_QUERY_VMA_SHARED;
    *start = q.vma_start;
    *end = q.vma_end;
    *anonymous = !shared && q.inode == 0 && q.dev_major == 0 && q.dev_minor == 0;
    return 0;
}

int uffd_rights(int maps_fd, uint64_t addr)
{
    struct procmap_query q = {.size = sizeof(q), .query_addr = addr};
    if (ioctl(maps_fd, PROCMAP_QUERY, &q))
        return -errno;
    return (q.vma_flags & PROCMAP_QUERY_VMA_READABLE ? PROT_READ : 0) |
           (q.vma_flags & PROCMAP_QUERY_VMA_WRITABLE ? PROT_WRITE : 0) |
           (q.vma_flags & PROCMAP_QUERY_VMA_EXECUTABLE ? PROT_EXEC : 0);
}
