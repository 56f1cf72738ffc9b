/* The counters of an instance, as `edm stat --json` shows them. */
#include "instance.h"
#include "stats.h"
#include "uffd.h"

/* What is really there in leased chunks, zero pages aside; tracked pages need no looking. */
static uint64_t leased_pages(struct instance *in)
{
    uint64_t sum = 0;
    for (uint32_t n = 0; n < in->spt.nchunks; n++) {
        const struct chunk *c = &in->spt.chunks[n];
        if (!c->leased)
            continue;
        int64_t pages = uffd_count(in->pagemap_fd, c->addr, c->addr + EDM_CHUNK_SIZE);
        sum += pages > 0 ? (uint64_t)pages : 0;
    }
    return sum;
}

/* Stored pages that should have more copies than they have. */
static uint64_t missing_copies(const struct instance *in)
{
    store_handle handles[EDM_CHUNK_PAGES];
    uint64_t sum = 0;
    struct copies_wish wish = page_wish(in);
    for (uint32_t n = 0; n < in->spt.nchunks && wish.replicas > 1; n++) {
        size_t stored = 0;
        for (uint32_t i = 0; i < EDM_CHUNK_PAGES; i++) {
            const struct page *p = &in->spt.chunks[n].pages[i];
            if (p->state == PAGE_STORED)
                handles[stored++] = p->handle;
        }
        sum += stored ? copies_missing(handles, stored) : 0;
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
    struct instance_stats s = *in->stats;
    uint64_t limbo = in->limbo.used, waiting = in->nwaiters, missing = missing_copies(in);
    pthread_mutex_unlock(&in->lock);
    fprintf(f, "{\"pid\":%d,\"command\":", in->pid);
    json_string(f, in->command);
    fprintf(f,
            ",\"local_memory_bytes\":%lu,\"resident_bytes\":%lu,\"resident_max_bytes\":%lu,"
            "\"charged_bytes\":%lu,\"limbo_bytes\":%lu,\"waiting\":%lu,"
            "\"stored_bytes\":%lu,\"stored_pages\":%lu,\"missing_copies\":%lu,",
            limit << EDM_PAGE_SHIFT, resident << EDM_PAGE_SHIFT, max << EDM_PAGE_SHIFT,
            charged << EDM_PAGE_SHIFT, limbo << EDM_PAGE_SHIFT, waiting, stored << EDM_PAGE_SHIFT,
            stored, missing);
    json_counters(&s, f);
    fputc('}', f);
}
