/*
 * What a program says of its memory and what lasts: pins (mlock), MADV_DONTFORK, MADV_WIPEONFORK.
 * Pages that have a chunk say it themselves; of all others it is written down as ranges (marks.h),
 * so that it costs nothing to say it of a huge and sparse mapping. For small ranges a chunk is made
 * at once, for its pages will be touched.
 */
#include "instance.h"
#include <errno.h>

#define SMALL (4 * EDM_CHUNK_SIZE)
#define MAKE_MAX (1ul << 30) /* when there are too many ranges: chunks for so much, no more */

static const uint8_t mapping_flags = PF_WIPE | PF_NOFORK;

/* What becomes of pins and flags, of one page or of a range. */
struct change {
    uint8_t set, clear; /* flags */
    enum { PINS_STAY, PINS_MORE, PINS_LESS, PINS_KEEP, PINS_NONE } pins;
};

static uint8_t pins_after(const struct change *by, uint8_t pins)
{
    switch (by->pins) {
    case PINS_MORE:
        return pins == PINS_FOR_GOOD ? pins : pins + 1;
    case PINS_LESS:
        return pins == PINS_FOR_GOOD || !pins ? pins : pins - 1;
    case PINS_KEEP:
        return PINS_FOR_GOOD;
    case PINS_NONE:
        return 0;
    default:
        return pins;
    }
}

static void mark_change_by(struct mark *k, const void *arg)
{
    const struct change *by = arg;
    k->flags = (uint8_t)((k->flags & ~by->clear) | by->set);
    k->pins = pins_after(by, k->pins);
}

static void page_change(struct instance *in, struct chunk *c, uint32_t i, const struct change *by)
{
    struct page *p = &c->pages[i];
    uint8_t was = p->pins, pins = pins_after(by, was);
    p->flags = (uint8_t)((p->flags & ~by->clear) | by->set);
    if (!was == !pins) {
        p->pins = pins;
        return;
    }
    bool resident = p->state == PAGE_RESIDENT;
    if (resident)
        page_unlist(in, spt_id(c, i));
    p->pins = pins;
    c->pinned += pins ? 1 : -1;
    if (resident)
        page_make_resident(in, c, spt_id(c, i), false);
}

static int chunks_make(struct instance *in, uint64_t start, uint64_t end)
{
    uint32_t before = in->spt.nchunks;
    bool made = in->made < MADE_MAX;
    for (uint64_t a = start & ~(EDM_CHUNK_SIZE - 1); made && a < end; a += EDM_CHUNK_SIZE)
        made = page_chunk(in, a) != NULL;
    in->made += in->spt.nchunks - before;
    return made ? 0 : -ENOMEM;
}

static bool is_marked(const struct marks *m, uint64_t start, uint64_t end)
{
    struct mark k = marks_at(m, start >> EDM_PAGE_SHIFT);
    return k.flags || k.pins || k.end < end >> EDM_PAGE_SHIFT;
}

/* The part that has no chunk. */
static int absent_change(struct instance *in, uint64_t start, uint64_t end, const struct change *by)
{
    struct marks *m = &in->img->marks;
    bool adds = by->set || by->pins == PINS_MORE || by->pins == PINS_KEEP;
    if (adds && end - start <= SMALL && !chunks_make(in, start, end))
        return 0;
    if (!adds && !is_marked(m, start, end))
        return 0;
    int err = marks_change(m, start >> EDM_PAGE_SHIFT, end >> EDM_PAGE_SHIFT, mark_change_by, by);
    return err && end - start <= MAKE_MAX ? chunks_make(in, start, end) : err;
}

static void present_change(struct instance *in, uint64_t start, uint64_t end,
                           const struct change *by)
{
    for (uint64_t a = start; a < end;) {
        struct chunk *c = spt_chunk(&in->spt, a, false);
        if (!c) {
            a = spt_beyond(&in->spt, a);
            continue;
        }
        uint64_t stop = (a | (EDM_CHUNK_SIZE - 1)) + 1;
        for (stop = stop < end ? stop : end; a < stop; a += EDM_PAGE_SIZE)
            page_change(in, c, spt_index(a), by);
    }
}

/* Outside of the arena only what the table has already is ours. */
static int range_change(struct instance *in, uint64_t start, uint64_t len, const struct change *by)
{
    uint64_t end = (start + len + EDM_PAGE_SIZE - 1) & ~(EDM_PAGE_SIZE - 1);
    uint64_t from = start = start & ~(EDM_PAGE_SIZE - 1), to = end;
    uint64_t arena_end = in->arena_start + in->arena_len;
    from = from < in->arena_start ? in->arena_start : from;
    to = to > arena_end ? arena_end : to;
    int err = from < to ? absent_change(in, from, to, by) : 0;
    if (!err)
        present_change(in, start, end, by);
    return err;
}

int advice_pin(struct instance *in, uint64_t start, uint64_t len, bool for_good)
{
    const struct change by = {.pins = for_good ? PINS_KEEP : PINS_MORE};
    return range_change(in, start, len, &by);
}

int advice_unpin(struct instance *in, uint64_t start, uint64_t len)
{
    const struct change by = {.pins = PINS_LESS};
    return range_change(in, start, len, &by);
}

int advice_flag(struct instance *in, uint64_t start, uint64_t len, uint8_t flag, bool on)
{
    const struct change by = {.set = on ? flag : 0, .clear = on ? 0 : flag};
    return range_change(in, start, len, &by);
}

int advice_forget(struct instance *in, uint64_t start, uint64_t len)
{
    const struct change by = {.clear = mapping_flags, .pins = PINS_NONE};
    return range_change(in, start, len, &by);
}

int advice_unmapped(struct instance *in, uint64_t start, uint64_t end)
{
    const struct change by = {.clear = mapping_flags};
    return absent_change(in, start, end, &by);
}

uint8_t advice_flags(const struct instance *in, uint64_t addr)
{
    return marks_at(&in->img->marks, addr >> EDM_PAGE_SHIFT).flags & mapping_flags;
}

int advice_moved(struct instance *in, uint64_t from, uint64_t to, uint64_t len)
{
    struct marks *m = &in->img->marks;
    if (!is_marked(m, from, from + len) && !is_marked(m, to, to + len))
        return 0;
    if (len <= MAKE_MAX && !chunks_make(in, from, from + len))
        return 0; /* the pages carry it, also when an event is late (ghost.c) */
    return marks_copy(m, from >> EDM_PAGE_SHIFT, to >> EDM_PAGE_SHIFT, len >> EDM_PAGE_SHIFT,
                      mapping_flags);
}

int advice_grown(struct instance *in, uint64_t start, uint64_t end, uint8_t flags)
{
    const struct change by = {.set = flags};
    int err = absent_change(in, start, end, &by);
    if (!err)
        present_change(in, start, end, &by);
    return err;
}
