/*
 * The keeper: a process that shares the server's descriptor table (clone with CLONE_FILES), and so
 * holds every descriptor from its first instant, also the userfaultfd of a forked child that the
 * server has just read (KERNEL.md 8). While the server lives it sleeps. When the server is killed
 * it closes what nobody needs any more, waits on `<socket>.keeper` for the next server and lets it
 * fetch the rest, or ends when no instance is left, and no page of another rank that may be waited
 * for.
 *
 * Which descriptor is what stands in the state, shared memory that the server writes: an entry is
 * complete before `used` says so, and `used` goes before anything in it does.
 *
 * Callable from any thread, one at a time.
 */
#ifndef EDM_KEEPER_H
#define EDM_KEEPER_H

#include "store.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STATE_INSTANCES 16384u
#define STATE_WATCHED 256u

/* Bytes to a keeper on `<socket>.keeper`, after its offer. */
enum keeper_word {
    KEEPER_DONE = 1, /* what it has is taken over, or not needed: it ends, then the connection */
    KEEPER_ASK,      /* answered by a byte: 1 when no instance waits for what it has */
};

enum state_fd {
    STATE_UFFD,
    STATE_IMAGE,
    STATE_CHAN,
    STATE_CMD,
    STATE_COMP,
    STATE_PAGEMAP,
    STATE_MAPS,
    STATE_FDS
};

struct state_instance {
    uint32_t used;
    int32_t fds[STATE_FDS]; /* -1: none */
};

struct state {
    uint32_t magic, layout;
    uint64_t id;       /* of the server, random */
    uint32_t ready;    /* all of an earlier server is taken over, new instances may come */
    uint32_t clean;    /* the server ends of its own will: nothing is kept */
    uint64_t numbers;  /* of instances, ever given */
    uint32_t versions; /* page versions up to here may have been used */
    int32_t attaching; /* userfaultfd of a process that has not lost a page to us yet; -1: none */
    struct store_fds store;
    int32_t homes, copies, kept; /* descriptors of the tables of pages on other ranks, and of theirs
                                    here; -1: none */
    uint64_t kept_pages;         /* of other ranks, here */
    uint64_t kept_ms;            /* how long these wait for a successor when nothing else does;
                                    UINT64_MAX: for ever */
    uint64_t watched[STATE_WATCHED]; /* run tokens, control.c; 0: free */
    uint32_t ninstances;             /* entries ever used */
    struct state_instance instances[STATE_INSTANCES];
};

/* Makes the state and starts the keeper. Before any thread is started. 0 or -errno. */
int keeper_start(const char *socket);
/* The running server's state; NULL before keeper_start. */
struct state *keeper_state(void);
/* A descriptor that becomes readable when the keeper has died; then keeper_restart. */
int keeper_pidfd(void);
int keeper_restart(void);
/* No keeper from here on, the server ends cleanly. */
void keeper_end(void);

/* What a dead server left. */
struct legacy {
    int sock, pidfd;
    struct state *state; /* the dead server's */
};

/* -ENOENT: nothing was left. Else 0 or -errno. */
int legacy_open(const char *socket, struct legacy *l);
/* Duplicates descriptor number n of the dead server (CLOEXEC). The descriptor, or -errno. */
int legacy_fd(const struct legacy *l, int n);
/* done: everything is taken over, and the running server's state is ready: the old keeper ends. */
void legacy_close(struct legacy *l, bool done);

#endif
