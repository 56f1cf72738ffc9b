/*
 * What test programs share: one line of result, time limits, contents that can be checked,
 * eviction of a range, and EDM's own counters for the running program.
 *
 * A test program is an ordinary program. It calls edmtest_begin first and edmtest_ok or
 * edmtest_skip last; every failed EXPECT ends it. Without EDM (EDM_TEST_NATIVE=1) it must pass
 * too; only what counters would show is then left out.
 *
 * A monitor process without the shim watches every program: when the time is over or
 * edmtest_beat was not called for long, it prints what every thread is doing and kills the
 * program and its children.
 */
#ifndef EDMTEST_H
#define EDMTEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define EDMTEST_PAGE 4096ul
#define EDMTEST_MIB (1024ul * 1024ul)
#define EDMTEST_SKIPPED 77 /* exit status of edmtest_skip */

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_COLD
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* EDM's counters of one instance; CONTRACT.md, `edm stat --json`. */
struct edmtest_counters {
    uint64_t local_memory, resident, resident_max, stored_bytes, stored_pages;
    uint64_t faults_new, faults_existing, faults_limbo, faults_waited;
    uint64_t prefetched, prefetch_used, leases;
    uint64_t evicted, evicted_zero, evicted_clean, evicted_busy;
    uint64_t forks, remaps, removes, unmaps;
};

/* Names the test, starts the monitor: fails after `seconds`. */
void edmtest_begin(const char *name, unsigned seconds);
/* Besides the limit: fail when this many seconds go by without edmtest_beat. */
void edmtest_stall_limit(unsigned seconds);
void edmtest_beat(void);
void edmtest_ok(void) __attribute__((noreturn));
void edmtest_skip(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));
void edmtest_fail(const char *file, int line, const char *fmt, ...)
    __attribute__((noreturn, format(printf, 3, 4)));

/* Fails the test, with a line that says why, when cond is false. Works in children too. */
#define EXPECT(cond, ...)                                                                          \
    do {                                                                                           \
        if (!(cond))                                                                               \
            edmtest_fail(__FILE__, __LINE__, __VA_ARGS__);                                         \
    } while (0)
/* For calls that return -1 and set errno. */
#define EXPECT_CALL(expr) EXPECT((expr) != -1, "%s: %m", #expr)

/* True when the program runs without EDM on purpose. */
bool edmtest_native(void);
/* The process's budget: from its counters, else $EDM_TEST_BUDGET (bytes), else 16 MiB. */
size_t edmtest_budget(void);

/* Private anonymous memory, read and write. */
void *edmtest_map(size_t len);
/* Contents that are a function of seed and offset only, different in every word. */
void edmtest_fill(void *p, size_t len, uint64_t seed);
/* Offset of the first word that is not what edmtest_fill wrote, or -1. */
ssize_t edmtest_check(const void *p, size_t len, uint64_t seed);
/* Offset of the first byte that is not 0, or -1. */
ssize_t edmtest_check_zero(const void *p, size_t len);
/* The same, failing the test. */
void edmtest_expect(const void *p, size_t len, uint64_t seed, const char *what);
void edmtest_expect_zero(const void *p, size_t len, const char *what);

/* Writes four times the budget of fresh memory (kept, and checked by edmtest_pressure_check):
 * from here on the program is attached and its older pages have been pushed out. */
void edmtest_pressure(void);
void edmtest_pressure_check(void);

/* Pages of the range that are in the page tables now (/proc/self/pagemap). */
size_t edmtest_present(const void *p, size_t len);
/* Asks for the range to be evicted and waits until it is, or fails. Nothing when native. */
void edmtest_evict(void *p, size_t len);
/* The same, but returns false instead of failing after `ms`. */
bool edmtest_try_evict(void *p, size_t len, unsigned ms);

/* Counters of process pid (0 = this one). Returns 0, -ENOENT when EDM does not know the process,
 * or another -errno. */
int edmtest_counters(pid_t pid, struct edmtest_counters *c);
/* The same for this process, failing the test; zeros when native. */
struct edmtest_counters edmtest_now(void);
/* Fails when less was evicted so far. Nothing when native. */
void edmtest_evicted_at_least(uint64_t bytes);
/* Fails when fewer than `n` evicted pages came back since *before (by fault, from limbo, or
 * fetched ahead). Nothing when native. */
void edmtest_came_back(const struct edmtest_counters *before, uint64_t n);
/* Runs `edm VERB PID`; its exit status. 0 when native. */
int edmtest_edm(const char *verb, pid_t pid);

/* Bytes of Rss of private anonymous unlocked memory of this process, less [skip, +len). */
uint64_t edmtest_anon_rss(const void *skip, size_t len);
/* fork by a bare system call, of which libc and the hooks know nothing: pid, 0 in the child,
 * -errno. */
long edmtest_raw_fork(void);
/* Waits for the child; fails unless it ended with exit status 0. */
void edmtest_reap(pid_t pid, const char *what);

#endif
