#include "store_disk.h"

#include "../config/log.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXTEND_BLOCKS 16384u /* 64 MiB */
#define EXTEND_MIN 64u
#define GROUP_BLOCKS 32768u
#define NAME_TRIES 16
#define SEARCH_BLOCKS (1u << 20) /* of the map, for a run */

/* ---- blocks ---- */

uint32_t store_disk_room(const struct store_disk *d)
{
    return d->bad || d->capacity <= d->used ? 0 : d->capacity - d->used;
}

bool store_disk_wants_extend(const struct store_disk *d, uint32_t want)
{
    return (d->granted - d->used < want || d->crowded) && d->granted < d->capacity;
}

/* First block at or after b that is free, below end; end when there is none. */
static uint32_t next_free(const struct store_disk *d, uint32_t b, uint32_t end)
{
    while (b < end) {
        if (b % GROUP_BLOCKS == 0 && d->group_used[b / GROUP_BLOCKS] == GROUP_BLOCKS) {
            b += GROUP_BLOCKS;
            continue;
        }
        uint64_t word = ~d->map[b / 64] >> (b % 64);
        if (word) {
            b += (uint32_t)__builtin_ctzll(word);
            break;
        }
        b = (b / 64 + 1) * 64;
    }
    return b < end ? b : end;
}

static bool block_used(const struct store_disk *d, uint32_t b)
{
    return d->map[b / 64] >> (b % 64) & 1;
}

struct run {
    uint32_t first, n;
};

/* The next run of free blocks at or after b; empty: none up to the end. */
static struct run run_next(const struct store_disk *d, uint32_t b, uint32_t want)
{
    struct run r = {next_free(d, b, d->granted), 0};
    while (r.n < want && r.first + r.n < d->granted && !block_used(d, r.first + r.n))
        r.n++;
    return r;
}

/* A run of `want` free blocks, or the longest of those near the cursor. */
static struct run run_search(const struct store_disk *d, uint32_t want)
{
    struct run best = {0, 0};
    uint32_t b = d->cursor;
    for (uint64_t seen = 0; seen < SEARCH_BLOCKS && seen <= d->granted && best.n < want;) {
        struct run r = run_next(d, b, want);
        if (r.n > best.n)
            best = r;
        seen += r.first + r.n - b + 1;
        b = r.n && r.first + r.n < d->granted ? r.first + r.n : 0;
    }
    return best;
}

uint32_t store_disk_get(struct store_disk *d, uint32_t want, uint32_t *start)
{
    uint32_t room = store_disk_room(d);
    if (want > room) /* a file taken over may be longer than what may be used */
        want = room;
    struct run r = run_search(d, want);
    /* pages written together are to be read together: better a file of twice the size */
    d->crowded = r.n < want && d->granted < d->capacity && d->used >= d->granted / 2;
    if (d->crowded)
        return 0;
    for (uint32_t b = r.first; b < r.first + r.n; b++) {
        d->map[b / 64] |= 1ull << (b % 64);
        d->group_used[b / GROUP_BLOCKS]++;
    }
    d->used += r.n;
    d->cursor = r.first + r.n < d->granted ? r.first + r.n : 0;
    *start = r.first;
    return r.n;
}

void store_disk_put(struct store_disk *d, uint32_t block)
{
    assert(block < d->granted && block_used(d, block));
    d->map[block / 64] &= ~(1ull << (block % 64));
    d->group_used[block / GROUP_BLOCKS]--;
    d->used--;
}

/* ---- space ---- */

int store_disk_extend_run(struct store_disk *d)
{
    uint32_t n = d->capacity - d->granted;
    if (n > EXTEND_BLOCKS)
        n = EXTEND_BLOCKS;
    off_t at = (off_t)d->granted * DISK_BLOCK_SIZE;
    int err = d->fault == DISK_FAULT_ENOSPC ? ENOSPC : 0;
    while (!err) {
        if (fallocate(d->fd, 0, at, (off_t)n * DISK_BLOCK_SIZE) == 0)
            return (int)n;
        if (errno == EOPNOTSUPP) /* then a full disk is seen by the write */
            return ftruncate(d->fd, at + (off_t)n * DISK_BLOCK_SIZE) ? -errno : (int)n;
        if (errno == EINTR)
            continue;
        if (n > EXTEND_MIN)
            n /= 2;
        else
            err = errno;
    }
    return -err;
}

