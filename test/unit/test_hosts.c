/* Lists of hosts, quoting for their shells, and commands on this host. */
#include "dms/hosts.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static char err[200];

static int parse(struct hosts *h, const char *list)
{
    *err = '\0';
    return hosts_parse(h, list, err, sizeof(err));
}

static void lists(void **state)
{
    char joined[EDM_CONFIG_HOSTS_MAX];
    struct hosts h, copy;

    assert_int_equal(parse(&h, ""), 0);
    assert_int_equal(h.n, 0);
    assert_int_equal(parse(&h, "alpha,beta.example.org,10.0.0.1,fe80::1"), 0);
    assert_int_equal(h.n, 4);
    assert_string_equal(h.names[1], "beta.example.org");
    hosts_copy(&copy, &h);
    memset(&h, 'x', sizeof(h));
    hosts_join(&copy, joined);
    assert_string_equal(joined, "alpha,beta.example.org,10.0.0.1,fe80::1");
}

static void odd_lists(void **state)
{
    static const char *const odd[] = {"-v",  "a,-v", "a,,b",      "a,",   ",",
                                      "a b", "a;b",  "$(reboot)", "`id`", "a'b"};
    struct hosts h;

    for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++) {
        assert_int_equal(parse(&h, odd[i]), -EINVAL);
        assert_non_null(strstr(err, "is not the name of a host"));
    }
    assert_int_equal(parse(&h, "a,b,a"), -EINVAL);
    assert_non_null(strstr(err, "a is named twice"));
}

static void run(const char *line, unsigned limit_s, struct hosts_result *r)
{
    const struct hosts here = {.names = {""}, .n = 1};

    hosts_run(&here, line, limit_s, r);
}

/* The shell must see the words as they were. */
static void quoting(void **state)
{
    static const char *const words[] = {"plain", "two words",           "it's", "'",
                                        "",      "$HOME `id` \\ \"x\"", "*"};
    char line[512] = "", want[512] = "", small[16] = "";
    struct hosts_result r;

    assert_int_equal(hosts_quote(line, sizeof(line), "printf"), 0);
    assert_int_equal(hosts_quote(line, sizeof(line), "<%s>"), 0);
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        assert_int_equal(hosts_quote(line, sizeof(line), words[i]), 0);
        sprintf(want + strlen(want), "<%s>", words[i]);
    }
    run(line, 10, &r);
    assert_int_equal(r.status, 0);
    assert_string_equal(r.output, want);
    assert_int_equal(hosts_quote(small, sizeof(small), "too long for it"), -E2BIG);
    assert_string_equal(small, "");
}

static void outcomes(void **state)
{
    struct hosts_result r;

    run("echo one; echo two >&2; exit 3", 10, &r);
    assert_int_equal(r.status, 3);
    assert_string_equal(r.output, "one\ntwo");
    assert_true(r.started > 1e9 && r.ended >= r.started && r.ended < r.started + 10);
    run("kill -TERM $$", 10, &r);
    assert_int_equal(r.status, 128 + 15);
    run("yes | head -c 100000", 10, &r);
    assert_int_equal(r.status, 0);
    assert_int_equal(strlen(r.output), HOSTS_OUTPUT_MAX - 1);
}

/* What does not end is given up, with all that it started. */
static void limit(void **state)
{
    struct hosts_result r;
    time_t start = time(NULL);

    run("echo begun; sleep 77 & wait", 1, &r);
    assert_int_equal(r.status, -ETIMEDOUT);
    assert_string_equal(r.output, "begun");
    assert_true(time(NULL) - start < 20);
}

static void launcher(void **state)
{
    struct hosts_result r;
    struct hosts h;

    assert_int_equal(parse(&h, "no-such-host.invalid"), 0);
    setenv("EDM_TEST_LAUNCHER", "/nonexistent/ssh", 1);
    hosts_run(&h, "true", 10, &r);
    assert_int_equal(r.status, -EHOSTUNREACH);
    assert_non_null(strstr(r.output, "/nonexistent/ssh"));
    setenv("EDM_TEST_LAUNCHER", "/bin/echo", 1);
    hosts_run(&h, "a line", 10, &r);
    assert_int_equal(r.status, 0);
    assert_non_null(strstr(r.output, " no-such-host.invalid a line"));
    unsetenv("EDM_TEST_LAUNCHER");
    assert_string_equal(hosts_launcher(), "ssh");
}

static void here_or_not(void **state)
{
    char own[64];

    assert_true(hosts_is_local(""));
    assert_true(hosts_is_local("127.0.0.1"));
    assert_false(hosts_is_local("192.0.2.1")); /* reserved for documents */
    assert_false(hosts_is_local("no-such-host.invalid"));
    assert_int_equal(hosts_own_address("127.0.0.1", own, sizeof(own), err, sizeof(err)), 0);
    assert_string_equal(own, "127.0.0.1");
    assert_int_equal(hosts_own_address("no-such-host.invalid", own, sizeof(own), err, sizeof(err)),
                     -ENOENT);
    assert_non_null(strstr(err, "no-such-host.invalid"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists),       cmocka_unit_test(odd_lists), cmocka_unit_test(quoting),
        cmocka_unit_test(outcomes),    cmocka_unit_test(limit),     cmocka_unit_test(launcher),
        cmocka_unit_test(here_or_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
