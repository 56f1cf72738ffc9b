/*
 * Disk of the page store: one unnamed file of 4 KiB blocks. Space is allocated before it is
 * written, so that a full disk is noticed in time.
 *
 * The caller holds its lock in every call but store_disk_extend_run, _write and _read. Only one
 * thread takes blocks, extends, trims and writes (XPET); any thread reads.
 */
#ifndef EDM_STORE_DISK_H
#define EDM_STORE_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DISK_BLOCK_SIZE 4096u

enum disk_fault {
    DISK_FAULT_NONE,
    DISK_FAULT_EIO,
    DISK_FAULT_ENOSPC,
    DISK_FAULT_SHORT,
    DISK_FAULT_READ
};

struct store_disk {
    int fd;
    uint32_t wanted;   /* blocks by setting */
    uint32_t mapped;   /* blocks that map has room for */
    uint32_t capacity; /* blocks that can be had: less when the file system is full */
    uint32_t granted;  /* blocks allocated in the file */
    uint32_t used;
    uint32_t cursor;      /* where the next search starts */
    uint64_t *map;        /* bit set: block in use */
    uint32_t *group_used; /* blocks in use of each group */
    bool crowded;         /* only short runs are free, and the file may grow */
    bool bad;             /* a write failed: nothing is written any more */
    bool told;            /* that the disk is full */
    enum disk_fault fault;
};

#define DISK_PATH_DEFAULT "/var/tmp/edm"

/*
 * Makes folder path (0700) when missing and the file in it. The default path may be another user's,
 * who came first: the file, which has no name, is then made in the folder above, which is
 * everybody's. Returns 0, or -errno with a line in err. EDM_TEST_DISK_ERROR = EIO, ENOSPC, SHORT
 * (writing) or READ turns a fault on.
 */
int store_disk_init(struct store_disk *d, const char *path, uint64_t bytes, char *err,
                    size_t errlen);
void store_disk_fini(struct store_disk *d); /* nothing remains */

/* Takes over the file of a dead process, all blocks free until claimed. fd stays the caller's
 * when this fails. */
int store_disk_reopen(struct store_disk *d, int fd, uint64_t bytes);
/* The block is in use. False: there is none, or it is somebody else's. */
bool store_disk_claim(struct store_disk *d, uint32_t block);

/* Blocks that can still be written. */
uint32_t store_disk_room(const struct store_disk *d);
/* True when fewer than `want` blocks are free, or only scattered ones, and the file can grow. */
bool store_disk_wants_extend(const struct store_disk *d, uint32_t want);
/* Allocates more of the file: blocks gained, or -errno; what happened is for _end. */
int store_disk_extend_run(struct store_disk *d);
void store_disk_extend_end(struct store_disk *d, int outcome);
/* Gives the space of a file without blocks in use back. */
void store_disk_trim(struct store_disk *d);

/* Takes up to `want` neighbouring blocks; how many, and the first in *start. 0: none are free, or
 * the file is to be extended first, as few neighbours are. */
uint32_t store_disk_get(struct store_disk *d, uint32_t want, uint32_t *start);
void store_disk_put(struct store_disk *d, uint32_t block);
/* Marks the store bad after store_disk_write failed with err, and says so, once. */
void store_disk_fail(struct store_disk *d, int err);

/* buf aligned to 4096 (not for the reading of one block). 0 or -errno; what is short is -EIO. */
int store_disk_write(struct store_disk *d, uint32_t block, uint32_t n, const void *buf);
int store_disk_read(struct store_disk *d, uint32_t block, uint32_t n, void *buf);

#endif
