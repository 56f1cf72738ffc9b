/*
 * One line a message, "edm: " in front ("edm-dms: " in the server), to stderr or to log_file.
 * Formats into a buffer on the stack and calls write once: no malloc, no stdio, callable from any
 * thread and under any lock. Not callable from the LPET (it has no libc).
 */
#ifndef EDM_LOG_H
#define EDM_LOG_H

#include "config.h"

/* Opens log_file (append, 0600) when it is set. name goes before each line. Returns 0 or -errno. */
int edm_log_init(const char *name, enum edm_log_level level, const char *file);
/* The descriptor that lines go to (2 unless log_file is set). */
int edm_log_fd(void);
void edm_log(enum edm_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define edm_error(...) edm_log(EDM_LOG_ERROR, __VA_ARGS__)
#define edm_warn(...) edm_log(EDM_LOG_WARNING, __VA_ARGS__)
#define edm_info(...) edm_log(EDM_LOG_INFO, __VA_ARGS__)
#define edm_debug(...) edm_log(EDM_LOG_DEBUG, __VA_ARGS__)

#endif
