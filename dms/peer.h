/*
 * The ranks of the DMS and the requests between them; only peer*.c know of MPI. A request has an
 * id, an answer, and a limit: a rank that was asked and says nothing for request_timeout is lost,
 * and is not asked again. No call here blocks on a rank.
 *
 * Threads: all calls may be made from any thread once peer_start has returned. No lock of this
 * module is held while an operation or a request's done function is called; both may come from any
 * thread that is in peer_poll, or from the progress thread, and must be short and never wait for a
 * rank. Lock order: an instance's lock and the locks of copies.c and holder.c come before those
 * here.
 */
#ifndef EDM_PEER_H
#define EDM_PEER_H

#include "requests.h"
#include <stdbool.h>
#include <stddef.h>

#define PEER_RANKS_MAX 1024

/* A message with room for the longest. */
struct peer_buf {
    int rank;               /* whom it came from */
    uint32_t len;           /* bytes of it */
    struct rank_head *head; /* the body follows it */
};

struct peer_ops {
    /* A request that rank_check accepts. The buffer is the callee's: to be given to peer_answer
     * (now or later, perhaps with an answer written over the request). */
    void (*serve)(struct peer_buf *b);
    /* The rank will answer nothing any more; all requests to it have failed. Progress thread. */
    void (*lost)(int rank);
    /* The rank has said that it ends. */
    void (*bye)(int rank);
};

struct peer_info {
    bool alive;
    int host; /* ranks of one host have the same number */
    const char *host_name;
    uint64_t identity;
    uint64_t rtt_ns;         /* of the last short request; 0 = none yet */
    uint64_t capacity, used; /* pages, as it said at its start */
};

/*
 * Cleans the environment that MPI and UCX read. UCX reads it when it is loaded, so the program
 * starts itself again once, when something had to be set. First thing in main. `alone`: not under
 * mpiexec, whatever job the environment speaks of.
 */
void peer_environment(int alone, char **argv);
/* MPI_Init_thread, before any thread is started. 0, or -errno with a line in err. */
int peer_init(char *err, size_t errlen);
/*
 * Greets the other ranks and starts the progress thread; returns when every rank has answered or
 * had its time. `self` is what they are told (host is filled in). timeout: seconds. 0 or -errno.
 */
int peer_start(const struct peer_ops *ops, struct rank_hello *self, double timeout);
int peer_rank(void);
int peer_ranks(void);
void peer_get_info(int rank, struct peer_info *out);
bool peer_is_alive(int rank);

/* A buffer to write a message into; NULL: out of memory. */
struct peer_buf *peer_buf_get(void);
void peer_buf_put(struct peer_buf *b);
/*
 * Sends a request: head->kind and count are the caller's, `body` bytes follow the head.
 * Takes the buffer. 0: done(arg) will be called once; -EHOSTDOWN, -EBUSY: it will not.
 */
int peer_request(int rank, struct peer_buf *b, size_t body, request_done *done, void *arg);
/* Answers the request that came in this buffer; its body (none with code < 0) is in it. */
void peer_answer(struct peer_buf *b, int code, size_t body);

/* Receives what has come and acts on it. True: there was something. For a thread that would
 * rather spin for its answer than sleep; never blocks. */
bool peer_poll(void);
/* Who has called it and does not go on says so: something may be left for the progress thread. */
void peer_poll_end(void);

/*
 * How long to spin for something before sleeping. Waking costs 20 to 50 us, so spinning pays where
 * a CPU is to be had; where it has not helped, CPUs are scarce, and who spins loses his turn for
 * more. No yielding either: on a busy machine that gives away milliseconds.
 */
struct peer_spin {
    uint64_t ns;
    uint32_t tries; /* short ones */
};
/* The time to spin now. */
uint64_t peer_spin_ns(struct peer_spin *s);
/* Whether it came in that time. */
void peer_spin_learn(struct peer_spin *s, bool came);
/* Around a loop of peer_poll: the progress thread leaves messages to the loop. */
void peer_spin_begin(void);
void peer_spin_end(bool came);

/*
 * This rank ends: says so, and goes on serving until nobody needs it: all others end, too, or are
 * lost, or pages() (what it keeps for them) is 0. Gives up when pages() has not changed for
 * `seconds`; returns what it was then.
 */
uint64_t peer_bye(uint64_t (*pages)(void), double seconds);
/* Ends MPI; with more than one rank the process ends without MPI_Finalize (it hangs over TCP). */
void peer_fini(void);

#endif
