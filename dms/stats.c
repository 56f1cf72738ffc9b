#include "stats.h"

/* Four buckets for each power of two. */
static unsigned bucket_of(uint64_t ns)
{
    if (ns < 8)
        return (unsigned)ns;
    unsigned log = 63 - (unsigned)__builtin_clzll(ns);
    unsigned b = log * 4 + (unsigned)(ns >> (log - 2) & 3);
    return b < LATENCY_BUCKETS ? b : LATENCY_BUCKETS - 1;
}

static uint64_t bucket_end(unsigned b)
{
    if (b < 8)
        return b;
    unsigned log = b / 4;
    return (1ull << log) + ((uint64_t)(b % 4 + 1) << (log - 2)) - 1;
}

void stats_latency_add(struct instance_stats *s, uint64_t ns)
{
    s->latency[bucket_of(ns)]++;
    if (ns > s->latency_max_ns)
        s->latency_max_ns = ns;
}

uint64_t stats_latency_at(const struct instance_stats *s, unsigned permille)
{
    uint64_t sum = 0, upto = 0;
    for (unsigned i = 0; i < LATENCY_BUCKETS; i++)
        sum += s->latency[i];
    for (unsigned i = 0; i < LATENCY_BUCKETS && sum; i++) {
        upto += s->latency[i];
        if (upto * 1000 >= sum * permille)
            return bucket_end(i) < s->latency_max_ns ? bucket_end(i) : s->latency_max_ns;
    }
    return 0;
}
