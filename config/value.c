#include "value.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char units[] = "KMGTP";

/* The unit's shift of the rest of a size ("", "K", "m"), or -1. */
static int unit_shift(const char *s)
{
    const char *u;

    if (*s == '\0')
        return 0;
    u = strchr(units, toupper((unsigned char)*s));
    return u && s[1] == '\0' ? 10 * (int)(u - units + 1) : -1;
}

int edm_size_parse(const char *text, struct edm_size *out)
{
    const char *s = text;
    uint64_t n = 0, tenth = 0;
    bool fraction = false;
    int shift;

    if (!isdigit((unsigned char)*s))
        return -EINVAL;
    for (; isdigit((unsigned char)*s); s++)
        if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, *s - '0', &n))
            return -EINVAL;
    if (s[0] == '.' && isdigit((unsigned char)s[1])) {
        fraction = true;
        tenth = (uint64_t)(s[1] - '0');
        s += 2;
    }
    if (!strcmp(s, "%")) {
        if (n > 100 || n * 10 + tenth > 1000)
            return -EINVAL;
        *out = (struct edm_size){.permille = (uint32_t)(n * 10 + tenth)};
        return 0;
    }
    shift = unit_shift(s);
    if (shift < 0 || (fraction && shift == 0) || n > UINT64_MAX >> (shift + 1))
        return -EINVAL;
    *out = (struct edm_size){.bytes = (n << shift) + ((tenth << shift) / 10)};
    return 0;
}

static void size_text(uint64_t bytes, char *buf, size_t len)
{
    int shift = 0;
    const char *u = "";

    for (size_t i = 0; i < sizeof(units) - 1 && bytes && !(bytes & 1023); i++) {
        bytes >>= 10;
        shift = (int)i + 1;
    }
    if (shift)
        u = &units[shift - 1];
    snprintf(buf, len, "%llu%.1s", (unsigned long long)bytes, u);
}

/* "auto, lz4, none" */
static void join_choices(const struct edm_option *o, char *buf, size_t len)
{
    size_t n = 0;

    buf[0] = '\0';
    for (const char *const *c = o->choices; *c && n < len; c++)
        n += (size_t)snprintf(buf + n, len - n, "%s%s", n ? ", " : "", *c);
}

static void allowed_size(const struct edm_option *o, const char *percent, char *buf, size_t len)
{
    char lo[32], hi[32];

    size_text((uint64_t)o->min, lo, sizeof(lo));
    size_text((uint64_t)o->max, hi, sizeof(hi));
    snprintf(buf, len, "a size such as 4096, 64K, 512M, 2G%s, from %s to %s", percent, lo, hi);
}

void edm_value_allowed(const struct edm_option *o, char *buf, size_t len)
{
    char words[256] = "";

    if (o->choices)
        join_choices(o, words, sizeof(words));
    switch (o->type) {
    case EDM_TYPE_SIZE:
        allowed_size(o, " or 80%", buf, len);
        break;
    case EDM_TYPE_BYTES:
        allowed_size(o, "", buf, len);
        break;
    case EDM_TYPE_SHARE:
        snprintf(buf, len, "a number from %g to %g", o->min, o->max);
        break;
    case EDM_TYPE_SECONDS:
        snprintf(buf, len, "seconds from %g to %g", o->min, o->max);
        break;
    case EDM_TYPE_UINT:
        snprintf(buf, len, "%s%s%s a whole number from %g to %g", o->choices ? "\"" : "", words,
                 o->choices ? "\" or" : "", o->min, o->max);
        if (!o->choices)
            memmove(buf, buf + 1, strlen(buf));
        break;
    case EDM_TYPE_BOOL:
        snprintf(buf, len, "true or false");
        break;
    case EDM_TYPE_CHOICE:
        snprintf(buf, len, "one of %s", words);
        break;
    case EDM_TYPE_FLAGS:
        snprintf(buf, len, "a list of %s", words);
        break;
    case EDM_TYPE_STRING:
        snprintf(buf, len, "a text of at most %zu characters", o->size - 1);
        break;
    case EDM_TYPE_LIST:
        snprintf(buf, len, "a list of names, at most %zu characters", o->size - 1);
        break;
    }
}

static int refuse(const struct edm_option *o, const char *text, const char *why, char *err,
                  size_t errlen)
{
    char allowed[512];

    edm_value_allowed(o, allowed, sizeof(allowed));
    snprintf(err, errlen, "%s: \"%.80s\" %s: it must be %s", o->key, text, why, allowed);
    return -EINVAL;
}

static void *field(struct edm_config *c, const struct edm_option *o)
{
    return (char *)c + o->offset;
}

static int parse_size(struct edm_config *c, const struct edm_option *o, const char *text, char *err,
                      size_t errlen)
{
    struct edm_size s;

    if (edm_size_parse(text, &s))
        return refuse(o, text, "is not a size", err, errlen);
    if (s.permille && o->type == EDM_TYPE_BYTES)
        return refuse(o, text, "is a share", err, errlen);
    if (!s.permille && ((double)s.bytes < o->min || (double)s.bytes > o->max))
        return refuse(o, text, "is out of range", err, errlen);
    if (o->type == EDM_TYPE_BYTES)
        *(uint64_t *)field(c, o) = s.bytes;
    else
        *(struct edm_size *)field(c, o) = s;
    return 0;
}

