/*
 * rank_raw: what MPI itself does between two ranks, to compare paging with. Rank 0 prints:
 *   round trip of a 64 byte request and an answer of 4 KiB: 10th, 50th, 90th percentile in us
 *   bandwidth of 64 KiB messages, 8 at a time: GB/s
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define TRIPS 20000
#define MESSAGES 8000
#define AT_A_TIME 8

static double trip[TRIPS];
static char buffer[AT_A_TIME][65536];

static int by_size(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static void round_trips(int rank)
{
    for (int i = 0; i < TRIPS; i++) {
        double start = MPI_Wtime();
        if (rank == 0)
            MPI_Send(buffer[0], 64, MPI_BYTE, 1, 0, MPI_COMM_WORLD);
        MPI_Recv(buffer[1], 65536, MPI_BYTE, !rank, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        if (rank == 1)
            MPI_Send(buffer[0], 4096, MPI_BYTE, 0, 0, MPI_COMM_WORLD);
        trip[i] = (MPI_Wtime() - start) * 1e6;
    }
}

static double bandwidth(int rank)
{
    MPI_Request q[AT_A_TIME];
    MPI_Barrier(MPI_COMM_WORLD);
    double start = MPI_Wtime();
    for (int i = 0; i < MESSAGES; i += AT_A_TIME) {
        for (int k = 0; k < AT_A_TIME; k++)
            if (rank == 0)
                MPI_Irecv(buffer[k], 65536, MPI_BYTE, 1, 0, MPI_COMM_WORLD, &q[k]);
            else
                MPI_Isend(buffer[k], 65536, MPI_BYTE, 0, 0, MPI_COMM_WORLD, &q[k]);
        MPI_Waitall(AT_A_TIME, q, MPI_STATUSES_IGNORE);
    }
    return MESSAGES * 65536.0 / (MPI_Wtime() - start) / 1e9;
}

int main(int argc, char **argv)
{
    int rank;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    round_trips(rank); /* connections are made, memory is touched */
    round_trips(rank);
    qsort(trip, TRIPS, sizeof(*trip), by_size);
    double rate = bandwidth(rank);
    if (rank == 0)
        printf("%.2f %.2f %.2f %.3f\n", trip[TRIPS / 10], trip[TRIPS / 2], trip[TRIPS / 10 * 9],
               rate);
    fflush(stdout);
    _exit(0); /* MPI_Finalize hangs over TCP in MPICH 4.0.2, with three ranks or more */
}
