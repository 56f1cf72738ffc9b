/*
 * The asking side of the control messages in proto.h, for the command `edm`: one connection, one
 * request at a time. Not thread safe. All waits have limits. Errors come as -errno with one line
 * in err: what is wrong, what would be right.
 */
#ifndef EDM_CLIENT_H
#define EDM_CLIENT_H

#include "../config/config.h"
#include "proto/proto.h"
#include <sys/types.h>

#define EDM_CLIENT_LIMIT_MS 10000 /* for each answer */
#define EDM_SYSTEM_SOCKET "/run/edm/dms.sock"

struct edm_client_call {
    uint32_t type; /* enum edm_msg_type of the request */
    const void *payload;
    uint32_t len;
    /* Either may be NULL. part returns 0, or -errno, which ends the call. */
    int (*part)(void *ctx, const char *text, size_t len);
    void (*progress)(void *ctx, const struct edm_progress *p);
    void *ctx;
};

/*
 * Connects to the server of the settings; when `shared` and the socket is the default one and
 * nobody answers there, to the system's. The server must be the caller's own, root's, or of
 * the settings' server_group. Returns a descriptor; -ENOENT and -ECONNREFUSED mean that none runs.
 */
int edm_client_connect(const struct edm_config *c, bool shared, char *err, size_t errlen);

/* Process that listens at the other end; 0 when it is not visible from here. */
pid_t edm_client_peer(int fd);

/* Sends a request, hands PARTs and PROGRESS on until DONE. *done may be NULL. */
int edm_client_call(int fd, const struct edm_client_call *call, struct edm_done *done, char *err,
                    size_t errlen);

/* Connects and asks whether it serves: 1 yes, 0 none runs, -errno with err. */
int edm_client_runs(const struct edm_config *c, bool shared, char *err, size_t errlen);

#endif
