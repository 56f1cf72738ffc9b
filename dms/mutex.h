/*
 * The locks that a fault takes: each is held for a microsecond or so, and a thread that slept for
 * one would need fifty to wake on another CPU. So a taker spins a little first.
 */
#ifndef EDM_MUTEX_H
#define EDM_MUTEX_H

#include <pthread.h>

static inline void edm_mutex_init(pthread_mutex_t *m)
{
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(m, &attr);
    pthread_mutexattr_destroy(&attr);
}

#endif
