/* Where settings come from and which wins; what a wrong file, environment or option is told. */
#include "config/config.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[] = "/tmp/edm-test-config-XXXXXX";
static char file[64];

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static int load(struct edm_config *c, const char *path, const char *option, char *err)
{
    const char *options[] = {option};
    struct edm_config_request req = {.file = path, .options = options, .noptions = option ? 1 : 0};

    return edm_config_load(c, &req, err, 4096);
}

static const char *origin(const struct edm_config *c, const char *key)
{
    for (size_t i = 0; i < edm_options_count; i++)
        if (!strcmp(edm_options[i].key, key))
            return c->origin[i];
    return "no such key";
}

static int setup(void **state)
{
    static const char *const vars[] = {"EDM_CONF", "EDM_LOCAL_MEMORY", "EDM_LEASE", NULL};

    for (const char *const *v = vars; *v; v++)
        unsetenv(*v);
    setenv("HOME", dir, 1);
    setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
    unlink(file);
    return 0;
}

static void defaults(void **state)
{
    struct edm_config c;
    char err[4096];

    write_file(file, "# nothing but\n// comments\n/* of\n all kinds */\n");
    assert_int_equal(load(&c, file, NULL, err), 0);
    assert_int_equal(c.local_memory.permille, 600);
    assert_true(c.low_watermark == 0.90 && c.high_watermark == 0.95);
    assert_int_equal(c.manage, EDM_MANAGE_MALLOC | EDM_MANAGE_MMAP);
    assert_int_equal(c.attach_threshold, 32u << 20);
    assert_int_equal(c.arena_size, 1ull << 40);
    assert_int_equal(c.server, EDM_SERVER_AUTO);
    assert_string_equal(c.server_group, "");
    assert_true(c.reconnect_timeout == 60 && c.request_timeout == 2);
    assert_int_equal(c.on_server_lost, EDM_LOST_ABORT);
    assert_int_equal(c.memory_store.permille, 200);
    assert_int_equal(c.disk_store.permille, 500);
    assert_string_equal(c.disk_path, "/var/tmp/edm");
    assert_int_equal(c.compression, EDM_COMPRESSION_AUTO);
    assert_int_equal(c.replicas, 1);
    assert_int_equal(c.placement, EDM_PLACEMENT_LOCAL);
    assert_string_equal(c.hosts, "");
    assert_true(c.lease && c.prefetch);
    assert_int_equal(c.prefetch_max, 256);
    assert_int_equal(c.cluster, 16);
    assert_int_equal(c.evict_method, EDM_EVICT_AUTO);
    assert_int_equal(c.handlers, 0);
    assert_int_equal(c.log_level, EDM_LOG_WARNING);
    assert_string_equal(c.log_file, "");
    assert_string_equal(c.socket, geteuid() ? "/run/user/7/edm/dms.sock" : "/run/edm/dms.sock");
    assert_string_equal(origin(&c, "socket"), "default");
}

static void later_wins(void **state)
{
    struct edm_config c;
    char err[4096];

    write_file(file, "local_memory = \"1G\";\nlease = false;\n");
    assert_int_equal(load(&c, file, NULL, err), 0);
    assert_int_equal(c.local_memory.bytes, 1u << 30);
    assert_non_null(strstr(origin(&c, "local_memory"), "edm.conf:1"));
    assert_non_null(strstr(origin(&c, "lease"), "edm.conf:2"));
    setenv("EDM_LOCAL_MEMORY", "512M", 1);
    assert_int_equal(load(&c, file, NULL, err), 0);
    assert_int_equal(c.local_memory.bytes, 512u << 20);
    assert_string_equal(origin(&c, "local_memory"), "EDM_LOCAL_MEMORY");
    assert_int_equal(load(&c, file, "local_memory=256M", err), 0);
    assert_int_equal(c.local_memory.bytes, 256u << 20);
    assert_string_equal(origin(&c, "local_memory"), "-o");
    assert_false(c.lease);
}

