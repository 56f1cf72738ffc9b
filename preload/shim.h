/*
 * What the files of the shim share. The shim's own memory (this state, the arena's tables, the
 * channel, the staging range, LPET stack) is never managed, never from malloc.
 */
#ifndef EDM_SHIM_H
#define EDM_SHIM_H

#include "../config/config.h"
#include "../dms/proto/proto.h"
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * What every command pays for when the shim is loaded, pages that are touched for the first time
 * above all (some 4 us each): the constructor's variables are neighbours, and so are its functions,
 * those that run at each fork (a child maps no code yet), and malloc's first steps.
 */
#define AT_LOAD_DATA __attribute__((section("at_load")))
#define AT_LOAD __attribute__((section(".text.startup.at_load")))

/* Set once by the constructor (preload.c), constant afterwards. */
struct shim_config {
    bool enabled; /* false: EDM_DISABLE, server = "off", or the constructor has not run yet */
    struct edm_config config;
    struct edm_settings settings;
    uint64_t threshold; /* managed bytes at which to attach */
    uint64_t run_token;
    uint32_t group; /* of server_group; ~0: none */
    char command[64];
    char dms_path[512]; /* of edm-dms, for server = "auto"; "" when it was not found */
};
extern struct shim_config shim_config;

/*
 * Lives in a page of its own with MADV_WIPEONFORK: in a child that no hook saw it is all zero,
 * so that such a child never touches its parent's channel.
 */
struct shim_state {
    struct edm_chan *_Atomic chan; /* NULL: not attached */
    atomic_uint ops_owner;         /* futex; tid that may raise events, 0 = none; see ops.h */
    atomic_uint ops_waiters;
    atomic_uint attach_state; /* enum shim_attach_state */
};
extern struct shim_state *shim_state; /* set by preload.c before anything else; never NULL after */

enum shim_attach_state {
    SHIM_NOT_ATTACHED = 0,
    SHIM_ATTACHING,
    SHIM_ATTACHED,
    SHIM_UNMANAGED, /* tried and could not, or detached for good: never try again */
};

/* ---- preload.c ---- */
/* Fills shim_config.dms_path; called before every attach_now. Raw system calls only. */
void shim_find_server(void);

/* ---- attach.c ---- */
/* Attaches to a server, starting one if settings say so. Raw system calls only (it runs inside
 * jemalloc's mmap): no malloc, no stdio, no locks of libc. Safe to call from several threads; only
 * one does it, others return at once. Says in one line on stderr when it cannot ("auto") or ends
 * the process with 125 ("require"). */
void attach_now(void);
/* In a forked child whose parent was attached. */
void attach_claim_child(void);
/* Fetches everything back, ends the LPET, unmanaged from here on. 0 or -errno. */
int attach_detach(void);
/* Constructor part: makes the identity page, prepares the argument vector of the server. */
void attach_init(void);
/* server = "require": does a server answer? Returns 0 or -errno with a line in err. */
int attach_probe(char *err, size_t errlen);

/* ---- lpet.c ---- see lpet.h */

/* ---- arena.c ---- see arena.h */

#endif
