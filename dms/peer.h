/* The ranks of the DMS; peer.c is the only file that includes <mpi.h>. */
#ifndef EDM_PEER_H
#define EDM_PEER_H

#include <stddef.h>

/*
 * Cleans the environment that MPI and UCX read. UCX reads it when it is loaded, so the program
 * starts itself again once, when something had to be set. First thing in main. `alone`: not under
 * mpiexec, whatever job the environment speaks of.
 */
void peer_environment(int alone, char **argv);
/* MPI_Init_thread, before any thread is started. 0, or -errno with a line in err. */
int peer_init(char *err, size_t errlen);
int peer_rank(void);
int peer_ranks(void);
/* Ends MPI; with more than one rank the process ends without MPI_Finalize (it hangs over TCP). */
void peer_fini(void);

#endif
