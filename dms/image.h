/*
 * What of an instance outlives its server: a memfd with its identity, its state page table (the
 * chunks), the record of commands under way, and the messages that were read and not applied yet.
 * A server may be killed between any two instructions; its successor maps the file and goes on
 * (recover.c). So whatever is written here is written in an order in which every state between
 * two stores can be understood; image_order() keeps the compiler to it.
 *
 * Messages are read straight into the image: there is no moment at which an event has left the
 * kernel and is nowhere else.
 *
 * Protected by the instance's lock.
 */
#ifndef EDM_IMAGE_H
#define EDM_IMAGE_H

#include "marks.h"
#include "proto/proto.h"
#include "spt.h"
#include "stats.h"
#include <linux/userfaultfd.h>

#define IMAGE_MAGIC 0x67616d69u
#define IMAGE_LAYOUT 7u
#define IMAGE_MSGS 64
#define IMAGE_CHUNKS (1u << 22)
#define IMAGE_CHUNKS_OFFSET (1u << 18)

#define image_order() __atomic_signal_fence(__ATOMIC_SEQ_CST)

/* The server's own record of a command to the LPET. */
struct track {
    uint32_t id[EDM_CMD_PAGES]; /* whose outcome it is; follows a page through REMAP; or SPT_NONE */
    uint32_t at[EDM_CMD_PAGES]; /* the page at the command's address, where that is another one */
    uint32_t npages, slot, kind;
    uint64_t posted_ns;
};

/* The step of an event that is under way; steps count from 1 and rise. */
struct image_redo {
    uint32_t msg;        /* of the batch; what follows is valid for it alone */
    uint64_t step, done; /* begun last, ended last */
    struct page page;    /* as it was before `step` */
};

/* What a server that took over calls the descriptors that FORK messages brought to an earlier one.
 */
struct image_forks {
    uint64_t server;         /* id in its state */
    int32_t fds[IMAGE_MSGS]; /* -1: that child is an instance already */
};

struct image {
    uint32_t magic, layout;
    uint64_t number, nonce, run_token, parent;
    int32_t pid;
    uint32_t uid;
    char command[64];
    struct edm_settings set;
    uint64_t arena_start, arena_len, identity, features;
    uint64_t chan_size; /* 0: no channel */
    struct edm_staging staging;
    uint64_t limit; /* budget, pages */
    uint8_t complete, partial, claimed, tampered, detached, foreign;
    int32_t pin_all;
    uint32_t nchunks;
    uint32_t cmd_head, cmd_seen;
    uint32_t next; /* first message of the batch that is not applied */
    struct image_redo redo;
    struct instance_stats stats;      /* as last shown to somebody */
    struct uffd_msg msgs[IMAGE_MSGS]; /* event 0 ends the batch */
    /* two: a server that dies while it takes over leaves the one before as it was */
    struct image_forks forks[2];
    struct track tracks[EDM_CHAN_CMDS];
    struct marks marks;
};
_Static_assert(sizeof(struct image) <= IMAGE_CHUNKS_OFFSET, "the chunks come behind");

/* An empty image: 0 and its descriptor and mapping, or -errno. */
int image_create(int *fd, struct image **out);
/* Maps what another process made; -EPROTO when it is none, or of another version. */
int image_open(int fd, struct image **out);
void image_close(struct image *img); /* NULL is allowed */

/* What server `id` calls the descriptor of message n, a FORK. */
int image_fork_fd(const struct image *img, uint64_t id, uint32_t n);

static inline struct chunk *image_chunk(struct image *img, uint32_t n)
{
    return (struct chunk *)((char *)img + IMAGE_CHUNKS_OFFSET) + n;
}

#endif
