/* The arena against a model: an array with the state of every page. */
#include "preload/arena.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#define PAGE 4096ull
#define ARENA_BYTES (64ull << 20)
#define PAGES (ARENA_BYTES / PAGE)
#define STEPS 200000
#define MOST 300 /* pages of one operation */

struct page {
    uint32_t state; /* ARENA_* */
    int prot;
};

static struct page model[PAGES];
static uint64_t seed = 88172645463325252ull;

static uint32_t random_below(uint32_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 20) % n;
}

static uint64_t address(uint32_t page)
{
    return arena_start() + page * PAGE;
}

static bool is_free(uint32_t from, uint32_t n)
{
    for (uint32_t i = from; i < from + n; i++)
        if (model[i].state)
            return false;
    return true;
}

/* Lowest fit; the arena must find it when the alignment is one page. */
static uint32_t model_first(uint32_t n)
{
    uint32_t run = 0;
    for (uint32_t i = 0; i < PAGES; i++) {
        run = model[i].state ? 0 : run + 1;
        if (run == n)
            return i + 1 - n;
    }
    return UINT32_MAX;
}

static void model_set(uint32_t from, uint32_t n, uint32_t clear, uint32_t set)
{
    for (uint32_t i = from; i < from + n; i++)
        if (model[i].state)
            model[i].state = (model[i].state & ~clear) | set;
}

static void model_take(uint32_t from, uint32_t n)
{
    for (uint32_t i = from; i < from + n; i++)
        model[i].state |= ARENA_TAKEN;
}

static void step_take(uint32_t n)
{
    uint64_t align = random_below(3) ? PAGE : PAGE << random_below(8);
    uint64_t addr = arena_take(n * PAGE, align);
    uint32_t first = model_first(n);
    if (!addr) {
        for (uint32_t i = 0; i + n <= PAGES; i++)
            if (address(i) % align == 0)
                assert_false(is_free(i, n));
        return;
    }
    assert_int_equal(addr % align, 0);
    uint32_t at = (uint32_t)((addr - arena_start()) / PAGE);
    assert_true(is_free(at, n));
    if (align == PAGE)
        assert_int_equal(at, first);
    model_take(at, n);
}

static void step_take_at(uint32_t from, uint32_t n)
{
    bool expected = is_free(from, n);
    assert_int_equal(arena_take_at(address(from), n * PAGE), expected);
    if (expected)
        model_take(from, n);
}

static void step_state(uint32_t from, uint32_t n)
{
    static const uint32_t bits[] = {ARENA_FOREIGN, ARENA_LOCKED, ARENA_WIPE, ARENA_DONTFORK};
    uint32_t set = bits[random_below(4)], clear = bits[random_below(4)];
    arena_set_state(address(from), n * PAGE, clear, set);
    model_set(from, n, clear, set);
}

static void step_mark(uint32_t from, uint32_t n, bool mark)
{
    if (mark)
        arena_mark(address(from), n * PAGE);
    else
        arena_unmark(address(from), n * PAGE);
    model_set(from, n, mark ? 0 : ARENA_MARKED, mark ? ARENA_MARKED : 0);
}

static void step_protect(uint32_t from, uint32_t n)
{
    static const int prots[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_EXEC};
    int prot = prots[random_below(4)];
    arena_protect(address(from), n * PAGE, prot);
    for (uint32_t i = from; i < from + n; i++)
        if (model[i].state)
            model[i].prot = prot;
}

static void step_give(uint32_t from, uint32_t n)
{
    arena_give(address(from), n * PAGE);
    memset(model + from, 0, n * sizeof(model[0]));
}

static void check_all(void)
{
    uint64_t taken = 0, accessible = 0;
    for (uint32_t i = 0; i < PAGES; i++) {
        taken += model[i].state != 0;
        accessible += model[i].prot && !(model[i].state & ARENA_FOREIGN);
    }
    assert_int_equal(arena_taken(), taken * PAGE);
    assert_int_equal(arena_accessible(), accessible * PAGE);
    uint32_t i = 0;
    struct arena_piece p;
    while (i < PAGES) {
        assert_true(arena_piece_at(address(i) + random_below(4096), &p));
        assert_int_equal(p.start, address(i));
        uint32_t end = (uint32_t)((p.end - arena_start()) / PAGE);
        for (uint32_t k = i; k < end; k++) {
            assert_int_equal(p.state, model[k].state);
            assert_int_equal(p.prot, model[k].prot);
        }
        /* Neighbours that are alike are one piece. */
        if (end < PAGES)
            assert_memory_not_equal(&model[end], &model[i], sizeof(model[0]));
        i = end;
    }
}

static void check_marked(uint32_t from, uint32_t n)
{
    bool expected = false;
    for (uint32_t i = from; i < from + n; i++)
        expected |= (model[i].state & ARENA_MARKED) != 0;
    assert_int_equal(arena_marked(address(from), n * PAGE), expected);
}

static void behaves_like_an_array_of_pages(void **state)
{
    for (int step = 0; step < STEPS; step++) {
        uint32_t n = 1 + random_below(random_below(4) ? 16 : MOST);
        uint32_t from = random_below(PAGES - n);
        switch (random_below(9)) {
        case 0:
        case 1:
            step_take(n);
            break;
        case 2:
            step_take_at(from, n);
            break;
        case 3:
            if (random_below(8))
                break;
            arena_claim(address(from), n * PAGE);
            model_take(from, n);
            break;
        case 4:
            step_state(from, n);
            break;
        case 5:
            step_mark(from, n, random_below(2));
            break;
        case 6:
            step_protect(from, n);
            break;
        default:
            step_give(from, n);
        }
        check_marked(from, n);
        if (step % 1000 == 0)
            check_all();
    }
    check_all();
    step_give(0, PAGES);
    check_all();
}

static void finds_aligned_room_in_tight_places(void **state)
{
    /* Exactly one aligned run of 512 pages is free; with slack for alignment nothing is. */
    uint32_t aligned = (uint32_t)((0x200000 - arena_start() % 0x200000) % 0x200000 / PAGE) + 1024;
    arena_claim(arena_start(), ARENA_BYTES);
    arena_give(address(aligned), 512 * PAGE);
    assert_int_equal(arena_take(512 * PAGE, 0x200000), address(aligned));
    assert_int_equal(arena_take(PAGE, PAGE), 0);
    arena_give(arena_start(), ARENA_BYTES);
}

static void keeps_to_its_borders(void **state)
{
    struct arena_piece p;
    uint64_t end = arena_start() + arena_len();
    assert_true(arena_contains(arena_start(), arena_len()));
    assert_false(arena_contains(arena_start(), arena_len() + 1));
    assert_false(arena_contains(arena_start() - PAGE, PAGE));
    assert_false(arena_overlaps(end, PAGE));
    assert_true(arena_overlaps(end - 1, 1));
    assert_true(arena_overlaps(arena_start() - PAGE, PAGE + 1));
    assert_false(arena_piece_at(end, &p));
    assert_int_equal(arena_take(arena_len() + PAGE, PAGE), 0);
    arena_claim(end - PAGE, 8 * PAGE);
    assert_int_equal(arena_taken(), PAGE);
    arena_give(end - PAGE, 8 * PAGE);
    assert_int_equal(arena_taken(), 0);
}

static int set_up(void **state)
{
    return arena_init(ARENA_BYTES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_to_its_borders),
        cmocka_unit_test(finds_aligned_room_in_tight_places),
        cmocka_unit_test(behaves_like_an_array_of_pages),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