void store_disk_extend_end(struct store_disk *d, int outcome)
{
    d->crowded = false;
    if (outcome >= 0) {
        d->cursor = d->granted;
        d->granted += (uint32_t)outcome;
        return;
    }
    d->capacity = d->granted;
    if (!d->told)
        edm_error("disk store: no more than %llu MiB can be had on disk_path (%s): pages that do "
                  "not fit stay in memory",
                  (unsigned long long)d->granted * DISK_BLOCK_SIZE >> 20, strerror(-outcome));
    d->told = true;
}

void store_disk_trim(struct store_disk *d)
{
    if (d->used || !d->granted || ftruncate(d->fd, 0))
        return;
    d->granted = d->cursor = 0;
    d->capacity = d->wanted;
}

/* ---- contents ---- */

void store_disk_fail(struct store_disk *d, int err)
{
    if (!d->bad)
        edm_error("disk store: writing failed (%s): nothing more is written there, pages stay in "
                  "memory; check disk_path",
                  strerror(-err));
    d->bad = true;
}

int store_disk_write(struct store_disk *d, uint32_t block, uint32_t n, const void *buf)
{
    size_t len = (size_t)n * DISK_BLOCK_SIZE;
    size_t ask = d->fault == DISK_FAULT_SHORT ? len / 2 / 512 * 512 : len;
    if (d->fault == DISK_FAULT_EIO)
        return -EIO;
    ssize_t got;
    do
        got = pwrite(d->fd, buf, ask, (off_t)block * DISK_BLOCK_SIZE);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return -errno;
    return (size_t)got == len ? 0 : -EIO;
}

int store_disk_read(struct store_disk *d, uint32_t block, uint32_t n, void *buf)
{
    _Alignas(DISK_BLOCK_SIZE) unsigned char page[DISK_BLOCK_SIZE]; /* O_DIRECT wants aligned */
    bool aligned = (uintptr_t)buf % DISK_BLOCK_SIZE == 0;
    size_t len = (size_t)n * DISK_BLOCK_SIZE;
    ssize_t got;
    assert(aligned || n == 1);
    if (d->fault == DISK_FAULT_READ)
        return -EIO;
    do
        got = pread(d->fd, aligned ? buf : page, len, (off_t)block * DISK_BLOCK_SIZE);
    while (got < 0 && errno == EINTR);
    if (got != (ssize_t)len)
        return -EIO;
    if (!aligned)
        memcpy(buf, page, sizeof page);
    return 0;
}

/* ---- start and end ---- */

static enum disk_fault fault_wanted(void)
{
    static const char *const names[] = {"", "EIO", "ENOSPC", "SHORT", "READ"};
    const char *s = getenv("EDM_TEST_DISK_ERROR");
    for (size_t i = 1; s && i < sizeof names / sizeof *names; i++)
        if (strcmp(s, names[i]) == 0)
            return (enum disk_fault)i;
    return DISK_FAULT_NONE;
}

static int folder_refuse(const char *path, const struct stat *st, char *err, size_t errlen)
{
    snprintf(err, errlen,
             "disk_path %s belongs to uid %u, mode %o: it must belong to uid %u and be writable by "
             "nobody else, or be sticky like /tmp",
             path, (unsigned)st->st_uid, (unsigned)st->st_mode & 07777, (unsigned)geteuid());
    return -EPERM;
}

/* Only what nobody else can change: our own folder, or one for all where each has only his own. */
static bool folder_is_safe(const struct stat *st)
{
    bool others = st->st_mode & 022, sticky = st->st_mode & S_ISVTX;
    return st->st_uid == geteuid() ? !others || sticky : st->st_uid == 0 && others && sticky;
}

/* Opens the folder, made if missing. */
static int folder_open(const char *path, char *err, size_t errlen)
{
    struct stat st = {0};
    if (mkdir(path, 0700) && errno != EEXIST) {
        int e = errno;
        snprintf(err, errlen, "disk_path %s cannot be made: %s: make it, or set another", path,
                 strerror(e));
        return -e;
    }
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int e = fd < 0 ? errno : fstat(fd, &st) ? errno : 0;
    if (e == 0 && folder_is_safe(&st))
        return fd;
    if (fd >= 0)
        close(fd);
    if (e == 0)
        return folder_refuse(path, &st, err, errlen);
    snprintf(err, errlen, "disk_path %s cannot be opened: %s: it must be a folder of your own",
             path, strerror(e));
    return -e;
}

