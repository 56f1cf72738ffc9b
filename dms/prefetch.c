#include "prefetch.h"
#include <stdbool.h>
#include <stdlib.h>

#define WINDOW_FIRST 4
#define STRIDE_MAX 64
/* Things that lie across two pages look like a stream each. One of four beginnings is to go on;
 * else a third neighbour must be seen before anything is fetched. */
#define DOUBT_MAX 16u
#define DOUBT_LESS 4u

static struct prefetch_stream *find_expected(struct prefetcher *p, uint64_t page)
{
    for (int i = 0; i < PREFETCH_STREAMS; i++) {
        struct prefetch_stream *s = &p->streams[i];
        if (s->stride && s->expect == page)
            return s;
    }
    return NULL;
}

/* A stream whose last fault is so near that the distance may be its stride. */
static struct prefetch_stream *find_near(struct prefetcher *p, uint64_t page)
{
    struct prefetch_stream *best = NULL;
    for (int i = 0; i < PREFETCH_STREAMS; i++) {
        struct prefetch_stream *s = &p->streams[i];
        int64_t d = (int64_t)(page - s->last);
        if (s->clock && d != 0 && llabs(d) <= STRIDE_MAX && (!best || s->clock > best->clock))
            best = s;
    }
    return best;
}

static struct prefetch_stream *oldest(struct prefetcher *p)
{
    struct prefetch_stream *best = &p->streams[0];
    for (int i = 1; i < PREFETCH_STREAMS; i++)
        if (p->streams[i].clock < best->clock)
            best = &p->streams[i];
    return best;
}

static struct prefetch_plan stream_go_on(struct prefetcher *p, struct prefetch_stream *s,
                                         uint64_t page, uint32_t max)
{
    uint32_t used = s->window;
    if (s->hits == 1 && used) /* its first pages were used */
        p->doubt -= p->doubt < DOUBT_LESS ? p->doubt : DOUBT_LESS;
    s->window = s->window ? s->window * 2 : WINDOW_FIRST;
    if (s->window > max)
        s->window = max;
    s->last = page + (uint64_t)(s->stride * (int64_t)s->window);
    s->expect = s->last + (uint64_t)s->stride;
    s->hits++;
    return (struct prefetch_plan){page + (uint64_t)s->stride, s->stride, s->window, used};
}

struct prefetch_plan prefetch_fault(struct prefetcher *p, uint64_t page, uint32_t max)
{
    struct prefetch_plan none = {0, 0, 0, 0};
    struct prefetch_stream *s = find_expected(p, page);
    p->clock++;
    if (s) {
        s->clock = p->clock;
        return stream_go_on(p, s, page, max);
    }
    s = find_near(p, page);
    if (s) {
        int64_t d = (int64_t)(page - s->last);
        bool unit = d == 1 || d == -1;
        /* a running stream that jumped over pages which were there already */
        bool ahead = s->hits > 0 && llabs(s->stride) == 1 && (d > 0) == (s->stride > 0);
        s->clock = p->clock;
        if (ahead)
            return stream_go_on(p, s, page, max);
        s->stride = d;
        s->window = 0;
        s->hits = 0;
        s->last = page;
        s->expect = page + (uint64_t)d;
        /* neighbours are a stream at once, a stride must be seen twice */
        if (!unit || p->doubt == DOUBT_MAX)
            return none;
        p->doubt++;
        return stream_go_on(p, s, page, max);
    }
    s = oldest(p);
    *s = (struct prefetch_stream){.last = page, .clock = p->clock};
    return none;
}
