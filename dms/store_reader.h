/*
 * Readers of the disk store: reads of many pages at once. Runs of neighbouring blocks become one
 * read each, and many are under way at a time: by kernel AIO where the file is open for direct I/O
 * (the caller's thread submits, so that no other has to wake up first), else by threads.
 *
 * What AIO brings is taken by whoever looks. A thread that has nothing else to do until a read ends
 * keeps it to itself and looks again and again for as long as a device takes: a processor that
 * sleeps meanwhile, and a reaper that is woken, cost as much as the device. Reads that nobody
 * keeps, or keeps no longer, are the reapers'; without any they sleep.
 */
#ifndef EDM_STORE_READER_H
#define EDM_STORE_READER_H

#include "store.h"
#include <linux/aio_abi.h>
#include <pthread.h>
#include <stdatomic.h>

#define READER_REAPERS 2
#define READER_WORKERS 8 /* without AIO; with it a few, for what it refuses */
#define READER_CLASSES 3

struct store;
struct read_job;

struct read_list {
    struct read_job *first, *last;
};

struct store_reader {
    pthread_mutex_t lock;     /* of what follows; taken last, never held across a call */
    pthread_cond_t more;      /* a blocking read is wanted */
    struct read_list pending; /* until fewer are under way */
    struct read_list blocking;
    struct read_job *spare[READER_CLASSES]; /* with their buffers */
    uint32_t nspare[READER_CLASSES];
    uint32_t flying;      /* submitted to AIO, or about to be */
    atomic_uint kept;     /* of them, by threads that look themselves, */
    atomic_ulong round;   /* since this rose last */
    atomic_uint slow;     /* kept reads in a row that took longer than anybody looks */
    pthread_cond_t watch; /* there are some for the reapers */
    bool stop;

    bool started, aio;
    aio_context_t ctx;
    pthread_t reapers[READER_REAPERS], workers[READER_WORKERS];
    unsigned nreapers, nworkers;
};

/* Starts the threads; 0 or -errno. */
int store_reader_start(struct store *s);
/* Every read has come to its end before this is called. */
void store_reader_stop(struct store *s);

#endif