static void first_file_found_is_the_only_one(void **state)
{
    char path[128], err[4096];
    struct edm_config c;

    snprintf(path, sizeof(path), "%s/.config", dir);
    mkdir(path, 0700);
    snprintf(path, sizeof(path), "%s/.config/edm", dir);
    mkdir(path, 0700);
    snprintf(path, sizeof(path), "%s/.config/edm/edm.conf", dir);
    write_file(path, "local_memory = \"1G\"; cluster = 8;");
    assert_int_equal(load(&c, NULL, NULL, err), 0);
    assert_int_equal(c.cluster, 8);
    write_file(file, "local_memory = \"2G\";");
    setenv("EDM_CONF", file, 1);
    assert_int_equal(load(&c, NULL, NULL, err), 0);
    assert_int_equal(c.local_memory.bytes, 2ull << 30);
    assert_int_equal(c.cluster, 16);
    setenv("EDM_CONF", "/nowhere/edm.conf", 1);
    assert_int_equal(load(&c, NULL, NULL, err), -ENOENT);
    assert_non_null(strstr(err, "/nowhere/edm.conf"));
    unlink(path);
}

static void all_kinds_from_a_file(void **state)
{
    struct edm_config c;
    char err[4096];

    write_file(file,
               "manage = [\"mmap\", \"bss\"];\nhosts = [\"h1\", \"h2\"];\n"
               "memory_store = 0;\nhigh_watermark = 1;\nreconnect_timeout = 2.5;\n"
               "handlers = \"auto\";\nprefetch = \"off\";\ndisk_path = \"/d/${EDM_TEST_D}\";\n");
    setenv("EDM_TEST_D", "e", 1);
    if (load(&c, file, NULL, err))
        fail_msg("%s", err);
    assert_int_equal(c.manage, EDM_MANAGE_MMAP | EDM_MANAGE_BSS);
    assert_string_equal(c.hosts, "h1,h2");
    assert_int_equal(c.memory_store.bytes + c.memory_store.permille, 0);
    assert_true(c.high_watermark == 1 && c.reconnect_timeout == 2.5);
    assert_false(c.prefetch);
    assert_string_equal(c.disk_path, "/d/e");
}

static void wrong_files(void **state)
{
    static const char *const bad[][3] = {
        {"\nlocal_memry = \"1G\";", ":2: unknown key \"local_memry\": did you mean local_memory?",
         "log_file"},
        {"lease = \"true\";", ":1: lease: true has the wrong type", "true or false"},
        {"server = 1;", ":1: server: 1 has the wrong type", "auto, require, off"},
        {"manage = \"mmap\";", ":1: manage: mmap has the wrong type",
         "a list of malloc, mmap, bss"},
        {"local_memory = { a = 1; };", ":1: local_memory", "wrong type"},
        {"replicas = 1.5;", ":1: replicas", "a whole number from 1 to 3"},
        {"replicas = -1;", ":1: replicas", "a whole number from 1 to 3"},
        {"cluster = 65;", ":1: cluster: \"65\" is out of range", "from 1 to 64"},
        {"local_memory = \"1Q\";", ":1: local_memory: \"1Q\" is not a size", "80%"},
        {"low_watermark = 0.96;", ":1: low_watermark", "is not below high_watermark 0.95"},
        {"high_watermark = 0.5;", ":1: high_watermark", "low_watermark 0.9 (default)"},
        {"server = auto;", ":1: syntax error", "local_memory"},
        {"lease = true;\nlease = true;", ":2: ", "give each key once"},
        {"lease = true;\n @include \"/tmp\"\n", ":2: @include", "one file"},
        {"prefetch_max = 4294967552;", ":1: prefetch_max", "out of range"}, /* 256 in 32 bits */
        {"high_watermark = 0.5; low_watermark = 0.4999;", ":1: low_watermark", "0.001"},
        {"reconnect_timeout = -1;", ":1: reconnect_timeout", "out of range"},
        {"manage = [1, 2];", ":1: manage", "wrong type"},
    };

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct edm_config c, before;
        char err[4096] = "";

        memset(&c, 0x5a, sizeof(c));
        before = c;
        write_file(file, bad[i][0]);
        assert_int_equal(load(&c, file, NULL, err), -EINVAL);
        assert_memory_equal(&c, &before, sizeof(c));
        if (strncmp(err, file, strlen(file)) != 0 || !strstr(err, bad[i][1]) ||
            !strstr(err, bad[i][2]) || strchr(err, '\n'))
            fail_msg("for %s: %s", bad[i][0], err);
    }
}

