/*
 * The requests of this rank that are not answered yet: who was asked, since when, and what to do
 * with the answer. Not locked: the caller is.
 */
#ifndef EDM_REQUESTS_H
#define EDM_REQUESTS_H

#include "proto/rank.h"

#define REQUESTS_MAX 4096u

/* The answer came: err 0 and the message; or it never will: err -errno and NULL. */
typedef void request_done(void *arg, int err, struct rank_head *answer);

struct request_entry {
    uint64_t id; /* 0: free */
    uint64_t sent_ns;
    request_done *done;
    void *arg;
    int rank;
    uint32_t next; /* in the list of free ones; 0 ends */
    uint8_t kind;
    uint32_t count;
};

struct requests {
    struct request_entry at[REQUESTS_MAX];
    uint64_t serial;
    uint32_t free, top, used;
};

/* An entry with an id that was never used; NULL: too many at once. */
struct request_entry *requests_add(struct requests *r);
/* Takes out the request that this answer of `rank` is for; false: there is none (a late answer). */
bool requests_take(struct requests *r, int rank, const struct rank_head *answer,
                   struct request_entry *out);
/* Takes out some request to `rank`; false: there is none. */
bool requests_take_any(struct requests *r, int rank, struct request_entry *out);

/* Is some request to `rank` older than that? */
bool requests_are_older(const struct requests *r, int rank, uint64_t before_ns);

#endif
