/* Memory of the page store: frames, objects, growing, giving back, a full /dev/shm. */
#include "../../dms/store_mem.h"

#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static void grow(struct store_mem *m, bool force)
{
    uint32_t step = store_mem_grow_begin(m, force);
    assert_int_not_equal(step, MEM_NONE);
    store_mem_grow_end(m, step, store_mem_grow_run(m, step, force));
}

static void frames_are_distinct_and_recycled_last_first(void **state)
{
    struct store_mem m;
    uint32_t f[MEM_STEP_FRAMES];
    assert_int_equal(store_mem_init(&m, "/dev/shm", 4 * MEM_STEP_SIZE, 8 * MEM_STEP_SIZE), 0);
    assert_int_equal(m.spare, MEM_STEP_FRAMES);
    for (uint32_t i = 0; i < MEM_STEP_FRAMES; i++) {
        f[i] = store_mem_frame_get(&m);
        assert_int_not_equal(f[i], MEM_NONE);
        memset(store_mem_frame(&m, f[i]), (int)i, MEM_FRAME_SIZE);
    }
    assert_int_equal(store_mem_frame_get(&m), MEM_NONE);
    for (uint32_t i = 0; i < MEM_STEP_FRAMES; i++)
        assert_int_equal(((unsigned char *)store_mem_frame(&m, f[i]))[4095], i & 0xff);
    store_mem_frame_put(&m, f[7]);
    store_mem_frame_put(&m, f[3]);
    assert_int_equal(store_mem_frame_get(&m), f[3]);
    assert_int_equal(store_mem_frame_get(&m), f[7]);
    store_mem_fini(&m);
}

static void capacity_holds_unless_forced(void **state)
{
    struct store_mem m;
    assert_int_equal(store_mem_init(&m, "/dev/shm", 2 * MEM_STEP_SIZE, 3 * MEM_STEP_SIZE), 0);
    assert_int_equal(store_mem_capacity(&m), 2 * MEM_STEP_FRAMES);
    grow(&m, false);
    assert_int_equal(store_mem_grow_begin(&m, false), MEM_NONE);
    grow(&m, true);
    assert_int_equal(store_mem_grow_begin(&m, true), MEM_NONE);
    assert_int_equal(m.granted, 3 * MEM_STEP_FRAMES);
    store_mem_fini(&m);
}

static void objects_of_every_class_do_not_overlap(void **state)
{
    struct store_mem m;
    uint32_t ob[2000], len[2000], n = 0;
    assert_int_equal(store_mem_init(&m, "/dev/shm", 8 * MEM_STEP_SIZE, 8 * MEM_STEP_SIZE), 0);
    for (int i = 0; i < 4; i++)
        grow(&m, false);
    for (uint32_t i = 0; i < 2000; i++) {
        len[n] = 1 + i * 37 % MEM_OBJECT_MAX;
        ob[n] = store_mem_object_get(&m, store_mem_class(len[n]));
        if (ob[n] == MEM_NONE)
            break;
        memset(store_mem_object(&m, ob[n]), (int)(n * 7), len[n]);
        n++;
    }
    assert_true(n > 1000);
    for (uint32_t i = 0; i < n; i++) {
        unsigned char *p = store_mem_object(&m, ob[i]);
        for (uint32_t k = 0; k < len[i]; k++)
            assert_int_equal(p[k], i * 7 & 0xff);
    }
    for (uint32_t i = 0; i < n; i++)
        store_mem_object_put(&m, ob[(i * 1013 + 5) % n]);
    assert_int_equal(m.used, 0);
    assert_int_equal(m.spare, m.granted);
    store_mem_fini(&m);
}

static void objects_fill_frames_before_new_ones(void **state)
{
    struct store_mem m;
    assert_int_equal(store_mem_init(&m, "/dev/shm", MEM_STEP_SIZE, MEM_STEP_SIZE), 0);
    uint32_t class = store_mem_class(1300), a[3];
    assert_false(store_mem_object_ready(&m, class));
    for (int i = 0; i < 3; i++) /* three of 1365 bytes a frame */
        a[i] = store_mem_object_get(&m, class);
    assert_int_equal(m.used, 1);
    assert_false(store_mem_object_ready(&m, class));
    store_mem_object_put(&m, a[1]);
    assert_true(store_mem_object_ready(&m, class));
    assert_int_equal(store_mem_object_get(&m, class), a[1]);
    assert_int_equal(store_mem_class(1), 0);
    assert_int_equal(store_mem_class(MEM_OBJECT_MAX), MEM_CLASSES - 1);
    store_mem_fini(&m);
}

