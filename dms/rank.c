#include "proto/rank.h"
#include <string.h>

#define HOST_AT offsetof(struct rank_hello, host)

_Static_assert(sizeof(struct rank_head) == 32, "no padding on the wire");
_Static_assert(sizeof(struct rank_slot) == sizeof(struct rank_result), "rank_pages counts on it");
_Static_assert(RANK_DROPS * sizeof(struct rank_slot) < RANK_MESSAGE_MAX, "a DROP fits");

static bool count_is_possible(const struct rank_head *h)
{
    switch (h->kind) {
    case RANK_STORE:
    case RANK_FETCH:
        return h->count >= 1 && h->count <= RANK_PAGES;
    case RANK_DROP:
    case RANK_CLAIM:
        return h->count >= 1 && h->count <= RANK_DROPS;
    default:
        return h->count == 0;
    }
}

static size_t request_len(const struct rank_head *h)
{
    size_t slots = h->count * sizeof(struct rank_slot);
    switch (h->kind) {
    case RANK_HELLO:
        return sizeof(struct rank_hello);
    case RANK_STORE:
        return slots + (size_t)h->count * RANK_PAGE;
    default:
        return slots;
    }
}

/* Pages that a FETCH's answer brings. */
static size_t fetched(const struct rank_head *h)
{
    size_t n = 0;
    for (uint32_t i = 0; i < h->count; i++) {
        struct rank_result r;
        memcpy(&r, (const char *)(h + 1) + i * sizeof(r), sizeof(r));
        n += r.code == 0;
    }
    return n;
}

static size_t answer_len(const struct rank_head *h, size_t body)
{
    size_t results = h->count * sizeof(struct rank_result);
    switch (h->kind) {
    case RANK_HELLO:
        return sizeof(struct rank_hello);
    case RANK_STORE:
        return sizeof(struct rank_stat) + results;
    case RANK_CLAIM:
        return results;
    case RANK_FETCH:
        return body < results ? results : results + fetched(h) * RANK_PAGE;
    case RANK_STAT:
        return sizeof(struct rank_stat);
    default:
        return 0;
    }
}

/* It is shown to people and in JSON as it is. */
static const char *check_host(const char *host)
{
    if (!memchr(host, 0, RANK_HOST_MAX))
        return "a host name without end";
    for (; *host; host++)
        if (*host < '!' || *host > '~' || *host == '"' || *host == '\\')
            return "an odd host name";
    return NULL;
}

const char *rank_check(const void *message, size_t len)
{
    const struct rank_head *h = message;
    if (len < sizeof(*h))
        return "too short";
    if (h->magic != RANK_MAGIC)
        return "not a message of a rank";
    if (h->version != RANK_VERSION)
        return h->kind == RANK_HELLO ? NULL : "another version";
    if (h->kind < RANK_HELLO || h->kind >= RANK_KINDS || h->answer > 1)
        return "unknown kind";
    size_t body = len - sizeof(*h);
    if (h->answer && h->code)
        return body || h->code > 0 ? "a refusal with contents" : NULL;
    if (!count_is_possible(h))
        return "impossible count";
    if (body != (h->answer ? answer_len(h, body) : request_len(h)))
        return "wrong length";
    return h->kind == RANK_HELLO ? check_host((const char *)(h + 1) + HOST_AT) : NULL;
}
