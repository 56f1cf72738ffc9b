/*
 * What the files of peer.h share: peer.c sends and receives, peer_progress.c is the thread that
 * does so when nobody else looks, peer_job.c starts and ends. Only these include <mpi.h>.
 */
#ifndef EDM_PEER_INT_H
#define EDM_PEER_INT_H

#include "keep_off.h"
#include "peer.h"
#include <mpi.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define RECEIVES 32      /* posted for each other rank: one that stops in the midst of a message, */
#define RECEIVES_MAX 512 /* or of several, keeps those */
#define EVENT_FDS 16

struct buf {
    struct peer_buf pub; /* first: the two are cast to each other */
    MPI_Request request;
    struct buf *next;
    _Alignas(64) unsigned char data[RANK_MESSAGE_MAX];
};

struct peer {
    atomic_bool alive, greeted;
    atomic_bool bad;          /* it broke the protocol, or cannot be reached: the progress thread
                                 ends it, and what still comes from it is not looked at */
    atomic_bool nonsense;     /* it broke the protocol */
    atomic_bool left;         /* it said BYE */
    uint32_t asked;           /* requests not answered */
    uint32_t unsent;          /* messages that MPI still has */
    uint64_t silent_since_ns; /* with requests not answered */
    uint64_t rtt_ns;
    struct rank_hello hello;
};

struct peer_job {
    int rank, ranks;
    uint32_t machine;
    struct peer *peers;
    struct peer_ops ops;
    atomic_ullong timeout_ns;
    struct rank_hello self;
    pthread_t thread;
    int patience;          /* of the progress thread: it has looked in vain so many times */
    atomic_bool asleep;    /* the progress thread */
    atomic_uint spinners;  /* other threads that look for messages at this moment */
    atomic_ullong spun_ns; /* when the last of them found what it looked for; 0: it did not */
    atomic_bool deaf;      /* the progress thread sleeps, and leaves messages to them */
    int wake_fd, event_fds[EVENT_FDS];
    unsigned nevents;
    /* protects requests, and asked, silent_since_ns, left of the peers */
    pthread_mutex_t lock;
    struct requests requests;
    uint64_t checked_ns;
    /* protects what MPI has of ours: the posted receives; and the messages on their way */
    pthread_mutex_t receive_lock, send_lock;
    unsigned nreceives;
    struct buf *receives[RECEIVES_MAX];
    unsigned last; /* of the receives, the one that was over last: the others come first */
    unsigned turn; /* the receive to be asked about next, whether it has begun or not */
    MPI_Request pending[RECEIVES_MAX];
    struct buf *sending;
    atomic_uint nsending;
    pthread_mutex_t spare_lock;
    struct buf *spare;
    unsigned nspare;
};

extern struct peer_job peer_job;
extern _Thread_local struct keep_off *peer_keeps_off; /* the progress thread's */

static inline uint64_t peer_clock_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* ---- peer.c ---- */

/* Posts receive i. With receive_lock, once there are threads. */
bool peer_receive_post(unsigned i);
/* A message may have come in, or begun to, that nobody has taken. */
bool peer_message_waits(void);
/* The rank is lost: MPI may never be done with what was sent to it, and keeps that memory. */
void peer_sends_forget(int rank);
/* What a lost rank has begun to send stays begun: others are posted. */
void peer_receives_add(void);
/* The rank broke the protocol: it is not listened to any more. */
void peer_misbehaves(int rank, const char *what);
/* What both the greeting and its answer say. False: the rank cannot be used. */
bool peer_greeted_by(int rank, const struct rank_head *h);

/* ---- peer_progress.c ---- */

void *peer_progress_main(void *arg);
/* The progress thread has something to look at. */
void peer_thread_wake(void);
/* A thread's call of MPI took in what came over the network, and the progress thread sleeps until
 * more comes. */
void peer_tell_thread(void);

#endif
