/*
 * Memory calls on managed memory: what the hooks do once they have been told apart from calls that
 * are none of our business. Everything here returns as the kernel does (a value or -errno), uses
 * raw system calls only, and may be called from any thread and from signal handlers.
 *
 * A call on a range that lies partly in the arena is split: the rest goes to the kernel as it is.
 */
#ifndef EDM_MANAGED_H
#define EDM_MANAGED_H

#include "arena.h"
#include "ops.h"
#include "shim.h"
#include "sys.h"

#define PAGE_UP(x) (((x) + EDM_PAGE_SIZE - 1) & ~(EDM_PAGE_SIZE - 1))
#define IS_PAGE_ALIGNED(x) (((x) & (EDM_PAGE_SIZE - 1)) == 0)
/* States that a piece must not keep when it is given back. */
#define ARENA_SPECIAL                                                                              \
    (ARENA_MARKED | ARENA_FOREIGN | ARENA_LOCKED | ARENA_WIPE | ARENA_DONTFORK | ARENA_PINNED)

/* While true, new mappings are left to the kernel; set by the hook of mlockall(MCL_FUTURE). */
extern atomic_bool managed_paused;

/* ---- managed.c: what all of them are made of ---- */

/* Reserves the arena when it is first wanted; false when there is none. */
bool managed_open(void);
bool managed_attached(void);
/* Raw system calls have unmapped parts of the arena: what is there may be anything. */
bool managed_tampered(void);
/* Before `more` bytes become accessible: attaches when that passes the threshold. */
void managed_grow(uint64_t more);
/* True when `len` new bytes could never be kept, by overcommit's rules with our stores added. */
bool managed_refuse(uint64_t len, int prot, int flags);
/* Makes taken arena memory that is PROT_NONE and zero accessible. */
long managed_commit(uint64_t addr, uint64_t len, int prot);
/* Replaces part of the arena by a fresh PROT_NONE mapping, and says so to the server. */
long managed_fresh(uint64_t addr, uint64_t len);
/* Undoes at the server what pieces have of locks and fork rules, before they go. */
void managed_drop_state(uint64_t addr, uint64_t len);
/* Gives back what is taken of [start, end), all inside the arena. */
long managed_release(uint64_t start, uint64_t end);
/* True when every page of [start, end) that is in the arena is taken; *hole is the first that is
 * not. */
bool managed_whole(uint64_t start, uint64_t end, uint64_t *hole);
/* Finds the states in [start, end), all inside the arena. */
uint32_t managed_states(uint64_t start, uint64_t end);
/* End of the part of [addr, end) that is as addr is: in the arena (*inside) or not. */
uint64_t managed_part(uint64_t addr, uint64_t end, bool *inside);
/* The part of [addr, end) up to the next piece; false at a free or an outside page. */
bool managed_piece(uint64_t addr, uint64_t end, struct arena_piece *out);

/* ---- hooks_mmap.c ---- */

/* `manage`: EDM_MANAGE_MMAP or EDM_MANAGE_MALLOC, whoever asks. */
long managed_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, int64_t off,
                  uint32_t manage);
/* MAP_FIXED on any range; anonymous private memory that may be managed. */
long managed_map_fixed(uint64_t addr, uint64_t len, int prot, int flags);
long managed_munmap(uint64_t addr, uint64_t len);
/* pkey -1: none. */
long managed_mprotect(uint64_t addr, uint64_t len, int prot, int pkey);

/* ---- hooks_mremap.c ---- */
long managed_mremap(uint64_t old, uint64_t old_len, uint64_t new_len, int flags, uint64_t to);
/* Once attached: readable and writable private memory that is there already, and that no other
 * thread uses now, becomes managed where it is, with its contents. 0 or -errno. */
long managed_adopt(uint64_t addr, uint64_t len);

/* ---- hooks_advice.c ---- */
long managed_madvise(uint64_t addr, uint64_t len, int advice);
long managed_mlock(uint64_t addr, uint64_t len, unsigned flags);
long managed_munlock(uint64_t addr, uint64_t len);

#endif
