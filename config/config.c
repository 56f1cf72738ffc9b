/*
 * Where settings come from, in order: defaults, one file, the environment, options; then what
 * spans keys is checked.
 */
#include "config.h"

#include "config_libconfig.h"
#include "value.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define LINE 2048

/* Environment variables named EDM_ that are no settings. */
static const char *const env_others[] = {"CONF", "DISABLE", "RUN_TOKEN", NULL};
#define ENV_TEST_PREFIX "TEST_"

static const struct edm_option *find_key(const char *key, size_t n)
{
    for (size_t i = 0; i < edm_options_count; i++)
        if (strlen(edm_options[i].key) == n && !memcmp(edm_options[i].key, key, n))
            return &edm_options[i];
    return NULL;
}

static char *origin_of(struct edm_config *c, const struct edm_option *o)
{
    return c->origin[o - edm_options];
}

/* Keeps the end of what does not fit: "...conf.d/edm.conf:12" says more than its beginning. */
static void set_origin(struct edm_config *c, const struct edm_option *o, const char *where)
{
    size_t room = sizeof(c->origin[0]), n = strlen(where);

    if (n < room)
        strcpy(origin_of(c, o), where);
    else
        snprintf(origin_of(c, o), room, "...%s", where + n - (room - 4));
}

/* Edit distance of two short words, at most 99. */
static unsigned distance(const char *a, const char *b)
{
    unsigned row[40];
    size_t n = strlen(b);

    if (n >= 40 || strlen(a) >= 40)
        return 99;
    for (size_t j = 0; j <= n; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; a[i - 1]; i++) {
        unsigned diagonal = row[0];

        row[0] = (unsigned)i;
        for (size_t j = 1; j <= n; j++) {
            unsigned best = diagonal + (a[i - 1] != b[j - 1]);

            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n];
}

static int unknown_key(const char *where, const char *key, char *err, size_t errlen)
{
    const char *near = NULL;
    unsigned best = (unsigned)strlen(key) / 3 + 2; /* further away is another word */
    size_t n;

    for (size_t i = 0; i < edm_options_count; i++) {
        unsigned d = distance(key, edm_options[i].key);

        if (d < best) {
            best = d;
            near = edm_options[i].key;
        }
    }
    n = (size_t)snprintf(err, errlen, "%s: unknown key \"%.60s\": ", where, key);
    if (near && n < errlen)
        n += (size_t)snprintf(err + n, errlen - n, "did you mean %s? ", near);
    if (n < errlen)
        n += (size_t)snprintf(err + n, errlen - n, "The keys are");
    for (size_t i = 0; i < edm_options_count && n < errlen; i++)
        n += (size_t)snprintf(err + n, errlen - n, "%s %s", i ? "," : "", edm_options[i].key);
    return -EINVAL;
}

static void default_socket(char *buf, size_t len)
{
    const char *dir = getenv("XDG_RUNTIME_DIR");
    uid_t uid = geteuid();
    struct stat st;

    if (uid == 0)
        snprintf(buf, len, "/run/edm/dms.sock");
    else if (dir && *dir == '/' && strlen(dir) + sizeof("/edm/dms.sock") <= len &&
             stat(dir, &st) == 0 && st.st_uid == uid)
        snprintf(buf, len, "%s/edm/dms.sock", dir);
    else
        snprintf(buf, len, "/tmp/edm-%u/dms.sock", (unsigned)uid);
}

/* Sets one key from text that came from `where`. */
static int set_value(struct edm_config *c, const struct edm_option *o, const char *text,
                     const char *where, char *err, size_t errlen)
{
    char why[LINE], socket[sizeof(c->socket)];
    int rc;

    if (o->offset == offsetof(struct edm_config, socket)) {
        default_socket(socket, sizeof(socket));
        if (!strcmp(text, o->def)) /* the line of edm.conf, with its # gone */
            text = socket;
        c->socket_is_default = !strcmp(text, socket);
    }
    rc = edm_value_parse(c, o, text, why, sizeof(why));

    if (rc)
        snprintf(err, errlen, "%s: %s", where, why);
    else
        set_origin(c, o, where);
    return rc;
}

/* ---- defaults ---- */

static int set_defaults(struct edm_config *c, char *err, size_t errlen)
{
    for (size_t i = 0; i < edm_options_count; i++) {
        const struct edm_option *o = &edm_options[i];
        int rc = set_value(c, o, o->def, "default", err, errlen);

        if (rc)
            return rc;
    }
    return 0;
}

/* ---- the file ---- */

struct reading {
    struct edm_config *c;
    char *err;
    size_t errlen;
};

static bool kind_fits(const struct edm_option *o, enum edm_file_kind kind)
{
    switch (o->type) {
    case EDM_TYPE_SIZE:
    case EDM_TYPE_BYTES:
        return kind == EDM_FILE_TEXT || kind == EDM_FILE_NUMBER;
    case EDM_TYPE_SHARE:
    case EDM_TYPE_SECONDS:
        return kind == EDM_FILE_NUMBER;
    case EDM_TYPE_UINT:
        return kind == EDM_FILE_NUMBER || (o->choices && kind == EDM_FILE_TEXT);
    case EDM_TYPE_BOOL:
        return kind == EDM_FILE_BOOL;
    case EDM_TYPE_FLAGS:
    case EDM_TYPE_LIST:
        return kind == EDM_FILE_LIST;
    case EDM_TYPE_CHOICE:
    case EDM_TYPE_STRING:
        return kind == EDM_FILE_TEXT;
    }
    return false;
}

/* How a value of o's type is written in a file. */
static const char *spelling(const struct edm_option *o)
{
    switch (o->type) {
    case EDM_TYPE_SIZE:
    case EDM_TYPE_BYTES:
    case EDM_TYPE_CHOICE:
    case EDM_TYPE_STRING:
        return ", in double quotes";
    case EDM_TYPE_FLAGS:
    case EDM_TYPE_LIST:
        return ", written [\"a\", \"b\"]";
    default:
        return ", without quotes";
    }
}

static int file_setting(void *ctx, const struct edm_file_setting *s)
{
    struct reading *r = ctx;
    const struct edm_option *o = find_key(s->key, strlen(s->key));
    char where[LINE], allowed[512];

    snprintf(where, sizeof(where), "%s:%d", s->file, s->line);
    if (!o)
        return unknown_key(where, s->key, r->err, r->errlen);
    if (!kind_fits(o, s->kind)) {
        edm_value_allowed(o, allowed, sizeof(allowed));
        snprintf(r->err, r->errlen, "%s: %s: %.80s has the wrong type: it must be %s%s", where,
                 o->key, s->text, allowed, spelling(o));
        return -EINVAL;
    }
    return set_value(r->c, o, s->text, where, r->err, r->errlen);
}

/* Is there anything but comments and white space in the n bytes of text? */
static bool says_something(const char *s, size_t n)
{
    const char *end = s + n;

    while (s < end) {
        const char *close = NULL;

        if (isspace((unsigned char)*s)) {
            s++;
            continue;
        }
        if (*s == '#' || (*s == '/' && s + 1 < end && s[1] == '/'))
            close = memchr(s, '\n', (size_t)(end - s));
        else if (*s == '/' && s + 1 < end && s[1] == '*')
            close = memmem(s + 2, (size_t)(end - s - 2), "*/", 2);
        else
            return true;
        if (!close)
            return *s == '/' && s[1] == '*'; /* without end: let libconfig judge */
        s = close + (*close == '*' ? 2 : 1);
    }
    return false;
}

/*
 * Looks at the file before libconfig does, which would leave by exit() on a directory. Returns 1
 * when it has settings, 0 when it has none, or -errno.
 */
static int look(const char *path)
{
    char buf[16384];
    struct stat st;
    ssize_t n;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return -errno;
    if (fstat(fd, &st)) {
        close(fd);
        return -errno;
    }
    if (!S_ISREG(st.st_mode)) { /* /dev/null: no settings */
        close(fd);
        if (S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3))
            return 0;
        return S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL;
    }
    n = read(fd, buf, sizeof(buf));
    if (n < 0)
        n = -errno;
    close(fd);
    if (n < 0)
        return (int)n;
    return n == sizeof(buf) || says_something(buf, (size_t)n);
}

