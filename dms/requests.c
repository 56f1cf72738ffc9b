#include "requests.h"

struct request_entry *requests_add(struct requests *r)
{
    uint32_t i = r->free;
    if (i)
        r->free = r->at[i].next;
    else if (r->top + 1 < REQUESTS_MAX)
        i = ++r->top;
    else
        return NULL;
    struct request_entry *e = &r->at[i];
    *e = (struct request_entry){.id = ++r->serial * REQUESTS_MAX + i};
    r->used++;
    return e;
}

static void release(struct requests *r, uint32_t i, struct request_entry *out)
{
    *out = r->at[i];
    r->at[i].id = 0;
    r->at[i].next = r->free;
    r->free = i;
    r->used--;
}

bool requests_take(struct requests *r, int rank, const struct rank_head *answer,
                   struct request_entry *out)
{
    uint32_t i = (uint32_t)(answer->id % REQUESTS_MAX);
    struct request_entry *e = &r->at[i];
    if (!answer->id || e->id != answer->id || e->rank != rank || e->kind != answer->kind)
        return false;
    if (!answer->code && e->count != answer->count)
        return false;
    release(r, i, out);
    return true;
}

bool requests_take_any(struct requests *r, int rank, struct request_entry *out)
{
    for (uint32_t i = 1; i <= r->top && r->used; i++) {
        if (r->at[i].id && r->at[i].rank == rank) {
            release(r, i, out);
            return true;
        }
    }
    return false;
}

bool requests_are_older(const struct requests *r, int rank, uint64_t before_ns)
{
    for (uint32_t i = 1; i <= r->top && r->used; i++)
        if (r->at[i].id && r->at[i].rank == rank && r->at[i].sent_ns < before_ns)
            return true;
    return false;
}
