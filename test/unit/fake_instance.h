/* An instance with a table and an image, and no process, for tests of what works on it. */
#ifndef EDM_FAKE_INSTANCE_H
#define EDM_FAKE_INSTANCE_H

#include "dms/instance.h"
#include <stdlib.h>
#include <unistd.h>

#define FAKE_ARENA (1ull << 40)
#define FAKE_ARENA_LEN (64 * EDM_CHUNK_SIZE)

/* NULL: out of memory. */
static inline struct instance *fake_instance_new(void)
{
    struct instance *in = calloc(1, sizeof(*in));
    if (!in || image_create(&in->image_fd, &in->img) || spt_init(&in->spt, in->img))
        return NULL;
    lspt_init(&in->lspt);
    in->tracks = in->img->tracks;
    in->stats = &in->img->stats;
    in->arena_start = FAKE_ARENA;
    in->arena_len = FAKE_ARENA_LEN;
    in->set.replicas = 1;
    return in;
}

static inline void fake_instance_free(struct instance *in)
{
    spt_fini(&in->spt);
    image_close(in->img);
    close(in->image_fd);
    free(in);
}

#endif
