#include "lspt.h"
#include <assert.h>

#define SHARE_FIRST (LSPT_WHOLE / 4)
#define SHARE_MIN (LSPT_WHOLE / 32)
#define SHARE_MAX (LSPT_WHOLE / 2)

void lspt_init(struct lspt *l)
{
    l->probation = (struct lspt_list){SPT_NONE, SPT_NONE, 0};
    l->protect = l->probation;
    l->leases = 0;
    l->share = SHARE_FIRST;
}

static struct link *node_link(struct spt *t, uint32_t node)
{
    if (node & SPT_CHUNK_BIT)
        return &t->chunks[node & ~SPT_CHUNK_BIT].link;
    return &spt_page(t, node)->link;
}

static void list_push(struct lspt_list *q, struct spt *t, uint32_t node, bool first)
{
    struct link *n = node_link(t, node);
    n->prev = first ? SPT_NONE : q->tail;
    n->next = first ? q->head : SPT_NONE;
    if (n->prev == SPT_NONE)
        q->head = node;
    else
        node_link(t, n->prev)->next = node;
    if (n->next == SPT_NONE)
        q->tail = node;
    else
        node_link(t, n->next)->prev = node;
    q->count++;
}

static void list_remove(struct lspt_list *q, struct spt *t, uint32_t node)
{
    struct link *n = node_link(t, node);
    if (n->prev == SPT_NONE)
        q->head = n->next;
    else
        node_link(t, n->prev)->next = n->next;
    if (n->next == SPT_NONE)
        q->tail = n->prev;
    else
        node_link(t, n->next)->prev = n->prev;
    n->prev = n->next = SPT_NONE;
    q->count--;
}

static struct lspt_list *page_list(struct lspt *l, const struct page *p)
{
    return p->flags & PF_HOT ? &l->protect : &l->probation;
}

void lspt_push(struct lspt *l, struct spt *t, uint32_t id, bool first)
{
    struct page *p = spt_page(t, id);
    assert(!(p->flags & PF_LISTED));
    p->flags |= PF_LISTED;
    list_push(page_list(l, p), t, id, first);
}

void lspt_remove(struct lspt *l, struct spt *t, uint32_t id)
{
    struct page *p = spt_page(t, id);
    assert(p->flags & PF_LISTED);
    list_remove(page_list(l, p), t, id);
    p->flags &= (uint8_t)~PF_LISTED;
}

void lspt_push_lease(struct lspt *l, struct spt *t, struct chunk *c)
{
    assert(!c->listed);
    c->listed = 1;
    l->leases++;
    list_push(&l->probation, t, SPT_CHUNK_BIT | c->number, false);
}

void lspt_remove_lease(struct lspt *l, struct spt *t, struct chunk *c)
{
    assert(c->listed);
    list_remove(&l->probation, t, SPT_CHUNK_BIT | c->number);
    c->listed = 0;
    l->leases--;
}

uint64_t lspt_on_probation(const struct lspt *l)
{
    return l->probation.count + l->leases * (EDM_CHUNK_PAGES - 1);
}

uint32_t lspt_victim(const struct lspt *l)
{
    uint64_t pages = lspt_on_probation(l), all = pages + l->protect.count;
    bool probation = pages * LSPT_WHOLE > all * l->share || l->protect.count == 0;
    return probation ? l->probation.head : l->protect.head;
}

void lspt_came_back(struct lspt *l, bool protected)
{
    if (protected && l->share > SHARE_MIN)
        l->share--;
    else if (!protected && l->share < SHARE_MAX)
        l->share++;
}

bool lspt_left_early(uint32_t evictions, uint64_t limit)
{
    return evictions < limit / 4;
}
