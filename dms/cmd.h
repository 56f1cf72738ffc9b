/*
 * What the files of the command `edm` share.
 */
#ifndef EDM_CMD_H
#define EDM_CMD_H

#include "../config/config.h"
#include "client.h"
#include "launch.h"
#include <getopt.h>
#include <sys/types.h>

#define CMD_ERR_MAX 2048
#define CMD_FAILED 125 /* exit status of EDM's own errors */

/* -c, -o and what means the same, in the order given. */
struct cmd_settings {
    struct edm_config_request request;
    const char **options;
    struct edm_config config; /* valid after cmd_settings_load */
};

struct cmd {
    const char *name;
    int (*run)(const struct cmd *self, int argc, char **argv); /* argv[0] is the command's name */
    const char *usage;                                         /* after "edm NAME" */
    const char *help; /* the first line says what it does */
};

extern const struct cmd cmd_run, cmd_start, cmd_stop, cmd_restart, cmd_stat, cmd_check, cmd_config,
    cmd_resize, cmd_evict, cmd_fetch;

/* Prints "edm: ..." on stderr (nothing when the text is empty) and returns CMD_FAILED. */
int cmd_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same about wrong arguments, with the command's usage. */
int cmd_misused(const struct cmd *self, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* For getopt's '?' and ':'. */
int cmd_bad_option(const struct cmd *self, int found, char **argv);
void cmd_print_help(const struct cmd *self);

/* Adds KEY=VALUE, which must live as long as *s. */
void cmd_settings_add(struct cmd_settings *s, const char *option);
/* Loads the settings; 0, or CMD_FAILED after saying why. */
int cmd_settings_load(struct cmd_settings *s);
void cmd_settings_fini(struct cmd_settings *s);

/* A process id from the command line; 0, or CMD_FAILED after saying why. */
int cmd_parse_pid(const struct cmd *self, const char *text, pid_t *pid);

/* Collects PARTs of an answer; text is always terminated. */
struct cmd_text {
    char *text;
    size_t len;
};
int cmd_text_part(void *ctx, const char *text, size_t len);
/* Takes the ends of lines at the end away. */
void cmd_text_trim(struct cmd_text *t);

/* Asks a server for the number of its ranks and of the instances that this one serves. 0 or -errno
 * with a line in err. Either place may be NULL. */
int cmd_server_size(int fd, unsigned *ranks, unsigned *instances, char *err, size_t errlen);

/* The same for the instances that this rank serves, and the pages that it keeps for other ranks. */
int cmd_server_needs(int fd, unsigned *instances, uint64_t *kept_pages, char *err, size_t errlen);

/* How many of its ranks it takes for dead. */
int cmd_server_dead(int fd, unsigned *dead, char *err, size_t errlen);

/* What `dms --version` on a host (hosts_run) says about it: 0, or -errno with a line in err. */
struct hosts_result;
int cmd_host_verdict(const struct hosts_result *r, const char *dms, char *err, size_t errlen);

/* What was changed for edm alone is as the caller had it: before CMD is executed. */
void cmd_signals_back(void);

/* Bytes as "1.5G"; buf of 16. */
const char *cmd_human(double bytes, char *buf);

#endif
