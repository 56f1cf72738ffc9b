#include "marks.h"
#include "image.h"
#include <errno.h>

static const struct mark_list *current(const struct marks *m)
{
    return &m->list[m->which & 1];
}

/* The list to be written. */
static struct mark_list *list_begin(struct marks *m)
{
    struct mark_list *l = &m->list[~m->which & 1];
    l->n = 0;
    return l;
}

static void list_end(struct marks *m)
{
    image_order();
    m->which = ~m->which & 1;
    image_order();
}

/* The first mark that ends behind the page. */
static uint32_t find(const struct mark_list *l, uint64_t page)
{
    uint32_t low = 0, high = l->n;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (l->at[mid].end > page)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

struct mark marks_at(const struct marks *m, uint64_t page)
{
    const struct mark_list *l = current(m);
    uint32_t i = find(l, page);
    if (i == l->n)
        return (struct mark){.first = page, .end = UINT64_MAX};
    if (l->at[i].first > page)
        return (struct mark){.first = page, .end = l->at[i].first};
    return l->at[i];
}

/* Adds what comes next in order. */
static bool list_add(struct mark_list *l, struct mark k)
{
    struct mark *last = l->n ? &l->at[l->n - 1] : NULL;
    if (k.first >= k.end || (!k.flags && !k.pins))
        return true;
    if (last && last->end == k.first && last->flags == k.flags && last->pins == k.pins) {
        last->end = k.end;
        return true;
    }
    if (l->n == MARKS_MAX)
        return false;
    l->at[l->n++] = k;
    return true;
}

/* Adds the current marks from page `first` up to `end`, as they are. */
static bool list_add_all(struct mark_list *l, const struct mark_list *from, uint64_t first,
                         uint64_t end)
{
    bool fits = true;
    for (uint32_t i = find(from, first); fits && i < from->n && from->at[i].first < end; i++) {
        struct mark k = from->at[i];
        k.first = k.first > first ? k.first : first;
        k.end = k.end < end ? k.end : end;
        fits = list_add(l, k);
    }
    return fits;
}

int marks_change(struct marks *m, uint64_t first, uint64_t end, mark_change *fn, const void *arg)
{
    const struct mark_list *old = current(m);
    struct mark_list *l = list_begin(m);
    bool fits = list_add_all(l, old, 0, first);
    for (uint64_t at = first; fits && at < end;) {
        struct mark k = marks_at(m, at);
        k.first = at;
        k.end = k.end < end ? k.end : end;
        at = k.end;
        fn(&k, arg);
        fits = list_add(l, k);
    }
    if (!fits || !list_add_all(l, old, end, UINT64_MAX))
        return -ENOMEM;
    list_end(m);
    return 0;
}

int marks_copy(struct marks *m, uint64_t from, uint64_t to, uint64_t n, uint8_t flags)
{
    const struct mark_list *old = current(m);
    if (!old->n)
        return 0;
    struct mark_list *l = list_begin(m);
    bool fits = list_add_all(l, old, 0, to);
    for (uint64_t off = 0; fits && off < n;) {
        struct mark source = marks_at(m, from + off), k = marks_at(m, to + off);
        uint64_t a = source.end - from, b = k.end - to;
        uint64_t stop = a < b ? a : b;
        k.first = to + off;
        off = stop < n ? stop : n;
        k.end = to + off;
        k.flags = (uint8_t)((k.flags & ~flags) | (source.flags & flags));
        fits = list_add(l, k);
    }
    if (!fits || !list_add_all(l, old, to + n, UINT64_MAX))
        return -ENOMEM;
    list_end(m);
    return 0;
}

void marks_inherit(struct marks *child, const struct marks *parent)
{
    const struct mark_list *old = current(parent);
    struct mark_list *l = list_begin(child);
    for (uint32_t i = 0; i < old->n; i++) {
        struct mark k = old->at[i];
        k.pins = k.pins == PINS_FOR_GOOD ? k.pins : 0; /* mlock is not inherited */
        list_add(l, k);
    }
    list_end(child);
}
