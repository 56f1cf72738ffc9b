#include "peer.h"
#include <errno.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static int my_rank, ranks = 1;

/* A plain MPI_Init inside somebody's MPI job would join that job as a rank. */
static void forget_jobs(void)
{
    static const char *const prefixes[] = {"PMI_",  "PMIX_", "MPI",   "HYDRA_",
                                           "HYDI_", "OMPI_", "SLURM_"};
    for (char **e = environ; e && *e;) {
        const char *eq = strchr(*e, '=');
        char name[256];
        int hit = 0;
        for (size_t i = 0; i < sizeof(prefixes) / sizeof(*prefixes); i++)
            hit |= strncmp(*e, prefixes[i], strlen(prefixes[i])) == 0;
        if (!hit || !eq || (size_t)(eq - *e) >= sizeof(name)) {
            e++;
            continue;
        }
        memcpy(name, *e, (size_t)(eq - *e));
        name[eq - *e] = 0;
        unsetenv(name); /* moves the rest up: look at the same place again */
    }
}

void peer_environment(int alone, char **argv)
{
    static const char *const wanted[][2] = {{"UCX_HANDLE_ERRORS", "none"},
                                            {"UCX_MEM_EVENTS", "n"},
                                            {"UCX_TCP_KEEPIDLE", "inf"},
                                            {"UCX_TLS", "tcp,self"},
                                            {"UCX_WARN_UNUSED_ENV_VARS", "n"}};
    int again = getenv("LD_PRELOAD") != NULL;
    for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++) {
        const char *has = getenv(wanted[i][0]);
        if (has && strcmp(has, wanted[i][1]) == 0)
            continue;
        setenv(wanted[i][0], wanted[i][1], 1);
        again = 1;
    }
    if (alone)
        forget_jobs();
    unsetenv("LD_PRELOAD");
    if (again)
        execv("/proc/self/exe", argv); /* when that fails, go on: it works, with more noise */
}

int peer_init(char *err, size_t errlen)
{
    int given;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &given) != MPI_SUCCESS ||
        given != MPI_THREAD_MULTIPLE) {
        snprintf(err, errlen, "MPI cannot be started with threads: install Debian's mpich");
        return -ENOTSUP;
    }
    MPI_Comm_rank(MPI_COMM_WORLD, &my_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    return 0;
}

int peer_rank(void)
{
    return my_rank;
}

int peer_ranks(void)
{
    return ranks;
}

void peer_fini(void)
{
    if (ranks > 1)
        _exit(0);
    MPI_Finalize();
}