/* The default path is not ours when another user's server made it first. */
static int folder_find(const char *path, char *err, size_t errlen)
{
    int fd = folder_open(path, err, errlen);
    if (fd >= 0 || strcmp(path, DISK_PATH_DEFAULT) != 0)
        return fd;
    char above[] = DISK_PATH_DEFAULT, unused[256];
    *strrchr(above, '/') = '\0';
    int other = folder_open(above, unused, sizeof unused);
    return other >= 0 ? other : fd;
}

/* For file systems without O_TMPFILE: a name that lives only for a moment. */
static int file_named(int dir, int flags)
{
    int fd = -EEXIST;
    for (int i = 0; i < NAME_TRIES && fd == -EEXIST; i++) {
        char name[40];
        uint64_t id;
        if (getrandom(&id, sizeof id, 0) != (ssize_t)sizeof id)
            return -EIO;
        snprintf(name, sizeof name, "store-%016llx", (unsigned long long)id);
        fd = openat(dir, name, O_CREAT | O_EXCL | O_NOFOLLOW | O_RDWR | O_CLOEXEC | flags, 0600);
        if (fd < 0)
            fd = -errno;
        if (fd >= 0 || fd == -EINVAL) /* refused for O_DIRECT after it was created */
            unlinkat(dir, name, 0);
    }
    return fd;
}

static int file_open(int dir)
{
    static const int flags[] = {O_DIRECT, 0};
    int fd = -1;
    for (size_t i = 0; i < 2 && fd < 0; i++) {
        fd = openat(dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC | flags[i], 0600);
        if (fd < 0)
            fd = -errno;
        if (fd == -EOPNOTSUPP || fd == -EISDIR || fd == -ENOENT)
            fd = file_named(dir, flags[i]);
    }
    return fd;
}

static int maps_init(struct store_disk *d)
{
    size_t groups = d->mapped / GROUP_BLOCKS + 1;
    void *p = mmap(NULL, groups * (GROUP_BLOCKS / 8), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return -ENOMEM;
    d->map = p;
    d->group_used = calloc(groups, sizeof *d->group_used);
    return d->group_used ? 0 : -ENOMEM;
}

static uint32_t blocks_of(uint64_t bytes)
{
    uint64_t blocks = bytes / DISK_BLOCK_SIZE;
    return blocks > UINT32_MAX / 2 ? UINT32_MAX / 2 : (uint32_t)blocks;
}

static void disk_reset(struct store_disk *d, uint64_t bytes)
{
    memset(d, 0, sizeof *d);
    d->fd = -1;
    d->wanted = d->capacity = d->mapped = blocks_of(bytes);
    d->fault = fault_wanted();
}

int store_disk_init(struct store_disk *d, const char *path, uint64_t bytes, char *err,
                    size_t errlen)
{
    disk_reset(d, bytes);
    int dir = folder_find(path, err, errlen);
    if (dir < 0)
        return dir;
    int rc = d->fd = file_open(dir);
    close(dir);
    if (rc >= 0)
        rc = maps_init(d);
    if (rc < 0) {
        snprintf(err, errlen, "disk_path %s: no file can be made there: %s", path, strerror(-rc));
        store_disk_fini(d);
        return rc;
    }
    return 0;
}

int store_disk_reopen(struct store_disk *d, int fd, uint64_t bytes)
{
    struct stat st;
    if (fstat(fd, &st))
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    disk_reset(d, bytes);
    d->granted = blocks_of((uint64_t)st.st_size);
    if (d->granted > d->mapped)
        d->mapped = d->granted;
    int rc = maps_init(d);
    if (rc)
        store_disk_fini(d);
    else
        d->fd = fd;
    return rc;
}

bool store_disk_claim(struct store_disk *d, uint32_t block)
{
    if (block >= d->granted || block_used(d, block))
        return false;
    d->map[block / 64] |= 1ull << (block % 64);
    d->group_used[block / GROUP_BLOCKS]++;
    d->used++;
    return true;
}

void store_disk_fini(struct store_disk *d)
{
    if (d->map)
        munmap(d->map, ((size_t)d->mapped / GROUP_BLOCKS + 1) * (GROUP_BLOCKS / 8));
    free(d->group_used);
    if (d->fd >= 0)
        close(d->fd);
    memset(d, 0, sizeof *d);
    d->fd = -1;
}