/* What else stands on the line of a number is not the number. */
static void numbers_as_they_are_written(void **state)
{
    static const char *const texts[] = {"/* cluster = 60 */ cluster = 12;", "cluster = 0xc;",
                                        "cluster = 012;", "cluster=12 ; // cluster = 3\n"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct edm_config c;
        char err[4096];

        write_file(file, texts[i]);
        if (load(&c, file, NULL, err))
            fail_msg("%s: %s", texts[i], err);
        assert_int_equal(c.cluster, 12);
    }
}

/* The line of edm.conf without its # changes nothing. */
static void default_socket_by_name(void **state)
{
    struct edm_config c, d;
    char err[4096];

    unsetenv("XDG_RUNTIME_DIR");
    write_file(file, "");
    assert_int_equal(load(&c, file, NULL, err), 0);
    write_file(file, "socket = \"$XDG_RUNTIME_DIR/edm/dms.sock\";");
    if (load(&d, file, NULL, err))
        fail_msg("%s", err);
    assert_string_equal(c.socket, d.socket);
    assert_true(c.socket_is_default && d.socket_is_default);
    write_file(file, "socket = \"/a/b\";");
    assert_int_equal(load(&d, file, NULL, err), 0);
    assert_false(d.socket_is_default);
}

static void unreadable_files(void **state)
{
    struct edm_config c;
    char err[4096];

    assert_int_equal(load(&c, dir, NULL, err), -EISDIR);
    assert_int_equal(load(&c, "/nowhere", NULL, err), -ENOENT);
    assert_int_equal(load(&c, "/dev/null", NULL, err), 0); /* no settings */
    assert_int_equal(load(&c, "/dev/zero", NULL, err), -EINVAL);
    assert_int_equal(load(&c, "", NULL, err), -EINVAL);
}

static void wrong_environment_and_options(void **state)
{
    struct edm_config c;
    char err[4096];

    write_file(file, "");
    setenv("EDM_LEASE", "maybe", 1);
    assert_int_equal(load(&c, file, NULL, err), -EINVAL);
    assert_non_null(strstr(err, "EDM_LEASE: lease: \"maybe\""));
    unsetenv("EDM_LEASE");
    setenv("EDM_LEAZE", "true", 1);
    assert_int_equal(load(&c, file, NULL, err), -EINVAL);
    assert_non_null(strstr(err, "EDM_LEAZE: unknown key \"leaze\": did you mean lease?"));
    unsetenv("EDM_LEAZE");
    setenv("EDM_Lease", "true", 1);
    assert_int_equal(load(&c, file, NULL, err), -EINVAL);
    assert_non_null(strstr(err, "EDM_Lease: unknown key"));
    assert_non_null(strstr(err, "upper case"));
    unsetenv("EDM_Lease");
    setenv("EDM_RUN_TOKEN", "1", 1);
    setenv("EDM_DISABLE", "", 1);
    setenv("EDM_TEST_ANYTHING", "x", 1);
    assert_int_equal(load(&c, file, NULL, err), 0);
    assert_int_equal(load(&c, file, "lease", err), -EINVAL);
    assert_non_null(strstr(err, "KEY=VALUE"));
    assert_int_equal(load(&c, file, "=true", err), -EINVAL);
    assert_int_equal(load(&c, file, "Lease=true", err), -EINVAL);
    assert_non_null(strstr(err, "did you mean lease?"));
    assert_int_equal(load(&c, file, "a\nb=1", err), -EINVAL);
    assert_null(strchr(err, '\n'));
}

static void short_error_buffers_are_kept_to(void **state)
{
    struct edm_config_request req = {.file = file};
    struct edm_config c;
    char err[16];

    write_file(file, "nonsense = 1;");
    memset(err, 'x', sizeof(err));
    assert_int_equal(edm_config_load(&c, &req, err, 10), -EINVAL);
    assert_int_equal(err[9], '\0');
    assert_int_equal(err[10], 'x');
}

