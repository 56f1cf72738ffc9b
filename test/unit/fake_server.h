/*
 * A server for tests of the shim's attaching and of the LPET: a process of its own that speaks the
 * protocol, answers faults with zeros, follows forks, and posts the commands that the test asks
 * for.
 */
#ifndef EDM_FAKE_SERVER_H
#define EDM_FAKE_SERVER_H

#include "../../dms/proto/proto.h"
#include <stdbool.h>

#define FAKE_RING_PAGES 128u

enum fake_request_kind {
    FAKE_COMMAND, /* post cmd to instance, answer with its results */
    FAKE_PROTECT, /* write-protect [addr, +npages) */
    FAKE_COUNT,   /* answer: npages = instances ever attached or claimed, slot = forks seen */
    FAKE_MUTE,    /* accept connections, never answer them (slot 1), or answer again (0) */
    FAKE_QUIT,    /* end without a word to anybody */
};

struct fake_request {
    uint32_t kind;
    uint32_t instance; /* 1 for the first that came */
    struct edm_cmd cmd;
};

/* Starts it; returns its pid. Answers come on the same socket pair, one at a time. */
int fake_server_start(const char *path);
void fake_server_stop(int pid);
/* Asks and waits for the answer, which replaces req->cmd. Returns false when the server is gone. */
bool fake_server_ask(struct fake_request *req);

#endif