static int read_file(struct edm_config *c, const char *path, char *err, size_t errlen)
{
    struct reading r = {.c = c, .err = err, .errlen = errlen};
    int rc = look(path);

    if (rc == 0)
        return 0;
    if (rc < 0) {
        snprintf(err, errlen, "%s: %s: a readable file with settings is needed", path,
                 rc == -EINVAL ? "not a regular file" : strerror(-rc));
        return rc;
    }
    return edm_file_read(path, file_setting, &r, err, errlen);
}

/* The first file there is: -c, $EDM_CONF, the user's, the system's. */
static int read_first_file(struct edm_config *c, const char *file, char *err, size_t errlen)
{
    const char *home = getenv("HOME");
    char path[4096];
    struct stat st;

    if (file && !*file) {
        snprintf(err, errlen, "-c: no file is named: give its path");
        return -EINVAL;
    }
    if (!file)
        file = getenv("EDM_CONF");
    if (file && *file)
        return read_file(c, file, err, errlen);
    if (home && *home == '/' &&
        (size_t)snprintf(path, sizeof(path), "%s/.config/edm/edm.conf", home) < sizeof(path) &&
        stat(path, &st) == 0)
        return read_file(c, path, err, errlen);
    if (stat("/etc/edm/edm.conf", &st) == 0)
        return read_file(c, "/etc/edm/edm.conf", err, errlen);
    return 0;
}

