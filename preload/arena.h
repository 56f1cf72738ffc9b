/*
 * The arena: one reserved range of address space from which managed mappings are taken.
 * Free pieces are PROT_NONE. The tables are the shim's own memory. Thread safe by one lock
 * (futex), which is never held across a call that raises a userfaultfd event or asks the server.
 */
#ifndef EDM_ARENA_H
#define EDM_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Reserves up to `size` bytes, less when the system refuses. 0 or -errno. */
int arena_init(uint64_t size);
bool arena_contains(uint64_t addr, uint64_t len); /* all of it */
bool arena_overlaps(uint64_t addr, uint64_t len); /* any of it */
uint64_t arena_start(void);
uint64_t arena_len(void);
/* The smallest range that holds everything ever taken. */
void arena_used(uint64_t *start, uint64_t *end);

/* Takes `len` (page multiple) bytes of free address space aligned to `align`; 0 when there is none.
 * The memory is still PROT_NONE. First fit by address, O(log n). */
uint64_t arena_take(uint64_t len, uint64_t align);
/* Takes exactly [addr, +len) if all of it is free. */
bool arena_take_at(uint64_t addr, uint64_t len);
/* Marks [addr, +len) as taken, whatever parts of it were taken before (MAP_FIXED). */
void arena_claim(uint64_t addr, uint64_t len);
/* Marks as free; parts that are already free are ignored. */
void arena_give(uint64_t addr, uint64_t len);
/* Bytes taken now. */
uint64_t arena_taken(void);

/* Pieces with lasting kernel state (mlock, madvise, mbind, pkey, foreign mapping): freed by a fresh
 * mapping. Ranges may be marked in part; returns whether any page of the range is marked. */
void arena_mark(uint64_t addr, uint64_t len);
bool arena_marked(uint64_t addr, uint64_t len);
void arena_unmark(uint64_t addr, uint64_t len);

/*
 * What is known of every page of the arena. Neighbouring pages with the same protection and state
 * are one piece, as the kernel's mappings are. All of this is for taken pages; free ones have
 * protection PROT_NONE and state 0, and the setters skip them.
 */
#define ARENA_TAKEN 1u
#define ARENA_MARKED 2u    /* arena_mark */
#define ARENA_FOREIGN 4u   /* not our anonymous memory: a file, shared or other special mapping */
#define ARENA_LOCKED 8u    /* mlock: pinned while attached */
#define ARENA_WIPE 16u     /* MADV_WIPEONFORK */
#define ARENA_DONTFORK 32u /* MADV_DONTFORK */
#define ARENA_PINNED 64u   /* holds what the kernel must find resident; in children, too */

struct arena_piece {
    uint64_t start, end; /* addresses */
    uint32_t state;      /* ARENA_*; 0: free */
    int prot;            /* PROT_* as recorded by arena_protect */
};

/* The piece that holds addr; false when addr is outside the arena. */
bool arena_piece_at(uint64_t addr, struct arena_piece *out);
void arena_protect(uint64_t addr, uint64_t len, int prot);
void arena_set_state(uint64_t addr, uint64_t len, uint32_t clear, uint32_t set);
/* In the child of a fork, which inherits no mlock. */
void arena_forget_locks(void);
/* Taken bytes that are not PROT_NONE and not foreign: what counts for attach_threshold. */
uint64_t arena_accessible(void);

/* From now on signals are not blocked while the lock is held: a seccomp filter may forbid it. For a
 * process that manages no more; no other thread is inside. */
void arena_leave_signals(void);

/* Around fork. */
void arena_lock_for_fork(void);
void arena_unlock_after_fork(void);

#endif
