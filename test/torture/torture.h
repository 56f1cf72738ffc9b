/*
 * Random memory operations against a model that knows every byte.
 *
 * The contents of a page are a function of (seed, id, versions of its eight blocks), so the model
 * needs a few words a page and no copy. The model's own tables are MAP_STACK memory, which EDM
 * leaves alone, and private, so that a forked child finds the model of the moment it was made.
 * Each worker thread has regions and heap blocks of its own; all of them read one shared region.
 */
#ifndef TORTURE_H
#define TORTURE_H

#include "../lib/edmtest.h"
#include <pthread.h>
#include <stdint.h>

#define PAGE EDMTEST_PAGE
#define BLOCKS 8u /* a page is written in blocks of 512 bytes */
#define BLOCK_WORDS 64u
#define REGIONS 24u
#define HISTORY 32768u
#define HEAP_SLOTS 256u
#define CHILDREN 3u
#define PIPE_PAGES 16u
#define FILE_PAGES 1024u
#define LOCK_PAGES_MAX 32u

enum page_flags {
    P_MAPPED = 1,
    P_READ = 2,
    P_WRITE = 4,
    P_FILE = 8,     /* private file mapping */
    P_SHARED = 16,  /* shared read-only file mapping */
    P_MAYZERO = 32, /* MADV_FREE: the contents, or zeros */
    P_DONTFORK = 64,
    P_WIPE = 128,
    P_LOCKED = 256,
    P_RAW = 512, /* not managed: by raw system call, MAP_STACK, or at an address of its own */
};

struct page {
    uint64_t id;
    uint32_t version[BLOCKS]; /* 0: the block is all zero */
    uint32_t flags;
    uint32_t file_page;
};

struct region {
    uint64_t base;
    uint32_t n; /* pages, holes included; 0: not in use */
    struct page *page;
};

struct run {
    struct region *r; /* NULL: none found */
    uint32_t at, n;
};

struct event {
    uint64_t number, addr, len, to, to_len;
    long result;
    const char *what;
    bool raw;
};

struct block { /* of the heap */
    unsigned char *p;
    size_t size;
    uint64_t id;
};

struct op_count {
    uint64_t done, refused;
};

struct worker {
    uint32_t index;
    uint64_t rng, next_id, ops;
    uint32_t next_version;
    bool in_child, only_raw; /* only_raw: a child made by a raw clone */
    struct region regions[REGIONS];
    uint32_t region_max; /* pages of a region */
    uint32_t pages_max;  /* mapped pages of all regions */
    uint32_t locked;
    uint32_t raw_max; /* P_RAW pages */
    struct block heap[HEAP_SLOTS];
    size_t heap_used, heap_max;
    int children[CHILDREN];
    bool child_killed[CHILDREN]; /* ends by SIGKILL */
    int pipe[2], file;
    uint64_t verified, words_verified, forks;
    struct op_count *counts;
    struct event *history;
    uint64_t history_next;
    pthread_t thread;
};

enum calls_mode { CALLS_LIBC, CALLS_RAW, CALLS_MIXED };

struct settings {
    uint64_t seed, ops, bytes;
    uint32_t threads;
    unsigned seconds;
    enum calls_mode calls;
    bool replay;
    char only[512], without[512];
};
extern struct settings settings;
extern struct worker *workers;
extern struct region common; /* the shared read-only region */
extern int pattern_file;
extern pthread_rwlock_t quiet; /* read: an operation is under way; write: nobody changes anything */

