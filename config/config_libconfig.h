/*
 * The only door to libconfig. In the shim (EDM_CONFIG_DLOPEN) the library is loaded when there is
 * a file to read and unloaded after, so that no program pays for it otherwise.
 */
#ifndef EDM_CONFIG_LIBCONFIG_H
#define EDM_CONFIG_LIBCONFIG_H

#include <stddef.h>

enum edm_file_kind {
    EDM_FILE_TEXT,   /* "..." */
    EDM_FILE_NUMBER, /* 1, 0.5 */
    EDM_FILE_BOOL,   /* true, false */
    EDM_FILE_LIST,   /* ["a", "b"]; text has commas between */
    EDM_FILE_OTHER,  /* a group, or a list of other things than texts */
};

struct edm_file_setting {
    const char *key, *text;
    const char *file; /* may be another than the one asked for (@include) */
    int line;
    enum edm_file_kind kind;
};

/*
 * Reads path and calls each for every setting in it, until one call returns not 0. Returns what
 * that call did, or 0, or -errno with a line in err. Uses malloc.
 */
int edm_file_read(const char *path, int (*each)(void *ctx, const struct edm_file_setting *s),
                  void *ctx, char *err, size_t errlen);

#endif
