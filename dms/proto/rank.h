/*
 * What the ranks of a server say to each other. Every message is a head and a body; a request is
 * answered by a message of the same kind and id. Both sides are machines of one kind and byte order
 * (HELLO's magic number tells otherwise). Pure: no MPI, no locks.
 */
#ifndef EDM_PROTO_RANK_H
#define EDM_PROTO_RANK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RANK_MAGIC 0x6b6e6172u
#define RANK_VERSION 3u
#define RANK_PAGE 4096u
#define RANK_PAGES 16u   /* most pages of a STORE or FETCH */
#define RANK_DROPS 1024u /* most slots of a DROP or CLAIM */
#define RANK_HOST_MAX 64

enum rank_kind {
    RANK_HELLO = 1, /* body both ways: rank_hello. First of all, and the only one that other
                       versions understand: magic and version never move */
    RANK_STORE,   /* rank_slot[count] (slot unused), pages; answer: rank_stat, rank_result[count] */
    RANK_FETCH,   /* rank_slot[count]; answer: rank_result[count], pages of those with code 0 */
    RANK_DROP,    /* rank_slot[count]; answer: nothing */
    RANK_STAT,    /* nothing; answer: rank_stat */
    RANK_BYE,     /* nothing: the sender ends and needs nobody's pages; answer: nothing */
    RANK_CLAIM,   /* rank_slot[count], up to RANK_DROPS: what the sender still needs of what it had
                     here in an earlier job; answer: rank_result[count] */
    RANK_CLAIMED, /* nothing: that was all, the rest is given back; answer: nothing */
    RANK_KINDS
};

struct rank_head {
    uint32_t magic;
    uint16_t version;
    uint8_t kind;          /* enum rank_kind */
    uint8_t answer;        /* 1: answers the request of this id */
    uint64_t id;           /* chosen by the asking rank */
    uint32_t count;        /* pages or slots */
    int32_t code;          /* of an answer: 0 or -errno, then no body follows */
    uint32_t machine, cpu; /* where a request was made: a machine's number, its CPU from 1; or 0 */
};

struct rank_hello {
    uint64_t identity;       /* of its stores, as long as they live: random, never 0 */
    uint64_t capacity, used; /* pages of its stores */
    char host[RANK_HOST_MAX];
};

struct rank_slot {
    uint32_t slot;    /* of the holder, never 0 */
    uint32_t version; /* of the page */
};

struct rank_result {
    int32_t code; /* 0 or -errno */
    uint32_t slot;
};

struct rank_stat {
    uint64_t capacity, used; /* pages of its stores */
    uint64_t pages;          /* kept for the asking rank */
};

#define RANK_MESSAGE_MAX                                                                           \
    (sizeof(struct rank_head) + sizeof(struct rank_stat) + RANK_PAGES * (8 + (size_t)RANK_PAGE))

/*
 * NULL when these bytes are a whole, possible message, else what is wrong with them. Says nothing
 * about slots, versions and ranks being right: that is their user's to check.
 */
const char *rank_check(const void *message, size_t len);

/* Where the pages of a STORE, or of a FETCH's answer, begin. */
static inline uint8_t *rank_pages(struct rank_head *h)
{
    return (uint8_t *)(h + 1) + (size_t)h->count * sizeof(struct rank_slot);
}

#endif
