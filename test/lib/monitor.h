/* The process that watches a test program; see edmtest.h. */
#ifndef EDMTEST_MONITOR_H
#define EDMTEST_MONITOR_H

#include <stdint.h>

/* Shared by program and monitor: a memfd, number EDMTEST_SHARED_FD in the monitor. */
struct monitor_shared {
    volatile uint64_t beats;
    volatile uint32_t stall_seconds; /* 0 = no limit between beats */
    uint32_t limit_seconds;
    char name[64];
};

/* Starts the monitor for this process; returns the shared page. */
struct monitor_shared *monitor_start(const char *name, unsigned seconds);

#endif
