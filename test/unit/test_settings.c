/* The shim's short way to its settings ends where the long one does. */
#include "preload/settings.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char home[] = "/tmp/edm-test-settings-XXXXXX";

static void compare(void)
{
    static struct edm_config a, b;
    char ea[512] = "", eb[512] = "";
    memset(&a, 0, sizeof(a));
    memset(&b, 0, sizeof(b));
    int ra = settings_load(&a, ea, sizeof(ea)), rb = edm_config_load(&b, NULL, eb, sizeof(eb));
    assert_int_equal(ra, rb);
    assert_string_equal(ea, eb);
    if (!ra)
        assert_memory_equal(&a, &b, sizeof(a));
}

static void defaults(void **state)
{
    compare();
    setenv("XDG_RUNTIME_DIR", "/run/user/77", 1);
    compare();
    setenv("EDM_RUN_TOKEN", "12", 1);
    compare();
}

static void without_privilege(void **state)
{
    if (geteuid() != 0)
        skip();
    assert_int_equal(seteuid(65534), 0);
    compare();
    unsetenv("XDG_RUNTIME_DIR");
    compare();
    assert_int_equal(seteuid(0), 0);
}

static void variables_count(void **state)
{
    setenv("EDM_LOCAL_MEMORY", "64M", 1);
    compare();
    setenv("EDM_HIGH_WATERMARK", "0.5", 1);
    compare();
    unsetenv("EDM_HIGH_WATERMARK");
    setenv("EDM_SOCKET", "/a/b", 1);
    compare();
    unsetenv("EDM_SOCKET");
    setenv("EDM_LOCAL_MEMORY", "nonsense", 1);
    compare();
    unsetenv("EDM_LOCAL_MEMORY");
    setenv("EDM_LOCAL_MEMROY", "64M", 1);
    compare();
    unsetenv("EDM_LOCAL_MEMROY");
}

static void a_file_counts(void **state)
{
    char path[128];
    FILE *f;
    snprintf(path, sizeof(path), "%s/.config", home);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof(path), "%s/.config/edm", home);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof(path), "%s/.config/edm/edm.conf", home);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs("cluster = 8;\n", f);
    fclose(f);
    compare();
    static struct edm_config c;
    char err[256];
    assert_int_equal(settings_load(&c, err, sizeof(err)), 0);
    assert_int_equal(c.cluster, 8);
    unlink(path);
    compare();
}

static int set_up(void **state)
{
    clearenv();
    return !mkdtemp(home) || setenv("HOME", home, 1);
}

static int tear_down(void **state)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/.config/edm", home);
    rmdir(path);
    snprintf(path, sizeof(path), "%s/.config", home);
    rmdir(path);
    return rmdir(home);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(without_privilege),
        cmocka_unit_test(variables_count),
        cmocka_unit_test(a_file_counts),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
