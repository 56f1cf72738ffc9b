/*
 * A server of several ranks: an MPI job. `SOCKET.job` says which hosts it has and which process is
 * its mpiexec, from `edm start` to `edm stop`; it is also the lock between the two. For `edm` only.
 */
#ifndef EDM_JOB_H
#define EDM_JOB_H

#include "hosts.h"
#include <sys/types.h>

#define JOB_START_LIMIT_S 60 /* until every rank serves */

struct job {
    char path[EDM_CONFIG_PATH_MAX + 8];
    int fd; /* locked; -1: there is none */
    unsigned ranks;
    struct hosts hosts; /* none: all ranks on this host */
    pid_t mpiexec;      /* 0: not started */
    uint64_t started;   /* of mpiexec, as in /proc/PID/stat, since pids are used again */
};

/*
 * Locks and reads the job of this socket, waiting while another `edm` has it. Without `create` and
 * without a file, fd is -1 and ranks 0. 0, or -errno with a line in err.
 */
int job_open(struct job *j, const char *socket, bool create, char *err, size_t errlen);

/* Was it started, and not stopped since? */
bool job_is_known(const struct job *j);

/* Does its mpiexec live? Ranks may go on without. */
bool job_mpiexec_runs(const struct job *j);

/* Writes what the struct says. */
int job_save(const struct job *j);

/* Ends what is left of mpiexec once its ranks have ended: by itself, or after a while by force. */
void job_end_mpiexec(struct job *j);

/* Unlocks, and with `forget` removes the file. */
void job_close(struct job *j, bool forget);

/* A rank that serves. */
struct job_rank {
    bool ready;
    int pid;
    char host[64], socket[EDM_CONFIG_PATH_MAX + 8];
};
typedef void (*job_said)(unsigned rank, const struct job_rank *r);

/*
 * Starts mpiexec with the ranks of *j, and waits until each says that it serves; `said` (may be
 * NULL) hears of each as it does. On failure mpiexec has been ended, and with it the ranks that did
 * not serve yet; those that did have not. 0, or -errno with a line in err.
 */
int job_start(struct job *j, const struct edm_config *c, job_said said, char *err, size_t errlen);

#endif
