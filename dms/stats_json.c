/* The counters of an instance, as `edm stat --json` shows them. */
#include "instance.h"
#include "stats.h"
#include "uffd.h"

/* What is really there in leased chunks, zero pages aside; tracked pages need no looking. When the
 * process has ended: what was charged. */
static uint64_t leased_pages(struct instance *in)
{
    uint64_t sum = 0;
    if (instance_is_gone(in))
        return in->budget.leases * EDM_CHUNK_PAGES;
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

/* Bytes of the UTF-8 character at s; 0: it is none. */
static unsigned utf8_length(const unsigned char *s)
{
    unsigned n = s[0] < 0x80                   ? 1
                 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
                 : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
                 : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                               : 0;
    for (unsigned i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    bool wrong = n == 3 && ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] >= 0xa0));
    wrong |= n == 4 && ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] >= 0x90));
    return wrong ? 0 : n;
}

static void json_string(FILE *f, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    fputc('"', f);
    for (unsigned n; *s; s += n ? n : 1) {
        n = utf8_length(s);
        if (*s == '"' || *s == '\\')
            fprintf(f, "\\%c", *s);
        else if (*s < 0x20 || *s == 0x7f || !n)
            fprintf(f, "\\u%04x", *s);
        else
            fwrite(s, 1, n, f);
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
    uint64_t stored = in->stored, limit = b->limit, charged = budget_charge(in);
    struct instance_stats s = *in->stats;
    uint64_t limbo = in->limbo.used, waiting = in->nwaiters, missing = missing_copies(in);
    pthread_mutex_unlock(&in->lock);
    fprintf(f, "{\"pid\":%d,\"command\":", in->pid);
    json_string(f, in->command);
    fprintf(f,
            ",\"local_memory_bytes\":%lu,\"resident_bytes\":%lu,\"resident_max_bytes\":%lu,"
            "\"charged_bytes\":%lu,\"limbo_bytes\":%lu,\"waiting\":%lu,"
            "\"stored_bytes\":%lu,\"stored_pages\":%lu,\"missing_copies\":%lu,",
            limit << EDM_PAGE_SHIFT, resident << EDM_PAGE_SHIFT, s.resident_max << EDM_PAGE_SHIFT,
            charged << EDM_PAGE_SHIFT, limbo << EDM_PAGE_SHIFT, waiting, stored << EDM_PAGE_SHIFT,
            stored, missing);
    json_counters(&s, f);
    fputc('}', f);
}
