/* The LSPT against a plain model: order, membership, the choice of victims. */
#include "dms/image.h"
#include "dms/lspt.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGES (4 * EDM_CHUNK_PAGES)

struct model {
    uint32_t order[PAGES + 8];
    uint32_t n;
};

static void model_remove(struct model *m, uint32_t node)
{
    for (uint32_t i = 0; i < m->n; i++)
        if (m->order[i] == node) {
            memmove(m->order + i, m->order + i + 1, (m->n - i - 1) * sizeof(*m->order));
            m->n--;
            return;
        }
    fail_msg("node %x was not in the model", node);
}

static void model_push(struct model *m, uint32_t node, bool first)
{
    if (first)
        memmove(m->order + 1, m->order, m->n * sizeof(*m->order));
    m->order[first ? 0 : m->n] = node;
    m->n++;
}

static void check_order(struct spt *t, const struct lspt_list *q, const struct model *m)
{
    uint32_t node = q->head;
    assert_int_equal(q->count, m->n);
    for (uint32_t i = 0; i < m->n; i++) {
        assert_int_equal(node, m->order[i]);
        node = node & SPT_CHUNK_BIT ? t->chunks[node & ~SPT_CHUNK_BIT].link.next
                                    : spt_page(t, node)->link.next;
    }
    assert_int_equal(node, SPT_NONE);
}

static void step(struct spt *t, struct lspt *l, struct model m[2])
{
    uint32_t id = (uint32_t)random() % PAGES;
    struct page *p = spt_page(t, id);
    bool first = random() % 4 == 0;
    if (random() % 16 == 0) {
        struct chunk *c = spt_chunk_of(t, id);
        if (c->listed) {
            lspt_remove_lease(l, t, c);
            model_remove(&m[0], SPT_CHUNK_BIT | c->number);
        } else {
            lspt_push_lease(l, t, c);
            model_push(&m[0], SPT_CHUNK_BIT | c->number, false);
        }
    } else if (p->flags & PF_LISTED) {
        bool hot = p->flags & PF_HOT;
        lspt_remove(l, t, id);
        model_remove(&m[hot], id);
    } else {
        p->flags = random() % 3 == 0 ? PF_HOT : 0;
        lspt_push(l, t, id, first);
        model_push(&m[p->flags & PF_HOT ? 1 : 0], id, first);
    }
}

static void random_model(void **state)
{
    static struct model m[2];
    struct spt t;
    struct lspt l;
    struct image *img;
    int fd;
    assert_int_equal(image_create(&fd, &img), 0);
    assert_int_equal(spt_init(&t, img), 0);
    lspt_init(&l);
    for (uint64_t a = 0; a < PAGES; a += EDM_CHUNK_PAGES)
        assert_non_null(spt_chunk(&t, 0x7f0000000000 + a * EDM_PAGE_SIZE, true));
    for (int i = 0; i < 200000; i++) {
        step(&t, &l, m);
        if (i % 1000 == 0) {
            check_order(&t, &l.probation, &m[0]);
            check_order(&t, &l.protect, &m[1]);
        }
        uint32_t victim = lspt_victim(&l);
        bool any = m[0].n + m[1].n > 0;
        assert_int_equal(victim != SPT_NONE, any);
        if (any)
            assert_true((m[0].n && victim == m[0].order[0]) || (m[1].n && victim == m[1].order[0]));
    }
    spt_fini(&t);
    image_close(img);
    close(fd);
}

static void protected_pages_stay_longer(void **state)
{
    struct spt t;
    struct lspt l;
    struct image *img;
    int fd;
    assert_int_equal(image_create(&fd, &img), 0);
    assert_int_equal(spt_init(&t, img), 0);
    lspt_init(&l);
    spt_chunk(&t, 0, true);
    for (uint32_t i = 0; i < 100; i++) {
        spt_page(&t, i)->flags = i < 50 ? PF_HOT : 0;
        lspt_push(&l, &t, i, false);
    }
    for (int i = 0; i < 30; i++) { /* while probation holds more than a quarter, it pays */
        uint32_t victim = lspt_victim(&l);
        assert_true(victim >= 50);
        lspt_remove(&l, &t, victim);
    }
    spt_fini(&t);
    image_close(img);
    close(fd);
}

/* A queue that loses pages which are wanted back at once gets more room. */
static void shares_follow_what_comes_back(void **state)
{
    struct spt t;
    struct lspt l;
    struct image *img;
    int fd;
    assert_int_equal(image_create(&fd, &img), 0);
    assert_int_equal(spt_init(&t, img), 0);
    lspt_init(&l);
    spt_chunk(&t, 0, true);
    for (uint32_t i = 0; i < 100; i++) {
        spt_page(&t, i)->flags = i < 80 ? PF_HOT : 0;
        lspt_push(&l, &t, i, false);
    }
    assert_int_equal(lspt_victim(&l), 0);
    for (int i = 0; i < 5000; i++)
        lspt_came_back(&l, true);
    assert_int_equal(lspt_victim(&l), 80); /* nearly all may be protected */
    for (int i = 0; i < 5000; i++)
        lspt_came_back(&l, false);
    for (uint32_t i = 0; i < 60; i++) { /* and no less than a half */
        assert_int_equal(lspt_victim(&l), i);
        lspt_remove(&l, &t, i);
    }
    assert_int_equal(lspt_victim(&l), 60);
    lspt_remove(&l, &t, 60);
    assert_int_equal(lspt_victim(&l), 80);
    spt_fini(&t);
    image_close(img);
    close(fd);
}

static void left_early_or_not(void **state)
{
    assert_true(lspt_left_early(0, 1000));
    assert_true(lspt_left_early(249, 1000));
    assert_false(lspt_left_early(250, 1000));
    assert_false(lspt_left_early(UINT32_MAX, 1000));
    assert_true(lspt_left_early(10 - (UINT32_MAX - 10), 1000)); /* the count has gone round */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_model), cmocka_unit_test(protected_pages_stay_longer),
        cmocka_unit_test(shares_follow_what_comes_back), cmocka_unit_test(left_early_or_not)};
    srandom(7);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
