/*
 * Settings: a file, -o options, and what is made of them. The first byte of the input says whether
 * the rest is a file or options, one a line.
 */
#include "config/config.h"
#include "fuzz.h"
#include <sys/mman.h>
#include <unistd.h>

#define OPTIONS 16

static char text[4096], empty[40];

/* libconfig's scanner forgets a string that a syntax error interrupts. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libconfig.so";
}

/* What passed is what a server and a shim can work with, and is accepted again as text. */
static void check(const struct edm_config *c)
{
    char value[EDM_CONFIG_HOSTS_MAX + 32], option[sizeof(value) + 64], err[300];
    const char *options[] = {option};
    struct edm_config_request again = {empty, options, 1};
    static struct edm_config other;
    FUZZ_CHECK(c->low_watermark < c->high_watermark && c->cluster && c->replicas);
    for (size_t k = 0; k < edm_options_count; k++) {
        if (edm_config_value(c, k, value, sizeof(value)))
            continue;
        snprintf(option, sizeof(option), "%s=%s", edm_options[k].key, value);
        bool fits = strcmp(edm_options[k].key, "low_watermark") != 0 &&
                    strcmp(edm_options[k].key, "high_watermark") != 0; /* alone, beside a default */
        FUZZ_CHECK(!edm_config_load(&other, &again, err, sizeof(err)) || !fits);
    }
}

static void load(const struct edm_config_request *req)
{
    static struct edm_config c;
    char err[120];
    size_t len;
    char *out = NULL;
    err[0] = 0;
    if (edm_config_load(&c, req, err, sizeof(err))) {
        FUZZ_CHECK(err[0] && memchr(err, 0, sizeof(err)) && !strchr(err, '\n'));
        return;
    }
    FILE *f = open_memstream(&out, &len);
    FUZZ_CHECK(f != NULL);
    edm_config_print(&c, f);
    fclose(f);
    free(out);
    check(&c);
}

static void load_file(size_t len)
{
    static int fd = -1;
    char path[40];
    if (fd < 0)
        fd = memfd_create("conf", MFD_CLOEXEC);
    FUZZ_CHECK(!ftruncate(fd, 0) && pwrite(fd, text, len, 0) == (ssize_t)len);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    load(&(struct edm_config_request){.file = path});
}

static void load_options(void)
{
    const char *options[OPTIONS];
    size_t n = 0;
    for (char *at = strtok(text, "\n"); at && n < OPTIONS; at = strtok(NULL, "\n"))
        options[n++] = at;
    load(&(struct edm_config_request){empty, options, n});
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    if (!empty[0])
        snprintf(empty, sizeof(empty), "/proc/self/fd/%d", memfd_create("empty", MFD_CLOEXEC));
    uint8_t how = input_u8(&in);
    size_t len = input_bytes(&in, text, sizeof(text) - 1);
    text[len] = 0;
    if (how % 2)
        load_file(len);
    else
        load_options();
    return 0;
}
