/* The ranks of the DMS; peer.c is the only file that includes <mpi.h>. */
#ifndef EDM_PEER_H
#define EDM_PEER_H

#include <stddef.h>

/* Cleans the environment that MPI and UCX read, then MPI_Init_thread. Call before any thread is
 * started. `alone`: not under mpiexec, whatever job the environment speaks of. */
int peer_init(int alone, char *err, size_t errlen);
int peer_rank(void);
int peer_ranks(void);
/* Ends MPI; with more than one rank the process ends without MPI_Finalize (it hangs over TCP). */
void peer_fini(void);

#endif