/* ---- the environment and options ---- */

static int set_from_env(struct edm_config *c, const char *var, char *err, size_t errlen)
{
    const char *name = var + 4, *eq = strchr(name, '=');
    size_t n = eq ? (size_t)(eq - name) : 0;
    char key[64], where[80];
    const struct edm_option *o;

    if (!eq)
        return 0;
    for (const char *const *other = env_others; *other; other++)
        if (strlen(*other) == n && !memcmp(*other, name, n))
            return 0;
    if (!strncmp(name, ENV_TEST_PREFIX, sizeof(ENV_TEST_PREFIX) - 1))
        return 0;
    snprintf(where, sizeof(where), "EDM_%.*s", (int)(n < 60 ? n : 60), name);
    if (n >= sizeof(key))
        return unknown_key("environment", where, err, errlen);
    for (size_t i = 0; i < n; i++)
        key[i] = (char)tolower((unsigned char)name[i]);
    key[n] = '\0';
    o = find_key(key, n);
    if (!o)
        return unknown_key(where, key, err, errlen);
    for (size_t i = 0; i < n; i++) {
        if (islower((unsigned char)name[i])) { /* edm_x is not EDM_X */
            snprintf(err, errlen, "%s: unknown key: the variable for %s is all in upper case",
                     where, key);
            return -EINVAL;
        }
    }
    return set_value(c, o, eq + 1, where, err, errlen);
}

static int set_from_environment(struct edm_config *c, char *err, size_t errlen)
{
    int rc = 0;

    for (char **e = environ; e && *e && !rc; e++)
        if ((*e)[0] == 'E' && !strncmp(*e, "EDM_", 4))
            rc = set_from_env(c, *e, err, errlen);
    return rc;
}

static int set_from_option(struct edm_config *c, const char *text, char *err, size_t errlen)
{
    const char *eq = strchr(text, '=');
    size_t n = eq ? (size_t)(eq - text) : strlen(text);
    const struct edm_option *o = find_key(text, n);
    char key[64];

    if (!eq) {
        snprintf(err, errlen, "-o %.80s: not a setting: it must be KEY=VALUE", text);
        return -EINVAL;
    }
    if (!o) {
        snprintf(key, sizeof(key), "%.*s", (int)(n < 63 ? n : 63), text);
        return unknown_key("-o", key, err, errlen);
    }
    return set_value(c, o, eq + 1, "-o", err, errlen);
}

