#include "config_libconfig.h"

#include "value.h"
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <libconfig.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The functions used (the rest of libconfig's interface that is used are macros on its structs). */
struct api {
    void *handle;
    __typeof__(config_init) *init;
    __typeof__(config_destroy) *destroy;
    __typeof__(config_read_file) *read_file;
    __typeof__(config_setting_length) *length;
    __typeof__(config_setting_get_elem) *elem;
    __typeof__(config_setting_get_int64) *get_int64;
    __typeof__(config_setting_get_float) *get_float;
    __typeof__(config_setting_get_bool) *get_bool;
    __typeof__(config_setting_get_string) *get_string;
};

#ifdef EDM_CONFIG_DLOPEN

/* The structs are those of the header: only the library that goes with it will do. */
#if LIBCONFIG_VER_MAJOR == 1 && LIBCONFIG_VER_MINOR < 6
#define LIBRARY "libconfig.so.9"
#else
#define LIBRARY "libconfig.so.11"
#endif

static int api_open(struct api *a, char *err, size_t errlen)
{
    const struct {
        const char *name;
        void *where;
    } names[] = {
        {"config_init", &a->init},
        {"config_destroy", &a->destroy},
        {"config_read_file", &a->read_file},
        {"config_setting_length", &a->length},
        {"config_setting_get_elem", &a->elem},
        {"config_setting_get_int64", &a->get_int64},
        {"config_setting_get_float", &a->get_float},
        {"config_setting_get_bool", &a->get_bool},
        {"config_setting_get_string", &a->get_string},
    };

    a->handle = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!a->handle) {
        snprintf(err, errlen, "%s cannot be loaded: install it, or remove the file", LIBRARY);
        return -ELIBACC;
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        void *f = dlsym(a->handle, names[i].name);

        if (!f) {
            snprintf(err, errlen, "%s has no %s: install the one EDM was built with", LIBRARY,
                     names[i].name);
            dlclose(a->handle);
            return -ELIBBAD;
        }
        memcpy(names[i].where, &f, sizeof(f));
    }
    return 0;
}

static void api_close(struct api *a)
{
    dlclose(a->handle);
}

#else

static int api_open(struct api *a, char *err, size_t errlen)
{
    *a = (struct api){
        .init = config_init,
        .destroy = config_destroy,
        .read_file = config_read_file,
        .length = config_setting_length,
        .elem = config_setting_get_elem,
        .get_int64 = config_setting_get_int64,
        .get_float = config_setting_get_float,
        .get_bool = config_setting_get_bool,
        .get_string = config_setting_get_string,
    };
    return 0;
}

static void api_close(struct api *a)
{
}

#endif

/* A list of texts as "a,b"; another list's kind is OTHER. */
static enum edm_file_kind list_text(const struct api *a, const config_setting_t *s, char *buf,
                                    size_t len)
{
    int count = a->length(s);
    size_t n = 0;

    buf[0] = '\0';
    for (int i = 0; i < count; i++) {
        const config_setting_t *e = a->elem(s, (unsigned)i);

        if (!e || config_setting_type(e) != CONFIG_TYPE_STRING) {
            snprintf(buf, len, "(a list of other things than text)");
            return EDM_FILE_OTHER;
        }
        n += (size_t)snprintf(buf + n, len - n, "%s%s", i ? "," : "", a->get_string(e));
        if (n >= len)
            return EDM_FILE_OTHER;
    }
    return EDM_FILE_LIST;
}

static bool is_name(char c)
{
    return isalnum((unsigned char)c) || strchr("_-*", c);
}

/* The number that the line gives the setting; false: it is not there to be found. */
static bool number_on_line(const char *line, const char *name, long long *out)
{
    size_t len = strlen(name);
    char *end;

    for (const char *at = line; (at = strstr(at, name)); at += len) {
        const char *v = at + len + strspn(at + len, " \t");
        if ((at > line && is_name(at[-1])) || (*v != '=' && *v != ':'))
            continue;
        errno = 0;
        v += 1 + strspn(v + 1, " \t");
        *out = strtoll(v, &end, v[0] == '0' && (v[1] | 32) == 'x' ? 16 : 10);
        return end != v && !errno;
    }
    return false;
}

