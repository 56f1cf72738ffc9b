#include "stats.h"
#include "instance.h"
#include "uffd.h"

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

/* What is really there in leased chunks, zero pages aside; tracked pages need no looking. */
static uint64_t leased_pages(struct instance *in)
{
    uint64_t sum = 0;
    for (uint32_t n = 0; n < in->spt.nchunks; n++) {
        const struct chunk *c = in->spt.chunks[n];
        if (!c->leased)
            continue;
        int64_t pages = uffd_count(in->pagemap_fd, c->addr, c->addr + EDM_CHUNK_SIZE);
        sum += pages > 0 ? (uint64_t)pages : 0;
    }
    return sum;
}

static void json_string(FILE *f, const char *s)
{
    fputc('"', f);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            fprintf(f, "\\%c", c);
        else if (c < 0x20 || c >= 0x7f)
            fprintf(f, "\\u%04x", c);
        else
            fputc(c, f);
    }
    fputc('"', f);
}

static void json_counters(const struct instance_stats *s, FILE *f)
{
    fprintf(f,
            "\"faults\":{\"new\":%lu,\"existing\":%lu,\"limbo\":%lu,\"waited\":%lu},"
            "\"prefetch\":{\"fetched\":%lu,\"used\":%lu},\"leases\":%lu,"
            "\"evictions\":{\"pages\":%lu,\"zero\":%lu,\"clean\":%lu,\"busy\":%lu},"
            "\"events\":{\"fork\":%lu,\"remap\":%lu,\"remove\":%lu,\"unmap\":%lu},",
            s->faults_new, s->faults_existing, s->faults_limbo, s->faults_waited,
            s->prefetch_fetched,
            s->prefetch_used < s->prefetch_fetched ? s->prefetch_used : s->prefetch_fetched,
            s->leases, s->evicted, s->evicted_zero, s->evicted_clean, s->evicted_busy, s->forks,
            s->remaps, s->removes, s->unmaps);
    fprintf(f, "\"poisoned\":%lu,\"fault_latency_us\":{\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f}",
            s->poisoned, (double)stats_latency_at(s, 500) / 1e3,
            (double)stats_latency_at(s, 990) / 1e3, (double)s->latency_max_ns / 1e3);
}

void stats_instance_json(struct instance *in, FILE *f)
{
    pthread_mutex_lock(&in->lock);
    const struct budget *b = &in->budget;
    uint64_t resident = b->resident + b->evicting + b->pinned + in->limbo.used + leased_pages(in);
    uint64_t stored = in->stored, limit = b->limit, max = b->max, charged = budget_charge(in);
    struct instance_stats s = in->stats;
    uint64_t limbo = in->limbo.used, waiting = in->nwaiters;
    pthread_mutex_unlock(&in->lock);
    fprintf(f, "{\"pid\":%d,\"command\":", in->pid);
    json_string(f, in->command);
    fprintf(f,
            ",\"local_memory_bytes\":%lu,\"resident_bytes\":%lu,\"resident_max_bytes\":%lu,"
            "\"charged_bytes\":%lu,\"limbo_bytes\":%lu,\"waiting\":%lu,"
            "\"stored_bytes\":%lu,\"stored_pages\":%lu,\"missing_copies\":0,",
            limit << EDM_PAGE_SHIFT, resident << EDM_PAGE_SHIFT, max << EDM_PAGE_SHIFT,
            charged << EDM_PAGE_SHIFT, limbo << EDM_PAGE_SHIFT, waiting, stored << EDM_PAGE_SHIFT,
            stored);
    json_counters(&s, f);
    fputc('}', f);
}
