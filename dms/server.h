/*
 * The front door of a rank: the unix socket, who may come in, attaching, and the end of
 * instances. One thread (the rank's main thread) runs server_run; control requests run on threads
 * of their own.
 */
#ifndef EDM_SERVER_H
#define EDM_SERVER_H

#include "../config/config.h"
#include "proto/proto.h"
#include <stdbool.h>
#include <sys/socket.h>

struct server_options {
    const struct edm_config *config;
    bool is_auto; /* ends some seconds after its last instance */
};

/* Takes the lock file and binds the socket. 0; -EADDRINUSE when another server has it; -errno
 * with a line in err. */
int server_open(const struct server_options *opt, char *err, size_t errlen);
/* Serves until SIGTERM, SIGINT or a STOP. */
void server_run(void);
void server_close(void);
/* It does not end after its last instance; from any thread. */
void server_stay(void);
/* Does a server that listens on path answer within ms? */
bool server_answers(const char *path, unsigned ms);
/* Asks server_run to return; from any thread. */
void server_stop(void);

/* One packet with its descriptors. 0 or -errno. */
int server_send(int fd, uint32_t type, const void *payload, uint32_t len, const int *fds,
                unsigned nfds);
int server_send_done(int fd, int code, uint32_t count, const char *text);

/* control_queue.c: has the request that came on fd answered by a thread, now or in its turn, and
 * fd closed then. 0; -EBUSY: too many wait; -EPROTO: no request is that long; -errno. */
int control_begin(int fd, const struct ucred *peer, const struct edm_msg *msg, const void *payload);

/* control.c: answers one request of `edm` and closes fd. */
void control_init(void);
void control_serve(int fd, const struct ucred *peer, const struct edm_msg *msg,
                   const void *payload);
/* Keeps the counters of an instance that ends, when somebody watches its run_token. */
struct instance;
void control_keep(struct instance *in);

#endif