static uint64_t file_bytes(const struct store_mem *m)
{
    struct stat st;
    assert_int_equal(fstat(m->fd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void unused_steps_are_given_back(void **state)
{
    struct store_mem m;
    assert_int_equal(store_mem_init(&m, "/dev/shm", 4 * MEM_STEP_SIZE, 4 * MEM_STEP_SIZE), 0);
    for (int i = 0; i < 3; i++)
        grow(&m, false);
    assert_int_equal(file_bytes(&m), 4 * MEM_STEP_SIZE);
    uint32_t f = store_mem_frame_get(&m), given = 0, step;
    memset(store_mem_frame(&m, f), 0x5a, MEM_FRAME_SIZE);
    while ((step = store_mem_shrink_begin(&m, 0)) != MEM_NONE) {
        assert_int_not_equal(step, f / MEM_STEP_FRAMES);
        store_mem_shrink_end(&m, step, store_mem_shrink_run(&m, step));
        given++;
    }
    assert_int_equal(given, 3);
    assert_int_equal(file_bytes(&m), MEM_STEP_SIZE);
    assert_int_equal(((unsigned char *)store_mem_frame(&m, f))[9], 0x5a);
    grow(&m, false);
    assert_int_equal(m.spare, 2 * MEM_STEP_FRAMES - 1);
    assert_int_equal(store_mem_shrink_begin(&m, m.spare), MEM_NONE);
    store_mem_fini(&m);
}

static void spare_min_is_what_nobody_needed(void **state)
{
    struct store_mem m;
    uint32_t f[50];
    assert_int_equal(store_mem_init(&m, "/dev/shm", MEM_STEP_SIZE, MEM_STEP_SIZE), 0);
    store_mem_spare_min(&m);
    for (int i = 0; i < 50; i++)
        f[i] = store_mem_frame_get(&m);
    for (int i = 0; i < 50; i++)
        store_mem_frame_put(&m, f[i]);
    assert_int_equal(store_mem_spare_min(&m), MEM_STEP_FRAMES - 50);
    assert_int_equal(store_mem_spare_min(&m), MEM_STEP_FRAMES);
    store_mem_fini(&m);
}

/* A tmpfs of our own, of `size`; false where that is not allowed. */
static bool small_tmpfs(char *dir, const char *size)
{
    strcpy(dir, "/tmp/edm-test-mem-XXXXXX");
    if (!mkdtemp(dir))
        return false;
    if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("edm-test", dir, "tmpfs", 0, size)) {
        rmdir(dir);
        return false;
    }
    return true;
}

static void full_shm_makes_the_store_smaller(void **state)
{
    char dir[64], name[96];
    struct store_mem m;
    if (!small_tmpfs(dir, "size=4m"))
        skip();
    assert_int_equal(store_mem_init(&m, dir, 8 * MEM_STEP_SIZE, 16 * MEM_STEP_SIZE), 0);
    snprintf(name, sizeof name, "%s/ballast", dir);
    int fd = open(name, O_CREAT | O_RDWR | O_CLOEXEC, 0600); /* somebody else takes the room */
    assert_int_equal(fallocate(fd, 0, 0, 2 << 20), 0);
    uint32_t step, steps = 1;
    while ((step = store_mem_grow_begin(&m, false)) != MEM_NONE) {
        store_mem_grow_end(&m, step, store_mem_grow_run(&m, step, false));
        assert_true(++steps < 16);
    }
    assert_int_equal(store_mem_capacity(&m), 2048 / 4);
    while (m.spare)
        memset(store_mem_frame(&m, store_mem_frame_get(&m)), 1, MEM_FRAME_SIZE);
    grow(&m, true); /* not lost, though: private memory */
    uint32_t f = store_mem_frame_get(&m);
    memset(store_mem_frame(&m, f), 2, MEM_FRAME_SIZE);
    store_mem_frame_put(&m, f);
    step = store_mem_shrink_begin(&m, 0);
    assert_int_equal(step, f / MEM_STEP_FRAMES);
    store_mem_shrink_end(&m, step, store_mem_shrink_run(&m, step));
    assert_int_equal(ftruncate(fd, 0), 0);
    grow(&m, false); /* room again */
    close(fd);
    store_mem_fini(&m);
    umount2(dir, MNT_DETACH);
    rmdir(dir);
}

static void too_small_shm_is_not_used(void **state)
{
    char dir[64];
    struct store_mem m;
    if (!small_tmpfs(dir, "size=1m"))
        skip();
    assert_int_equal(store_mem_init(&m, dir, 4 * MEM_STEP_SIZE, 4 * MEM_STEP_SIZE), 0);
    for (int i = 0; i < 3; i++)
        grow(&m, false);
    assert_int_equal(m.spare, 4 * MEM_STEP_FRAMES);
    store_mem_fini(&m);
    umount2(dir, MNT_DETACH);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_are_distinct_and_recycled_last_first),
        cmocka_unit_test(capacity_holds_unless_forced),
        cmocka_unit_test(objects_of_every_class_do_not_overlap),
        cmocka_unit_test(objects_fill_frames_before_new_ones),
        cmocka_unit_test(unused_steps_are_given_back),
        cmocka_unit_test(spare_min_is_what_nobody_needed),
        cmocka_unit_test(full_shm_makes_the_store_smaller),
        cmocka_unit_test(too_small_shm_is_not_used),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
