/*
 * The page store of a rank: keeps contents of pages that are not in any instance, in its memory
 * store (raw or LZ4), in its disk store, and moves them between the two (XPET). One store a
 * process. A page is named by a handle; the handle stays while the page moves from raw to LZ4 to
 * disk. Handles are counted: forked children share them.
 *
 * Threads: every call may be made from any thread. Only store_read may block on I/O; all others
 * are short and may be called under an instance's lock (lock order: instance, then store).
 */
#ifndef EDM_STORE_H
#define EDM_STORE_H

#include "../config/config.h"
#include <stdbool.h>
#include <stdint.h>

typedef uint32_t store_handle; /* 0 = none */

struct store_options {
    uint64_t
        memory_bytes;    /* capacity of the memory store; 0 = none (a few MiB in transit remain) */
    uint64_t disk_bytes; /* capacity of the disk store; 0 = none */
    char disk_path[512]; /* folder, made 0700 when missing */
    enum edm_compression compression;
    /* Called, without any store lock, when a store that had refused a page has room again, or
     * when both became full (full = true, once per filling). From XPET's thread. */
    void (*on_room)(void *arg, bool full);
    void *arg;
};

struct store_level {
    uint64_t capacity_bytes, used_bytes, pages;
};

struct store_stats {
    struct store_level memory, disk;
    uint64_t raw_pages, lz4_pages;
    uint64_t written_pages, read_pages; /* disk */
    uint64_t lost_pages;                /* that store_reopen could not take over */
};

/* Returns 0 or -errno with a line in err. Starts the background thread(s). */
int store_init(const struct store_options *opt, char *err, size_t errlen);
/* Ends the threads, removes the files. */
void store_fini(void);

/*
 * The store outlives its process, killed at whatever instruction, as long as somebody holds its
 * files: unnamed ones, open for reading and writing, -1 where there is none. They do not change
 * between store_init or store_reopen and store_fini. A successor calls store_reopen, then
 * store_adopt for each page that a page table names, then store_reopen_end.
 */
struct store_fds {
    int memory, slots, disk;
};
void store_get_fds(struct store_fds *out);

/*
 * Takes over what a dead process left, in place of store_init. Believes nothing of it: of the
 * slots, those that cannot be what that process made (out of range, or two that claim the same
 * place), or whose contents went with it (memory that a full /dev/shm had refused and force took
 * elsewhere), are given up, counted in lost_pages and logged. Contents are checked when they are
 * read, as ever. The capacities of opt may differ from the old ones: where they are smaller, pages
 * stay, and new ones are refused until it is under. A disk file taken over stays where it is,
 * whatever disk_path says.
 * The descriptors are the store's then. Returns 0, or -errno with a line in err: -EINVAL when the
 * table of slots is not one of this layout; the descriptors are still the caller's then.
 * Until store_reopen_end, pages may be put, read and counted as ever, but none is freed, none
 * moves, and on_room is not called.
 */
int store_reopen(const struct store_options *opt, const struct store_fds *fds, char *err,
                 size_t errlen);
/* A page table names this slot: one more owner. False: the slot does not hold that version. Only
 * before store_reopen_end. */
bool store_adopt(store_handle h, uint32_t version);
/* Frees what has no owner, and lets XPET begin. */
void store_reopen_end(void);
/* The newest version that this store or the one before it ever put (0: none): the next is to be
 * later, in the arithmetic of serial numbers. */
uint32_t store_version_max(void);

/*
 * Keeps a copy of a 4 KiB page. `version` is mixed into the checksum and must be given again at
 * every read; the caller never uses a version twice for different contents. Returns 0 and the
 * handle (count 1), or -ENOSPC when there is no room now (on_room will be called). With force,
 * capacity is passed rather than failing.
 */
int store_put(const void *page, uint32_t version, bool force, store_handle *out);

void store_ref(store_handle h);   /* one more owner */
void store_unref(store_handle h); /* one less; the last frees it */
/* The same for many at once; 0 handles are skipped. */
void store_ref_many(const store_handle *h, size_t n);
void store_unref_many(const store_handle *h, size_t n);

/* True when store_view would need no I/O. A hint: the answer may change at once. */
bool store_is_memory(store_handle h);

/*
 * Gives the page's contents without blocking: a pointer to 4096 readable bytes, either inside the
 * memory store (pinned until store_unview) or decompressed into buf. Checks the checksum.
 * Returns 0; -EAGAIN when it is on disk (use store_read on a thread that may block); -EBADMSG when
 * the checksum or the version does not match.
 */
struct store_view {
    const void *data;
    store_handle pinned; /* 0 when data is buf */
};
int store_view(store_handle h, uint32_t version, void *buf, struct store_view *v);
void store_unview(struct store_view *v);

/* Reads the page into buf, from wherever it is; may block. 0, -EBADMSG, -EIO. */
int store_read(store_handle h, uint32_t version, void *buf);

#define STORE_READ_MANY 512u /* pages in one call */
#define STORE_READ_RUN 64u   /* at most, in one call of done, or in one read */

struct store_read {
    store_handle handle;
    uint32_t version;
    uint32_t tag; /* the caller's own */
    int err;
    const void *data; /* in done, when err is 0: the contents */
};
/* Some of the pages that were asked for are here, 0 or -EBADMSG or -EIO in err. Neighbours on the
 * disk have neighbouring data. On a thread of the store, or in store_read_await; it may block. */
typedef void store_read_done(void *arg, const struct store_read *pages, uint32_t n);
/*
 * Reads many pages without waiting for them: neighbours on the disk at once, all others side by
 * side. done is called for every page whose err is 0 on return, in groups, in any order, perhaps
 * before this returns; -ENOMEM: not for that page. The caller owns the pages until then.
 */
void store_read_many(struct store_read *p, uint32_t n, store_read_done *done, void *arg);

/*
 * Between keep and await a thread keeps the few pages that it asks for to itself; it must come to
 * await soon, holding no lock. There it looks for them (and calls done), until they are here, fd
 * can be read, or others have to take over.
 */
void store_read_keep(void);
void store_read_await(int fd);

/* True when the slot holds that version and `page` has its contents: byte for byte where it is raw
 * in memory, else by the checksum. */
bool store_same(store_handle h, uint32_t version, const void *page);

/* Share of total capacity (memory and disk) in use, 0..1000; for the policy that keeps or drops
 * slots of clean pages. */
uint32_t store_fullness(void);

void store_get_stats(struct store_stats *out);

#endif
