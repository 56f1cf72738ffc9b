/* The image of an instance: what a successor maps is what was written, and it takes nothing else.
 */
#include "dms/image.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

struct both {
    int fd;
    struct image *img;
};

static int setup(void **state)
{
    static struct both b;
    *state = &b;
    return image_create(&b.fd, &b.img);
}

static int teardown(void **state)
{
    struct both *b = *state;
    image_close(b->img);
    return close(b->fd);
}

static void successor_sees_all(void **state)
{
    struct both *b = *state;
    struct image *other;
    b->img->number = 7;
    b->img->nchunks = IMAGE_CHUNKS;
    image_chunk(b->img, 0)->addr = 1;
    image_chunk(b->img, IMAGE_CHUNKS - 1)->pages[EDM_CHUNK_PAGES - 1].version = 9;
    assert_int_equal(image_open(b->fd, &other), 0);
    assert_int_equal(other->number, 7);
    assert_int_equal(image_chunk(other, 0)->addr, 1);
    assert_int_equal(image_chunk(other, IMAGE_CHUNKS - 1)->pages[EDM_CHUNK_PAGES - 1].version, 9);
    image_close(other);
}

static void refused(int fd)
{
    struct image *other = NULL;
    assert_int_equal(image_open(fd, &other), -EPROTO);
    assert_null(other);
}

static void nothing_else_is_taken(void **state)
{
    struct both *b = *state;
    int small = memfd_create("small", MFD_CLOEXEC);
    refused(small);
    assert_int_equal(ftruncate(small, 4096), 0);
    refused(small);
    close(small);
    b->img->magic ^= 1;
    refused(b->fd);
    b->img->magic ^= 1;
    b->img->layout++;
    refused(b->fd);
    b->img->layout--;
    b->img->nchunks = IMAGE_CHUNKS + 1;
    refused(b->fd);
    b->img->nchunks = 0;
    image_close(NULL);
}

/* A descriptor of a FORK message is what the server that read it called it, until another says. */
static void forks_are_renamed(void **state)
{
    struct both *b = *state;
    b->img->msgs[3].arg.fork.ufd = 40;
    assert_int_equal(image_fork_fd(b->img, 100, 3), 40);
    b->img->forks[1].fds[3] = 50;
    b->img->forks[1].server = 100;
    assert_int_equal(image_fork_fd(b->img, 100, 3), 50);
    b->img->forks[0].fds[3] = -1;
    b->img->forks[0].server = 200;
    assert_int_equal(image_fork_fd(b->img, 200, 3), -1);
    assert_int_equal(image_fork_fd(b->img, 100, 3), 50);
    assert_int_equal(image_fork_fd(b->img, 300, 3), 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(successor_sees_all, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_else_is_taken, setup, teardown),
        cmocka_unit_test_setup_teardown(forks_are_renamed, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