static int parse_number(struct edm_config *c, const struct edm_option *o, const char *text,
                        char *err, size_t errlen)
{
    bool whole = o->type == EDM_TYPE_UINT;
    char *end;
    double v;

    if (whole && o->choices && !strcmp(text, o->choices[0])) {
        *(uint32_t *)field(c, o) = 0;
        return 0;
    }
    if (!*text || text[strspn(text, whole ? "-0123456789" : "-+.e0123456789")])
        return refuse(o, text, "is not a number", err, errlen);
    v = strtod(text, &end);
    if (*end || end == text)
        return refuse(o, text, "is not a number", err, errlen);
    if (!(v >= o->min && v <= o->max))
        return refuse(o, text, "is out of range", err, errlen);
    if (whole)
        *(uint32_t *)field(c, o) = (uint32_t)v;
    else
        *(double *)field(c, o) = v;
    return 0;
}

/* Index of the n bytes at word among o's choices, or -1. */
static int find_choice(const struct edm_option *o, const char *word, size_t n)
{
    for (int i = 0; o->choices[i]; i++)
        if (strlen(o->choices[i]) == n && !memcmp(o->choices[i], word, n))
            return i;
    return -1;
}

static int parse_choice(struct edm_config *c, const struct edm_option *o, const char *text,
                        char *err, size_t errlen)
{
    int i = find_choice(o, text, strlen(text));

    if (i < 0)
        return refuse(o, text, "is not known", err, errlen);
    if (o->size == sizeof(bool))
        *(bool *)field(c, o) = i;
    else
        *(uint32_t *)field(c, o) = (uint32_t)i; /* enums: all are 4 bytes, see below */
    return 0;
}

_Static_assert(sizeof(enum edm_server_mode) == 4 && sizeof(enum edm_log_level) == 4, "enum size");

static int parse_bool(struct edm_config *c, const struct edm_option *o, const char *text, char *err,
                      size_t errlen)
{
    static const char *const words[] = {"false", "true", "0", "1", "no", "yes", "off", "on"};

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (!strcmp(text, words[i])) {
            *(bool *)field(c, o) = i & 1;
            return 0;
        }
    }
    return refuse(o, text, "is neither", err, errlen);
}

static int parse_flags(struct edm_config *c, const struct edm_option *o, const char *text,
                       char *err, size_t errlen)
{
    uint32_t flags = 0;

    for (const char *s = text; *s;) {
        size_t n = strcspn(s, ",");
        int i = find_choice(o, s, n);

        if (i < 0)
            return refuse(o, text, "has a word that is not known", err, errlen);
        flags |= 1u << i;
        s += n;
        s += *s == ',';
    }
    if (!flags)
        return refuse(o, text, "is empty", err, errlen);
    *(uint32_t *)field(c, o) = flags;
    return 0;
}

/* Copies the variable's name that follows a '$' in *s, and passes it. */
static int take_name(const char **s, char *name, size_t len)
{
    bool brace = **s == '{';
    const char *start = *s + brace, *end = start;

    while (isalnum((unsigned char)*end) || *end == '_')
        end++;
    if (end == start || (size_t)(end - start) >= len || (brace && *end != '}'))
        return -EINVAL;
    memcpy(name, start, (size_t)(end - start));
    name[end - start] = '\0';
    *s = end + brace;
    return 0;
}

/* Replaces $NAME and ${NAME}. 0, -ENOSPC, or -EINVAL with the name of what is not set. */
static int expand(const char *text, char *buf, size_t len, char *name, size_t namelen)
{
    size_t n = 0;

    while (*text) {
        const char *piece = text, *value;
        size_t plen = strcspn(text, "$");

        if (plen) {
            text += plen;
        } else {
            text++;
            if (take_name(&text, name, namelen))
                return -EINVAL;
            value = getenv(name);
            if (!value || !*value)
                return -EINVAL;
            piece = value;
            plen = strlen(value);
        }
        if (plen >= len - n)
            return -ENOSPC;
        memcpy(buf + n, piece, plen);
        n += plen;
    }
    buf[n] = '\0';
    return 0;
}

static int parse_string(struct edm_config *c, const struct edm_option *o, const char *text,
                        char *err, size_t errlen)
{
    bool path = strcmp(o->key, "server_group") != 0;
    bool required = !*o->def ? false : true;
    char value[512], name[64] = "";
    int rc =
        expand(text, value, o->size < sizeof(value) ? o->size : sizeof(value), name, sizeof(name));

    if (rc == -ENOSPC)
        return refuse(o, text, "is too long", err, errlen);
    if (rc) {
        snprintf(err, errlen,
                 "%s: \"%.80s\": the environment has no value for $%s: set it, or give %s", o->key,
                 text, name, path ? "an absolute path" : "a name");
        return rc;
    }
    for (const char *s = value; *s; s++)
        if (iscntrl((unsigned char)*s))
            return refuse(o, text, "has control characters", err, errlen);
    if (path && (*value ? *value != '/' : required)) {
        snprintf(err, errlen, "%s: \"%.80s\" is not an absolute path: it must begin with /", o->key,
                 text);
        return -EINVAL;
    }
    strcpy(field(c, o), value); /* expand() kept to the field's size */
    return 0;
}

