/* A message is one line in one write, cut to size, with nothing in it that is not text. */
#include "config/log.h"
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char path[] = "/tmp/edm-test-log-XXXXXX";

static size_t logged(char *buf, size_t len)
{
    int fd = open(path, O_RDONLY);
    ssize_t n = read(fd, buf, len - 1);

    close(fd);
    assert_true(n >= 0);
    buf[n] = '\0';
    assert_int_equal(truncate(path, 0), 0);
    return (size_t)n;
}

static void levels(void **state)
{
    char buf[256];

    assert_int_equal(edm_log_init("name", EDM_LOG_WARNING, path), 0);
    edm_error("disk %s", "bad");
    edm_warn("slow");
    edm_info("not this");
    edm_debug("nor this");
    logged(buf, sizeof(buf));
    assert_string_equal(buf, "name: disk bad\nname: slow\n");
}

static void one_line_only(void **state)
{
    char buf[256];

    edm_error("a\nb\r%c", 7);
    logged(buf, sizeof(buf));
    assert_string_equal(buf, "name: a b  \n");
}

static void long_messages_are_cut(void **state)
{
    char text[5000], buf[6000];
    size_t n;

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    edm_error("%s", text);
    n = logged(buf, sizeof(buf));
    assert_int_equal(n, 1024);
    assert_int_equal(buf[n - 1], '\n');
    assert_int_equal(buf[n - 2], 'x');
}

static void errno_is_kept(void **state)
{
    char buf[256];

    errno = ENOENT;
    edm_error("%m");
    assert_int_equal(errno, ENOENT);
    logged(buf, sizeof(buf));
    assert_string_equal(buf, "name: No such file or directory\n");
}

static void file_is_private_and_not_inherited(void **state)
{
    char fresh[64];
    struct stat st;

    snprintf(fresh, sizeof(fresh), "%s.new", path);
    assert_int_equal(edm_log_init("n", EDM_LOG_ERROR, fresh), 0);
    assert_int_equal(stat(fresh, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_true(fcntl(edm_log_fd(), F_GETFD) & FD_CLOEXEC);
    unlink(fresh);
    assert_int_equal(edm_log_init("n", EDM_LOG_ERROR, "/nowhere/log"), -ENOENT);
    assert_int_equal(edm_log_init("n", EDM_LOG_ERROR, ""), 0);
    assert_int_equal(edm_log_fd(), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels),
        cmocka_unit_test(one_line_only),
        cmocka_unit_test(long_messages_are_cut),
        cmocka_unit_test(errno_is_kept),
        cmocka_unit_test(file_is_private_and_not_inherited),
    };
    int fd = mkstemp(path), rc;

    if (fd < 0)
        return 1;
    close(fd);
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return rc;
}