/* What is printed is a file that gives the same settings. */
static void print_is_read_back(void **state)
{
    struct edm_config c, d;
    char err[4096];
    FILE *f;

    write_file(file, "manage = [\"bss\"]; hosts = [\"a\", \"b\"]; handlers = 3; lease = false;"
                     "log_file = \"/tmp/a\\\"b\"; local_memory = \"12.5%\";");
    assert_int_equal(load(&c, file, NULL, err), 0);
    f = fopen(file, "w");
    assert_non_null(f);
    edm_config_print(&c, f);
    fclose(f);
    if (load(&d, file, NULL, err))
        fail_msg("%s", err);
    memset(c.origin, 0, sizeof(c.origin));
    memset(d.origin, 0, sizeof(d.origin));
    assert_memory_equal(&c, &d, sizeof(c));
}

/* config/edm.conf, from the top of the tree or from the build folder. */
static FILE *open_shipped(void)
{
    char path[512];
    FILE *f = fopen("config/edm.conf", "r");
    char *slash;

    if (f)
        return f;
    snprintf(path, sizeof(path), "%s", __FILE__);
    slash = strrchr(path, '/');
    assert_non_null(slash);
    snprintf(slash, sizeof(path) - (size_t)(slash - path), "/../../config/edm.conf");
    return fopen(path, "r");
}

/* The file that is shipped names every key, and its values are the defaults. */
static void shipped_file_is_complete(void **state)
{
    struct edm_config c, d;
    char line[512], err[4096];
    FILE *in = open_shipped(), *out = fopen(file, "w");
    int rc;

    assert_non_null(in);
    assert_non_null(out);
    while (fgets(line, sizeof(line), in)) /* "#key = value;" is a setting, "# text" is none */
        fputs(line[0] == '#' && line[1] >= 'a' && line[1] <= 'z' ? line + 1 : line, out);
    fclose(in);
    fclose(out);
    rc = load(&d, file, NULL, err);
    if (rc)
        fail_msg("%s", err);
    write_file(file, "");
    assert_int_equal(load(&c, file, NULL, err), 0);
    for (size_t i = 0; i < edm_options_count; i++) {
        char a[1200], b[1200];

        if (!strcmp(d.origin[i], "default"))
            fail_msg("%s is not in edm.conf", edm_options[i].key);
        if (!strcmp(edm_options[i].key, "socket"))
            continue; /* for root the default is another */
        assert_int_equal(edm_config_value(&c, i, a, sizeof(a)), 0);
        assert_int_equal(edm_config_value(&d, i, b, sizeof(b)), 0);
        assert_string_equal(a, b);
    }
}

static void memory_is_plausible(void **state)
{
    uint64_t total = edm_memory_total();

    assert_true(total > 16u << 20);
    assert_true(total <= (uint64_t)sysconf(_SC_PHYS_PAGES) * 4096 + (256u << 20));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(defaults, setup),
        cmocka_unit_test_setup(later_wins, setup),
        cmocka_unit_test_setup(first_file_found_is_the_only_one, setup),
        cmocka_unit_test_setup(all_kinds_from_a_file, setup),
        cmocka_unit_test_setup(wrong_files, setup),
        cmocka_unit_test_setup(unreadable_files, setup),
        cmocka_unit_test_setup(wrong_environment_and_options, setup),
        cmocka_unit_test_setup(short_error_buffers_are_kept_to, setup),
        cmocka_unit_test_setup(numbers_as_they_are_written, setup),
        cmocka_unit_test_setup(default_socket_by_name, setup),
        cmocka_unit_test_setup(print_is_read_back, setup),
        cmocka_unit_test_setup(shipped_file_is_complete, setup),
        cmocka_unit_test(memory_is_plausible),
    };
    char cleanup[96];
    int rc;

    if (!mkdtemp(dir))
        return 1;
    snprintf(file, sizeof(file), "%s/edm.conf", dir);
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(cleanup, sizeof(cleanup), "rm -rf %s", dir);
    return system(cleanup) || rc;
}
