/* What edm start and stop (cmd_server.c) and edm restart (cmd_restart.c) share. */
#ifndef EDM_CMD_SERVER_H
#define EDM_CMD_SERVER_H

#include "cmd.h"
#include "job.h"

/* What `edm stop --here` does with the ranks of this host; all but the first for other `edm`s. */
enum here_mode {
    HERE_STOP,
    HERE_ASK,       /* nothing: fails if they would refuse to stop */
    HERE_ALIVE,     /* nothing: fails if none answers */
    HERE_HAND_OVER, /* they end as if killed */
    HERE_SPARE,     /* nothing: fails if one from the K-th on has what is needed */
};

struct server_args {
    struct cmd_settings s;
    struct hosts hosts;
    unsigned ranks;      /* 0: not said */
    bool wants_ranks;    /* -n was given */
    bool here;           /* of stop */
    enum here_mode mode; /* with here */
    unsigned first;      /* of HERE_SPARE */
};

/* A rank that listens here, or the socket of a dead one. */
struct local_rank {
    char socket[EDM_CONFIG_PATH_MAX + 8];
    int pidfd;
    pid_t pid;
    bool told;
};

/* All that print say why when they fail, and return CMD_FAILED then, else 0. */
int server_parse_start(const struct cmd *self, struct server_args *a, int argc, char **argv);
/* Ranks and hosts must fit each other. */
int server_settle(struct server_args *a);
int server_start(struct server_args *a);
/* "edm stop --here" for the shell of any host; EDM is at the same path there. */
int server_here_line(const char *socket, enum here_mode mode, unsigned first, char *buf,
                     size_t len);
/* This host's sockets, the one of the settings first, whether somebody listens or not; the caller
 * frees them. */
struct local_rank *server_find_ranks(const char *socket, unsigned *n);
/* The settings with that socket; valid until the next call. */
struct edm_config *server_with_socket(const struct edm_config *c, const char *socket);
/* Waits until the process (if any) ended and nobody listens any more; end: by the monotonic clock,
 * in ms. */
bool server_wait_gone(const struct edm_config *c, int pidfd, int64_t end);
/* Is it a rank of a job that another host started? */
bool server_is_part(const struct edm_config *c);
/* Removes what a rank that was killed left; the lock shows that nobody is just starting there. */
void server_sweep(const char *socket);

/* ---- cmd_restart.c ---- */

/* `edm stop --here` in one of the modes from HERE_ALIVE on. */
int restart_here(const struct edm_config *c, enum here_mode mode, unsigned first);
/* Ends the keepers of killed ranks among these, unless an instance waits here for one. */
void restart_end_keepers(const struct edm_config *c, const struct local_rank *ranks, unsigned n);
/* Has every rank of the job died? A host that does not answer may have some. */
bool restart_nobody_lives(const struct job *j, const struct edm_config *c);
/* Without -n and hosts the server is what it was; with them, what it had must not be lost. */
int restart_keep_size(struct server_args *a);

#define SERVER_OPTIONS                                                                             \
    "  -c FILE       read settings from FILE and no other\n"                                       \
    "  -o KEY=VALUE  any setting; `edm config` lists them\n"                                       \
    "  -n RANKS      ranks of the server; one for each host if not said, one without hosts\n"      \
    "  --hosts LIST  hosts of the ranks, with commas; the same as -o hosts=LIST\n"

#endif
