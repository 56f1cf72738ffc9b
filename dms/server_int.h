/* What server.c (the loop, its start and end) and server_conn.c (connections) share. */
#ifndef EDM_SERVER_INT_H
#define EDM_SERVER_INT_H

#include "server.h"
#include <pthread.h>

enum conn_state { CONN_NEW, CONN_HELLO, CONN_CLAIM, CONN_ATTACHED };

struct conn {
    int fd;
    enum conn_state state;
    bool again;          /* came by REATTACH */
    const char *refused; /* what it is told when it has asked; or NULL */
    struct ucred peer;
    struct edm_hello hello;
    struct instance *in; /* one reference from HELLO or CLAIM on */
    struct conn *prev, *next;
};

/* The main thread's, but for stop_efd. */
struct server {
    struct server_options opt;
    int lock_fd, listen_fd, epoll_fd, stop_efd, signal_fd, uffd_dev, spare_fd;
    char socket[EDM_CONFIG_PATH_MAX];
    gid_t group;
    bool has_group;
    struct conn *conns;
    unsigned nconns;
    uint64_t idle_since_ns;
    uint64_t hangup_ns;        /* last time that an instance's socket closed */
    pthread_mutex_t reap_lock; /* of instance_reap */
};

extern struct server server;

/* ---- server_conn.c ---- */
/* Somebody is at the door: lets him in or turns him away. */
void conn_accept(void);
/* There is something to be read on it, or it has ended. It may be gone afterwards. */
void conn_ready(struct conn *c);
/* Ends it, and frees it. */
void conn_close(struct conn *c);

#endif
