/* The table of keys, and values as text: each kind's accepted and refused forms, and both ways. */
#include "config/config.h"
#include "config/value.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct edm_option *opt(const char *key)
{
    for (size_t i = 0; i < edm_options_count; i++)
        if (!strcmp(edm_options[i].key, key))
            return &edm_options[i];
    fail_msg("no key %s", key);
    return NULL;
}

static void sizes_parse(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
        uint32_t permille;
    } good[] = {
        {"4096", 4096, 0},         {"0", 0, 0},           {"64K", 65536, 0},     {"64k", 65536, 0},
        {"512M", 512ull << 20, 0}, {"2G", 2ull << 30, 0}, {"1T", 1ull << 40, 0}, {"1.5K", 1536, 0},
        {"80%", 0, 800},           {"12.5%", 0, 125},     {"100%", 0, 1000},     {"0%", 0, 0},
    };
    static const char *const bad[] = {
        "",
        " ",
        "12Q",
        "-1",
        "1.5",
        "101%",
        "100.1%",
        "1 G",
        "G",
        "%",
        "0x10",
        "1GB",
        "1e9",
        "+1G",
        "1%%",
        "18446744073709551616",
        "99999999999G",
        "4611686018427387904%",
    };

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        struct edm_size s = {1, 1};

        assert_int_equal(edm_size_parse(good[i].text, &s), 0);
        assert_int_equal(s.bytes, good[i].bytes);
        assert_int_equal(s.permille, good[i].permille);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct edm_size s = {77, 78};

        assert_true(edm_size_parse(bad[i], &s) < 0);
        assert_int_equal(s.bytes, 77);
        assert_int_equal(s.permille, 78);
    }
}

static void shares_of_a_whole(void **state)
{
    assert_int_equal(edm_size_bytes((struct edm_size){.permille = 600}, 1000), 600);
    assert_int_equal(edm_size_bytes((struct edm_size){.permille = 1000}, UINT64_MAX), UINT64_MAX);
    assert_int_equal(edm_size_bytes((struct edm_size){.permille = 1}, 999), 0);
    assert_int_equal(edm_size_bytes((struct edm_size){.bytes = 5}, 1000), 5);
}

static void table_is_sound(void **state)
{
    struct edm_config c = {0};
    char err[512], text[EDM_VALUE_MAX];

    setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
    for (size_t i = 0; i < edm_options_count; i++) {
        const struct edm_option *o = &edm_options[i];

        assert_non_null(o->text);
        assert_true(o->offset + o->size <= sizeof(c));
        if (edm_value_parse(&c, o, o->def, err, sizeof(err)))
            fail_msg("default of %s: %s", o->key, err);
        assert_int_equal(edm_value_format(&c, o, text, sizeof(text)), 0);
        if (edm_value_parse(&c, o, text, err, sizeof(err)))
            fail_msg("%s = %s is not taken back: %s", o->key, text, err);
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(o->key, edm_options[j].key);
    }
    assert_string_equal(c.socket, "/run/user/7/edm/dms.sock");
}

static void values_go_both_ways(void **state)
{
    static const char *const pairs[][2] = {
        {"local_memory", "12.5%"}, {"local_memory", "64M"},
        {"high_watermark", "0.5"}, {"manage", "mmap,bss"},
        {"attach_threshold", "0"}, {"attach_threshold", "4097"},
        {"server", "require"},     {"reconnect_timeout", "1.5"},
        {"memory_store", "0"},     {"hosts", "a,b.c,10.0.0.1"},
        {"lease", "false"},        {"prefetch", "off"},
        {"prefetch", "auto"},      {"handlers", "auto"},
        {"handlers", "3"},         {"log_file", "/tmp/x y"},
        {"log_file", ""},          {"log_level", "debug"},
    };

    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        struct edm_config c = {0};
        char err[512], text[EDM_VALUE_MAX];

        if (edm_value_parse(&c, opt(pairs[i][0]), pairs[i][1], err, sizeof(err)))
            fail_msg("%s", err);
        assert_int_equal(edm_value_format(&c, opt(pairs[i][0]), text, sizeof(text)), 0);
        assert_string_equal(text, pairs[i][1]);
    }
}

static void refusals_name_what_is_allowed(void **state)
{
    static const char *const bad[][3] = {
        {"local_memory", "12Q", "512M, 2G or 80%, from 1M"},
        {"local_memory", "4096", "out of range"},
        {"attach_threshold", "50%", "is a share"},
        {"low_watermark", "1.5", "from 0.1 to 1"},
        {"low_watermark", "nan", "is not a number"},
        {"low_watermark", "0.5.5", "is not a number"},
        {"manage", "malloc,heap", "a list of malloc, mmap, bss"},
        {"manage", "", "is empty"},
        {"server", "maybe", "one of auto, require, off"},
        {"compression", "zstd", "one of auto, lz4, none"},
        {"placement", "", "one of local, remote, spread"},
        {"replicas", "0", "a whole number from 1 to 3"},
        {"replicas", "1.5", "is not a number"},
        {"replicas", "auto", "is not a number"},
        {"handlers", "65", "\"auto\" or a whole number from 1 to 64"},
        {"cluster", "99999999999999999999", "out of range"},
        {"lease", "maybe", "true or false"},
        {"request_timeout", "0", "seconds from 0.05 to 3600"},
        {"disk_path", "tmp", "not an absolute path"},
        {"disk_path", "", "not an absolute path"},
        {"disk_path", "/a/$EDM_TEST_UNSET/b", "$EDM_TEST_UNSET"},
        {"disk_path", "/a\nb", "control characters"},
        {"hosts", "a,,b", "empty name"},
        {"hosts", "a;rm", "no host name has"},
    };

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct edm_config c, before;
        char err[512];

        memset(&c, 0x5a, sizeof(c));
        before = c;
        assert_int_equal(edm_value_parse(&c, opt(bad[i][0]), bad[i][1], err, sizeof(err)), -22);
        assert_memory_equal(&c, &before, sizeof(c));
        if (!strstr(err, bad[i][2]) || strncmp(err, bad[i][0], strlen(bad[i][0])) != 0)
            fail_msg("%s=%s says: %s", bad[i][0], bad[i][1], err);
        assert_null(strchr(err, '\n') && strcmp(bad[i][1], "/a\nb") ? err : NULL);
    }
}

static void long_texts_are_refused(void **state)
{
    struct edm_config c = {0};
    char text[EDM_CONFIG_HOSTS_MAX + 2], err[512];

    memset(text, 'a', sizeof(text));
    text[0] = '/';
    text[EDM_CONFIG_SOCKET_MAX] = '\0';
    assert_true(edm_value_parse(&c, opt("socket"), text, err, sizeof(err)) < 0);
    assert_non_null(strstr(err, "at most 100 characters"));
    text[EDM_CONFIG_SOCKET_MAX - 1] = '\0';
    assert_int_equal(edm_value_parse(&c, opt("socket"), text, err, sizeof(err)), 0);
    memset(text, 'a', sizeof(text) - 1);
    text[EDM_CONFIG_HOSTS_MAX] = '\0';
    assert_true(edm_value_parse(&c, opt("hosts"), text, err, sizeof(err)) < 0);
    text[EDM_CONFIG_HOSTS_MAX - 1] = '\0';
    assert_int_equal(edm_value_parse(&c, opt("hosts"), text, err, sizeof(err)), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_parse),
        cmocka_unit_test(shares_of_a_whole),
        cmocka_unit_test(table_is_sound),
        cmocka_unit_test(values_go_both_ways),
        cmocka_unit_test(refusals_name_what_is_allowed),
        cmocka_unit_test(long_texts_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