static int parse_list(struct edm_config *c, const struct edm_option *o, const char *text, char *err,
                      size_t errlen)
{
    if (strlen(text) >= o->size)
        return refuse(o, text, "is too long", err, errlen);
    for (const char *s = text; *s; s++)
        if (!isalnum((unsigned char)*s) && !strchr(".-_:,", *s))
            return refuse(o, text, "has characters that no host name has", err, errlen);
    if (*text == ',' || (*text && text[strlen(text) - 1] == ',') || strstr(text, ",,"))
        return refuse(o, text, "has an empty name", err, errlen);
    strcpy(field(c, o), text);
    return 0;
}

static int parse(struct edm_config *c, const struct edm_option *o, const char *text, char *err,
                 size_t errlen)
{
    switch (o->type) {
    case EDM_TYPE_SIZE:
    case EDM_TYPE_BYTES:
        return parse_size(c, o, text, err, errlen);
    case EDM_TYPE_SHARE:
    case EDM_TYPE_SECONDS:
    case EDM_TYPE_UINT:
        return parse_number(c, o, text, err, errlen);
    case EDM_TYPE_BOOL:
        return parse_bool(c, o, text, err, errlen);
    case EDM_TYPE_CHOICE:
        return parse_choice(c, o, text, err, errlen);
    case EDM_TYPE_FLAGS:
        return parse_flags(c, o, text, err, errlen);
    case EDM_TYPE_STRING:
        return parse_string(c, o, text, err, errlen);
    case EDM_TYPE_LIST:
        return parse_list(c, o, text, err, errlen);
    }
    return -EINVAL;
}

int edm_value_parse(struct edm_config *c, const struct edm_option *o, const char *text, char *err,
                    size_t errlen)
{
    int rc = parse(c, o, text, err, errlen);

    for (char *e = err; rc && *e; e++) /* of the text; a message is one line */
        if (iscntrl((unsigned char)*e))
            *e = '?';
    return rc;
}

static void format_flags(uint32_t flags, const struct edm_option *o, char *buf, size_t len)
{
    size_t n = 0;

    buf[0] = '\0';
    for (int i = 0; o->choices[i] && n < len; i++)
        if (flags & 1u << i)
            n += (size_t)snprintf(buf + n, len - n, "%s%s", n ? "," : "", o->choices[i]);
}

static void format_size(const struct edm_config *c, const struct edm_option *o, char *buf,
                        size_t len)
{
    struct edm_size s = {0};
    const void *p = (const char *)c + o->offset;

    if (o->type == EDM_TYPE_BYTES)
        s.bytes = *(const uint64_t *)p;
    else
        s = *(const struct edm_size *)p;
    if (s.permille % 10)
        snprintf(buf, len, "%u.%u%%", s.permille / 10, s.permille % 10);
    else if (s.permille)
        snprintf(buf, len, "%u%%", s.permille / 10);
    else
        size_text(s.bytes, buf, len);
}

int edm_value_format(const struct edm_config *c, const struct edm_option *o, char *buf, size_t len)
{
    const void *p = (const char *)c + o->offset;
    char text[EDM_VALUE_MAX] = "";
    uint32_t n;

    switch (o->type) {
    case EDM_TYPE_SIZE:
    case EDM_TYPE_BYTES:
        format_size(c, o, text, sizeof(text));
        break;
    case EDM_TYPE_SHARE:
    case EDM_TYPE_SECONDS:
        snprintf(text, sizeof(text), "%.10g", *(const double *)p);
        break;
    case EDM_TYPE_UINT:
        n = *(const uint32_t *)p;
        if (!n && o->choices)
            snprintf(text, sizeof(text), "%s", o->choices[0]);
        else
            snprintf(text, sizeof(text), "%u", n);
        break;
    case EDM_TYPE_BOOL:
        snprintf(text, sizeof(text), "%s", *(const bool *)p ? "true" : "false");
        break;
    case EDM_TYPE_CHOICE:
        n = o->size == sizeof(bool) ? *(const bool *)p : *(const uint32_t *)p;
        snprintf(text, sizeof(text), "%s", o->choices[n]);
        break;
    case EDM_TYPE_FLAGS:
        format_flags(*(const uint32_t *)p, o, text, sizeof(text));
        break;
    case EDM_TYPE_STRING:
    case EDM_TYPE_LIST:
        snprintf(text, sizeof(text), "%s", (const char *)p);
        break;
    }
    if (strlen(text) >= len)
        return -ENOSPC;
    strcpy(buf, text);
    return 0;
}
