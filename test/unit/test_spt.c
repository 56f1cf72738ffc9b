/* The page table: every address its own entry, counts that match. */
#include "dms/image.h"
#include "dms/spt.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static void addresses_and_ids(void **state)
{
    struct spt t;
    struct image *img;
    int fd;
    assert_int_equal(image_create(&fd, &img), 0);
    assert_int_equal(spt_init(&t, img), 0);
    const uint64_t addrs[] = {0x1000, 0x7f1234567000, 0x7fffffffe000, 0x200000, 0x1ff000};
    for (unsigned i = 0; i < 5; i++) {
        struct chunk *c = spt_chunk(&t, addrs[i], true);
        assert_non_null(c);
        uint32_t id = spt_id(c, spt_index(addrs[i]));
        assert_int_equal(spt_addr(&t, id), addrs[i]);
        assert_ptr_equal(spt_chunk_of(&t, id), c);
        assert_ptr_equal(spt_chunk(&t, addrs[i], false), c);
    }
    assert_int_equal(t.nchunks, 4); /* 0x1000 and 0x1ff000 share one */
    assert_null(spt_chunk(&t, 1ull << 48, true));
    assert_null(spt_chunk(&t, 0x400000, false));
    spt_fini(&t);
    image_close(img);
    close(fd);
}

static void counts(void **state)
{
    struct spt t;
    unsigned touched = 0, foreign = 0;
    struct image *img;
    int fd;
    assert_int_equal(image_create(&fd, &img), 0);
    assert_int_equal(spt_init(&t, img), 0);
    struct chunk *c = spt_chunk(&t, 0x40000000, true);
    for (int i = 0; i < 100000; i++) {
        struct page *p = &c->pages[random() % EDM_CHUNK_PAGES];
        spt_set(c, p, (enum page_state)(random() % (PAGE_FOREIGN + 1)));
    }
    for (unsigned i = 0; i < EDM_CHUNK_PAGES; i++) {
        touched += c->pages[i].state != PAGE_NEW;
        foreign += c->pages[i].state == PAGE_FOREIGN;
    }
    assert_int_equal(c->touched, touched);
    assert_int_equal(c->foreign, foreign);
    spt_fini(&t);
    image_close(img);
    close(fd);
    spt_fini(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(addresses_and_ids),
                                       cmocka_unit_test(counts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
