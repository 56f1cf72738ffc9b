/* Ghosts: what was at an address before another page came there, until the late event says where
 * to. */
#include "dms/keeper.h"
#include "dms/uffd.h"
#include "fake_instance.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#define ADDR (FAKE_ARENA + 5 * EDM_PAGE_SIZE)

/* ---- in place of the kernel, the hooks and the store ---- */

static bool mapped, noted, event_pending;
static int maps_err;
static unsigned unrefs;

int uffd_next_mapping(int maps_fd, uint64_t addr, uint64_t *start, uint64_t *end, bool *anonymous)
{
    *start = mapped ? addr : addr + EDM_PAGE_SIZE;
    *end = *start + EDM_PAGE_SIZE;
    *anonymous = true;
    return maps_err;
}

int uffd_protect(int fd, uint64_t start, uint64_t len, bool on)
{
    return event_pending ? -EAGAIN : -ENOENT;
}

bool op_note_says(const struct instance *in, uint64_t start, uint64_t len, uint64_t to)
{
    return noted;
}

void copies_unref(store_handle h)
{
    unrefs++;
}

struct state *keeper_state(void)
{
    return NULL;
}

void budget_note(const struct instance *in)
{
}

uint64_t budget_charge(const struct instance *in)
{
    return in->budget.resident;
}

/* ---- */

static struct instance *in;

static int setup(void **state)
{
    in = fake_instance_new();
    mapped = true;
    noted = event_pending = false;
    maps_err = 0;
    unrefs = 0;
    return 0;
}

static int teardown(void **state)
{
    fake_instance_free(in);
    return 0;
}

/* As event.c does it. */
static struct page *haunt(uint64_t addr, enum page_state what)
{
    struct chunk *c = ghost_make(in, addr);
    struct page *p = &c->pages[spt_index(addr)];
    assert_true(spt_is_ghost(c));
    if (what == PAGE_RESIDENT)
        page_make_resident(in, c, spt_id(c, spt_index(addr)), false);
    else
        spt_set(c, p, what);
    return p;
}

static void none_at_first(void **state)
{
    assert_false(ghost_at(in, ADDR));
    ghost_drop(in, ADDR);
    ghost_expire(in);
    assert_null(spt_chunk(&in->spt, ADDR | SPT_GHOST, false));
}

static void one_address_has_one(void **state)
{
    haunt(ADDR, PAGE_NEW);
    assert_true(ghost_at(in, ADDR));
    assert_false(ghost_at(in, ADDR + EDM_PAGE_SIZE));
    ghost_drop(in, ADDR);
    assert_false(ghost_at(in, ADDR));
    haunt(ADDR, PAGE_NEW);
    assert_true(ghost_at(in, ADDR));
}

/* It is not where its address says: nothing may choose it for eviction, nor charge it. */
static void is_not_evicted(void **state)
{
    haunt(ADDR, PAGE_RESIDENT);
    assert_int_equal(in->budget.resident, 0);
    assert_int_equal(in->budget.pinned, 1);
    assert_int_equal(lspt_victim(&in->lspt), SPT_NONE);
    ghost_drop(in, ADDR);
    assert_int_equal(in->budget.pinned, 0);
}

static void drop_gives_its_copy_back(void **state)
{
    haunt(ADDR, PAGE_STORED)->handle = 1;
    in->stored++;
    ghost_drop(in, ADDR);
    assert_int_equal(unrefs, 1);
    assert_int_equal(in->stored, 0);
}

static void meant_unless_hooks_or_maps_say_else(void **state)
{
    assert_false(ghost_is_meant(in, ADDR, 0));
    haunt(ADDR, PAGE_NEW);
    assert_true(ghost_is_meant(in, ADDR, 0));
    noted = true; /* a hook is unmapping what is there now */
    assert_false(ghost_is_meant(in, ADDR, 0));
    noted = false;
    mapped = false; /* what is there now has gone */
    assert_false(ghost_is_meant(in, ADDR, 0));
    maps_err = -ENOENT;
    assert_false(ghost_is_meant(in, ADDR, 0));
    maps_err = -ENOTTY; /* an old kernel does not tell */
    assert_true(ghost_is_meant(in, ADDR, 0));
    maps_err = 0;
    in->maps_fd = -1;
    assert_true(ghost_is_meant(in, ADDR, 0));
}

static void expires_when_no_event_can_be_late(void **state)
{
    haunt(ADDR, PAGE_STORED)->handle = 1;
    in->stored++;
    event_pending = true;
    ghost_expire(in);
    assert_true(ghost_at(in, ADDR));
    assert_int_equal(unrefs, 0);
    event_pending = false;
    ghost_expire(in);
    assert_false(ghost_at(in, ADDR));
    assert_int_equal(unrefs, 1);
    assert_int_equal(in->nghosts, 0);
}

/* Its eviction is under way: the outcome ends it, and until then it is nobody's. */
static void evicting_one_waits_for_its_outcome(void **state)
{
    struct page *p = haunt(ADDR, PAGE_EVICTING);
    ghost_expire(in);
    assert_false(ghost_at(in, ADDR));
    assert_int_equal(p->state, PAGE_EVICTING);
    assert_true(p->flags & PF_DISCARD);
    assert_int_equal(p->version, PAGE_FOREIGN);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(none_at_first),
        TEST(one_address_has_one),
        TEST(is_not_evicted),
        TEST(drop_gives_its_copy_back),
        TEST(meant_unless_hooks_or_maps_say_else),
        TEST(expires_when_no_event_can_be_late),
        TEST(evicting_one_waits_for_its_outcome),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