/* ---- all of it ---- */

static int check_watermarks(struct edm_config *c, char *err, size_t errlen)
{
    const struct edm_option *lo = find_key("low_watermark", strlen("low_watermark"));
    const struct edm_option *hi = find_key("high_watermark", strlen("high_watermark"));
    const struct edm_option *blame = lo;

    if ((int)(c->low_watermark * 1000 + 0.5) < (int)(c->high_watermark * 1000 + 0.5))
        return 0;
    if (!strcmp(origin_of(c, lo), "default"))
        blame = hi;
    snprintf(
        err, errlen,
        "%s: %s: low_watermark %g (%s) is not below high_watermark %g (%s): it must be, by 0.001 "
        "or more, and both from 0.1 to 1",
        origin_of(c, blame), blame->key, c->low_watermark, origin_of(c, lo), c->high_watermark,
        origin_of(c, hi));
    return -EINVAL;
}

/* One line, whatever names were given. */
static int clean(int rc, char *err, size_t errlen)
{
    for (char *e = err; rc && errlen && *e; e++)
        if (iscntrl((unsigned char)*e))
            *e = '?';
    return rc;
}

int edm_config_environment(struct edm_config *c, char *err, size_t errlen)
{
    int rc = set_from_environment(c, err, errlen);

    if (!rc)
        rc = check_watermarks(c, err, errlen);
    return clean(rc, err, errlen);
}

int edm_config_load(struct edm_config *c, const struct edm_config_request *req, char *err,
                    size_t errlen)
{
    static const struct edm_config_request nothing;
    struct edm_config new = {0};
    int rc;

    if (!req)
        req = &nothing;
    rc = set_defaults(&new, err, errlen);
    if (!rc)
        rc = read_first_file(&new, req->file, err, errlen);
    if (!rc)
        rc = set_from_environment(&new, err, errlen);
    for (size_t i = 0; i < req->noptions && !rc; i++)
        rc = set_from_option(&new, req->options[i], err, errlen);
    if (!rc)
        rc = check_watermarks(&new, err, errlen);
    if (!rc)
        *c = new;
    return clean(rc, err, errlen);
}

int edm_config_value(const struct edm_config *c, size_t key, char *buf, size_t len)
{
    if (key >= edm_options_count)
        return -EINVAL;
    return edm_value_format(c, &edm_options[key], buf, len);
}

/* The value as a file has it. */
static void print_value(const struct edm_option *o, const char *text, FILE *f)
{
    bool number = o->type == EDM_TYPE_SHARE || o->type == EDM_TYPE_SECONDS ||
                  o->type == EDM_TYPE_BOOL ||
                  (o->type == EDM_TYPE_UINT && isdigit((unsigned char)*text));

    if (number) {
        fputs(text, f);
    } else if (o->type == EDM_TYPE_FLAGS || o->type == EDM_TYPE_LIST) {
        fputc('[', f);
        while (*text) {
            size_t n = strcspn(text, ",");

            fprintf(f, "\"%.*s\"%s", (int)n, text, text[n] ? ", " : "");
            text += n + (text[n] == ',');
        }
        fputc(']', f);
    } else {
        fputc('"', f);
        for (; *text; text++)
            fprintf(f, "%s%c", strchr("\"\\", *text) ? "\\" : "", *text);
        fputc('"', f);
    }
}

void edm_config_print(const struct edm_config *c, FILE *f)
{
    for (size_t i = 0; i < edm_options_count; i++) {
        char text[EDM_VALUE_MAX];

        if (edm_config_value(c, i, text, sizeof(text)))
            continue;
        fprintf(f, "%s = ", edm_options[i].key);
        print_value(&edm_options[i], text, f);
        fprintf(f, "; # %s\n", c->origin[i]);
    }
}