/* libconfig 1.5 cuts whole numbers without an L to 32 bits and says nothing: what the file says. */
static long long whole_number(const struct api *a, const config_setting_t *s, const char *file)
{
    char line[EDM_VALUE_MAX];
    long long value = a->get_int64(s), said;
    FILE *f = fopen(file, "re");

    for (unsigned n = config_setting_source_line(s); f && n > 0;) {
        if (!fgets(line, sizeof(line), f))
            break;
        n -= strchr(line, '\n') || feof(f);
        if (n == 0 && number_on_line(line, config_setting_name(s), &said) &&
            (int32_t)said == (int32_t)value) /* else it stands in a comment */
            value = said;
    }
    if (f)
        fclose(f);
    return value;
}

static enum edm_file_kind setting_text(const struct api *a, const config_setting_t *s,
                                       const char *file, char *buf, size_t len)
{
    snprintf(buf, len, "(group)");
    switch (config_setting_type(s)) {
    case CONFIG_TYPE_INT:
        snprintf(buf, len, "%lld", whole_number(a, s, file));
        return EDM_FILE_NUMBER;
    case CONFIG_TYPE_INT64:
        snprintf(buf, len, "%lld", a->get_int64(s));
        return EDM_FILE_NUMBER;
    case CONFIG_TYPE_FLOAT:
        snprintf(buf, len, "%.10g", a->get_float(s));
        return EDM_FILE_NUMBER;
    case CONFIG_TYPE_BOOL:
        snprintf(buf, len, "%s", a->get_bool(s) ? "true" : "false");
        return EDM_FILE_BOOL;
    case CONFIG_TYPE_STRING:
        snprintf(buf, len, "%s", a->get_string(s));
        return EDM_FILE_TEXT;
    case CONFIG_TYPE_ARRAY:
    case CONFIG_TYPE_LIST:
        return list_text(a, s, buf, len);
    default:
        return EDM_FILE_OTHER;
    }
}

static int each_setting(const struct api *a, config_t *cfg, const char *path,
                        int (*each)(void *, const struct edm_file_setting *), void *ctx)
{
    const config_setting_t *root = config_root_setting(cfg);
    int n = a->length(root), rc = 0;

    for (int i = 0; i < n && !rc; i++) {
        const config_setting_t *s = a->elem(root, (unsigned)i);
        char text[EDM_VALUE_MAX];
        struct edm_file_setting fs = {
            .key = config_setting_name(s),
            .text = text,
            .file = config_setting_source_file(s),
            .line = (int)config_setting_source_line(s),
        };

        if (!fs.file)
            fs.file = path;
        fs.kind = setting_text(a, s, fs.file, text, sizeof(text));
        rc = each(ctx, &fs);
    }
    return rc;
}

/* libconfig would end the process over what cannot be included, and one file is read, no other. */
static int refuse_include(const char *path, char *err, size_t errlen)
{
    char line[EDM_VALUE_MAX];
    FILE *f = fopen(path, "re");
    int rc = 0;

    for (int n = 1, whole = 1; f && !rc && fgets(line, sizeof(line), f);) {
        if (whole && !strncmp(line + strspn(line, " \t"), "@include", 8)) {
            snprintf(err, errlen, "%s:%d: @include: one file is read: put all settings in it", path,
                     n);
            rc = -EINVAL;
        }
        whole = strchr(line, '\n') != NULL;
        n += whole;
    }
    if (f)
        fclose(f);
    return rc;
}

static const char *mending(const char *error)
{
    return error && strstr(error, "duplicate") ? "give each key once"
                                               : "lines look like local_memory = \"60%\";";
}

int edm_file_read(const char *path, int (*each)(void *ctx, const struct edm_file_setting *s),
                  void *ctx, char *err, size_t errlen)
{
    struct api a;
    config_t cfg;
    int rc;
    size_t n = (size_t)snprintf(err, errlen, "%s: ", path);

    if (n >= errlen)
        n = errlen - 1;
    rc = refuse_include(path, err, errlen);
    if (rc)
        return rc;
    rc = api_open(&a, err + n, errlen - n);
    if (rc)
        return rc;
    a.init(&cfg);
    if (a.read_file(&cfg, path) == CONFIG_TRUE) {
        rc = each_setting(&a, &cfg, path, each, ctx);
    } else {
        const char *file = config_error_file(&cfg), *text = config_error_text(&cfg);

        snprintf(err, errlen, "%s:%d: %s: %s", file ? file : path, config_error_line(&cfg),
                 text ? text : "syntax error", mending(text));
        rc = -EINVAL;
    }
    a.destroy(&cfg);
    api_close(&a);
    return rc;
}
