/*
 * Memory of the page store: one unnamed file in /dev/shm (else a memfd), mapped once, whose steps
 * of 512 KiB are backed by fallocate before they are used and given back when long unused. Gives
 * frames of 4 KiB and, inside frames, compressed objects of a few sizes.
 *
 * Not thread safe: the caller holds its lock in every call but the *_run ones, which do the slow
 * system calls of a step that *_begin has set aside and *_end puts into (or out of) use.
 */
#ifndef EDM_STORE_MEM_H
#define EDM_STORE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEM_FRAME_SIZE 4096u
#define MEM_STEP_FRAMES 128u
#define MEM_STEP_SIZE ((uint64_t)MEM_STEP_FRAMES * MEM_FRAME_SIZE)
#define MEM_FRAMES_MAX (1u << 27) /* object numbers are frame * 32 + index */
#define MEM_CLASSES 11
#define MEM_OBJECT_MAX 2048u /* longest object */
#define MEM_NONE UINT32_MAX

struct mem_frame {
    uint32_t prev, next; /* list of free frames, or of frames of a class with free objects */
    uint32_t free;       /* object frame: bit i set = object i is free */
    uint32_t class;
};

struct mem_list {
    uint32_t head, tail;
};

struct mem_step {
    uint16_t used; /* frames in use */
    uint8_t state;
};

struct store_mem {
    unsigned char *base;
    int fd;
    uint32_t limit;     /* frames mapped: as far as a forced put can go */
    uint32_t capacity;  /* frames promised */
    uint32_t ceiling;   /* frames that the system let us have, once it refused; else MEM_NONE */
    uint32_t granted;   /* frames backed, or being backed or given back */
    uint32_t moving;    /* steps between begin and end */
    uint32_t used;      /* frames in use */
    uint32_t spare;     /* frames free */
    uint32_t spare_min; /* least of it since store_mem_spare_min was last asked */
    uint32_t nsteps, hint;
    struct mem_step *steps;
    struct mem_frame *frames;
    struct mem_list free, partial[MEM_CLASSES];
    bool told;     /* that the system refused */
    bool claiming; /* between _reopen and _reopen_end */
};

/*
 * Makes the file in folder dir (a tmpfs) and maps room for limit_bytes, of which capacity_bytes
 * are meant to be used; both are rounded up. Returns 0 or -errno.
 */
int store_mem_init(struct store_mem *m, const char *dir, uint64_t capacity_bytes,
                   uint64_t limit_bytes);
void store_mem_fini(struct store_mem *m);

/*
 * Maps a file that a dead process left instead, with its frames neither used nor free. Then each
 * that is known to be in use is claimed, and _end makes the others free and gives back what is
 * not needed. fd stays the caller's when this fails.
 */
int store_mem_reopen(struct store_mem *m, int fd, uint64_t capacity_bytes, uint64_t limit_bytes);
/* False: not there (private memory is not, either), or somebody else's. */
bool store_mem_claim_frame(struct store_mem *m, uint32_t frame);
bool store_mem_claim_object(struct store_mem *m, uint32_t object, uint32_t len);
void store_mem_reopen_end(struct store_mem *m);

/* Frames that may be used without force: the promise, or what the system allows. */
uint32_t store_mem_capacity(const struct store_mem *m);

/* A frame, the one freed last first; MEM_NONE when none is spare. */
uint32_t store_mem_frame_get(struct store_mem *m);
void store_mem_frame_put(struct store_mem *m, uint32_t frame);
static inline void *store_mem_frame(const struct store_mem *m, uint32_t frame)
{
    return m->base + (uint64_t)frame * MEM_FRAME_SIZE;
}

/* The class of objects of len (1..MEM_OBJECT_MAX) bytes. */
uint32_t store_mem_class(uint32_t len);
/* True when an object of the class can be had without another frame. */
bool store_mem_object_ready(const struct store_mem *m, uint32_t class);
/* Room for an object; MEM_NONE when that needs a frame and none is spare. */
uint32_t store_mem_object_get(struct store_mem *m, uint32_t class);
void store_mem_object_put(struct store_mem *m, uint32_t object);
void *store_mem_object(const struct store_mem *m, uint32_t object);

/* Sets aside a step to be backed, beyond the capacity only with force; MEM_NONE: cannot grow. */
uint32_t store_mem_grow_begin(struct store_mem *m, bool force);
/* Backs it. With force, by private memory when the file system refuses. The outcome for _end. */
int store_mem_grow_run(struct store_mem *m, uint32_t step, bool force);
void store_mem_grow_end(struct store_mem *m, uint32_t step, int outcome);

/* Sets aside a step without frames in use, when more than keep frames stay spare. */
uint32_t store_mem_shrink_begin(struct store_mem *m, uint32_t keep);
int store_mem_shrink_run(struct store_mem *m, uint32_t step);
void store_mem_shrink_end(struct store_mem *m, uint32_t step, int outcome);

/* The least number of spare frames since the last call: what nobody needed in that time. */
uint32_t store_mem_spare_min(struct store_mem *m);

#endif
