/*
 * The only file that issues UFFDIO_* for the server. Every call returns 0 or -errno; what the
 * races with the program give is normal (KERNEL.md): -EAGAIN (an event waits to be read),
 * -EEXIST (somebody was faster), -ENOENT (not mapped, or not registered), -ESRCH (the process is
 * gone). Callable from any thread.
 */
#ifndef EDM_UFFD_H
#define EDM_UFFD_H

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdint.h>

#define UFFD_MISSING 1
#define UFFD_WP 2

/* Is it a userfaultfd, a file of procfs? A file of another kind may answer the calls here, and
 * reads, with anything, or never. */
bool uffd_is_one(int fd);
bool uffd_is_of_proc(int fd);
/* What was cleared by another process that has the descriptor: without it poll says POLLERR. */
void uffd_set_nonblock(int fd);
/* UFFDIO_API with every event and what else the kernel has; *features says which. */
int uffd_api(int fd, uint64_t *features);
int uffd_register(int fd, uint64_t start, uint64_t len, int mode);
int uffd_unregister(int fd, uint64_t start, uint64_t len);
/* Places npages from src; *done (may be NULL) counts those placed, also on error. */
int uffd_copy(int fd, uint64_t dst, const void *src, uint32_t npages, bool wake, uint32_t *done);
int uffd_zero(int fd, uint64_t dst, uint32_t npages);
int uffd_wake(int fd, uint64_t start, uint64_t len);
int uffd_protect(int fd, uint64_t start, uint64_t len, bool on);
int uffd_poison(int fd, uint64_t start, uint64_t len);
/* Non-blocking: number of messages, 0 when there are none. */
int uffd_read(int fd, struct uffd_msg *msgs, int max);

/*
 * Which pages of [start, start + 64*nwords pages) are present (or swapped out by the kernel):
 * bit i of bits[]. fd is the instance's pagemap.
 */
int uffd_present(int pagemap_fd, uint64_t start, uint32_t npages, uint64_t *bits);
/* Moves *addr on to the first present page below end, or to end. On kernels before 6.7 it stays. */
int uffd_next_present(int pagemap_fd, uint64_t *addr, uint64_t end);
/* Counts present pages, zero pages aside, in [start, end). */
int64_t uffd_count(int pagemap_fd, uint64_t start, uint64_t end);
/* PROT_* of the mapping at addr, -ENOENT when there is none, -ENOTTY on kernels before 6.11. */
int uffd_rights(int maps_fd, uint64_t addr);
/*
 * The first mapping that ends after addr: its range, and whether it is private anonymous memory.
 * -ENOENT when there is none, -ENOTTY on kernels before 6.11.
 */
int uffd_next_mapping(int maps_fd, uint64_t addr, uint64_t *start, uint64_t *end, bool *anonymous);

#endif
