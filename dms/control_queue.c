/*
 * Requests of `edm`: each is answered by a thread that may wait long (for an LPET, for a disk). So
 * many are under way at a time, of one process and of one user only a part of these; a few more
 * wait for their turn, with their connections.
 */
#include "server.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct job {
    int fd;
    struct ucred peer;
    struct edm_msg msg;
    uint8_t payload[sizeof(struct edm_request)];
    struct job *next;
};

struct limits {
    unsigned all, user, process;
};

static const struct limits run_limits = {64, 32, 4}, wait_limits = {1024, 512, 64};

static struct {
    pthread_mutex_t lock;
    struct job *running, *waiting;
} queue = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Is there room for one more of that process in the list? Lock held. */
static bool has_room(const struct job *list, const struct limits *most, const struct ucred *peer)
{
    struct limits n = {0};
    for (const struct job *j = list; j; j = j->next) {
        n.all++;
        n.user += j->peer.uid == peer->uid;
        n.process += j->peer.pid == peer->pid;
    }
    return n.all < most->all && n.user < most->user && n.process < most->process;
}

/* Lock held. */
static void job_remove(struct job **list, const struct job *j)
{
    while (*list != j)
        list = &(*list)->next;
    *list = j->next;
}

/* Lock held. */
static void job_run(struct job *j)
{
    j->next = queue.running;
    queue.running = j;
}

/* The next whose turn it is, now that `over` is. */
static struct job *job_next(struct job *over)
{
    pthread_mutex_lock(&queue.lock);
    job_remove(&queue.running, over);
    struct job *j = queue.waiting;
    while (j && !has_room(queue.running, &run_limits, &j->peer))
        j = j->next;
    if (j) {
        job_remove(&queue.waiting, j);
        job_run(j);
    }
    pthread_mutex_unlock(&queue.lock);
    free(over);
    return j;
}

static void *queue_main(void *arg)
{
    for (struct job *j = arg; j; j = job_next(j))
        control_serve(j->fd, &j->peer, &j->msg, j->payload);
    return NULL;
}

static int start_thread(struct job *j)
{
    pthread_t t;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, 256 * 1024);
    int err = pthread_create(&t, &attr, queue_main, j);
    pthread_attr_destroy(&attr);
    return -err;
}

/* Lock held. */
static int job_begin(struct job *j)
{
    if (!has_room(queue.running, &run_limits, &j->peer)) {
        struct job **last = &queue.waiting;
        if (!has_room(queue.waiting, &wait_limits, &j->peer))
            return -EBUSY;
        while (*last)
            last = &(*last)->next;
        *last = j;
        return 0;
    }
    job_run(j);
    int err = start_thread(j);
    if (err)
        job_remove(&queue.running, j);
    return err;
}

int control_begin(int fd, const struct ucred *peer, const struct edm_msg *msg, const void *payload)
{
    struct job *j = msg->len <= sizeof(j->payload) ? calloc(1, sizeof(*j)) : NULL;
    if (!j)
        return msg->len <= sizeof(j->payload) ? -ENOMEM : -EPROTO;
    j->fd = fd;
    j->peer = *peer;
    j->msg = *msg;
    memcpy(j->payload, payload, msg->len);
    pthread_mutex_lock(&queue.lock);
    int err = job_begin(j);
    pthread_mutex_unlock(&queue.lock);
    if (err)
        free(j);
    return err;
}