/* ---- model.c ---- */
void model_init(size_t len);
void *model_alloc(size_t len);
extern char *model_start;
extern size_t model_len;
uint64_t worker_random(struct worker *w, uint64_t below);
bool worker_chance(struct worker *w, unsigned percent);
/* 1..max, small ones as likely as large ones. */
uint32_t worker_length(struct worker *w, uint32_t max);
uint64_t model_word(uint64_t id, uint32_t block, uint32_t version, uint32_t word);
uint64_t page_addr(const struct region *r, uint32_t i);
struct region *region_new(struct worker *w, uint64_t base, uint32_t n); /* all pages unmapped */
struct region *region_free(struct worker *w);                           /* a slot, or NULL */
void region_settle(struct region *r);           /* gives the slot back when no page is mapped */
uint32_t worker_mapped(const struct worker *w); /* pages */
uint32_t worker_count(const struct worker *w, uint32_t flag);
/* A run of up to max pages that have all of `need` and none of `not`; uniform: same flags. */
struct run run_pick(struct worker *w, uint32_t need, uint32_t not, uint32_t max, bool uniform);
struct page *run_page(struct run run, uint32_t i);
uint64_t run_addr(struct run run);
/* Fails when a page of the model is mapped there: the kernel or EDM gave out memory in use. */
void model_expect_free(struct worker *w, uint64_t addr, uint64_t len, const char *what);
void page_zero(struct page *p);
void page_unmap(struct worker *w, struct page *p);
void page_from_file(struct page *p, uint32_t file_page);
void page_verify(struct worker *w, struct region *r, uint32_t i);
void page_write(struct worker *w, struct region *r, uint32_t i);
void region_verify(struct worker *w, struct region *r);
void worker_verify(struct worker *w);
void note(struct worker *w, const char *what, bool raw, uint64_t addr, uint64_t len, uint64_t to,
          uint64_t to_len, long result);
/* Prints why and the operations that touched addr, then aborts. addr 0: the last operations. */
void torture_fail(struct worker *w, uint64_t addr, const char *fmt, ...)
    __attribute__((noreturn, format(printf, 3, 4)));

/* Memory is gone, and the system says so by SIGBUS: so ends the program. Wrong bytes are not that.
 */
void torture_lost(struct worker *w, const char *fmt, ...)
    __attribute__((noreturn, format(printf, 2, 3)));

/* ---- calls.c: by libc or by raw system call, as the mode says; results as -errno ---- */
long call_mmap_file(struct worker *w, uint64_t addr, uint64_t len, int prot, int flags, int fd,
                    uint64_t off);
/* Anonymous memory at a given place. *raw: by raw system call, so nobody manages it; few. */
long call_mmap_at(struct worker *w, uint64_t addr, uint64_t len, int prot, int flags, bool *raw);
/* New managed memory: never raw, since nobody could know of it. */
long call_mmap_libc(struct worker *w, uint64_t addr, uint64_t len, int prot, int flags);
long call_munmap(struct worker *w, uint64_t addr, uint64_t len);
long call_mremap(struct worker *w, uint64_t old, uint64_t old_len, uint64_t len, int flags,
                 uint64_t to);
long call_madvise(struct worker *w, uint64_t addr, uint64_t len, int advice);
long call_mprotect(struct worker *w, uint64_t addr, uint64_t len, int prot);
long call_fork(struct worker *w, bool *raw);
bool call_may_libc(const struct worker *w);
bool is_error(long result);

/* ---- operations: true when something was done, false when nothing fitted or it was refused ----
 */
bool op_map(struct worker *w);
bool op_map_fixed(struct worker *w);
bool op_map_noreplace(struct worker *w);
bool op_map_file(struct worker *w);
bool op_unmap(struct worker *w);
bool op_protect(struct worker *w);
bool op_remap_shrink(struct worker *w);
bool op_remap_grow(struct worker *w);
bool op_remap_move(struct worker *w);
bool op_remap_fixed(struct worker *w);
bool op_remap_dontunmap(struct worker *w);
bool op_dontneed(struct worker *w);
bool op_free(struct worker *w);
bool op_remove(struct worker *w);
bool op_willneed(struct worker *w);
bool op_cold(struct worker *w);
bool op_pageout(struct worker *w);
bool op_populate_read(struct worker *w);
bool op_populate_write(struct worker *w);
bool op_forkadvice(struct worker *w);
bool op_hugepage(struct worker *w);
bool op_dontdump(struct worker *w);
bool op_lock(struct worker *w);
bool op_unlock(struct worker *w);
bool op_write(struct worker *w);
bool op_read(struct worker *w);
bool op_copy(struct worker *w);
bool op_pipe(struct worker *w);
bool op_file(struct worker *w);
bool op_common(struct worker *w);
bool op_probe(struct worker *w);
bool op_heap(struct worker *w);
bool op_fork(struct worker *w);
void heap_verify(struct worker *w);
void heap_release(struct worker *w);
/* The kernel must refuse to read (or write) one byte there. */
void expect_no_access(struct worker *w, uint64_t addr, bool write_access);
/* Opens the worker's pipe and file. */
void worker_open(struct worker *w);
/* Waits for children; all: until there is none. */
void children_reap(struct worker *w, bool all);
/* One random operation that needs neither heap nor fork; for children. */
void child_operation(struct worker *w);

#endif
