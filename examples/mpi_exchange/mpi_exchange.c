/*
 * Two ranks exchange large buffers, round after round: mpiexec -n 2 mpi_exchange MIB
 *
 * Each rank holds MIB MiB in blocks from malloc. In every round it sends each block to the other
 * rank, receives the other's in its place, and changes it. Under EDM most blocks are not in local
 * memory when MPI reads or writes them. Ends by comparing sums that both ranks can compute.
 */
#include <inttypes.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define BLOCK ((size_t)8 << 20)
#define WORDS (BLOCK / sizeof(uint64_t))
#define ROUNDS 3

static uint64_t mix(uint64_t x)
{
    x *= 0x9e3779b97f4a7c15u;
    return x ^ x >> 31;
}

static uint64_t **make_blocks(int n, int rank)
{
    uint64_t **blocks = malloc((size_t)n * sizeof(*blocks));

    for (int b = 0; blocks && b < n; b++) {
        blocks[b] = malloc(BLOCK);
        if (!blocks[b])
            return NULL;
        for (size_t i = 0; i < WORDS; i++)
            blocks[b][i] = mix((uint64_t)rank << 60 | (uint64_t)b << 32 | i);
    }
    return blocks;
}

/* Alternates between one call for both directions and two that overlap. */
static void exchange(uint64_t *block, uint64_t *spare, int peer, int tag)
{
    MPI_Request req[2];
    MPI_Status status[2];

    if (tag % 2) {
        MPI_Sendrecv_replace(block, (int)WORDS, MPI_UINT64_T, peer, tag, peer, tag, MPI_COMM_WORLD,
                             MPI_STATUS_IGNORE);
    } else {
        MPI_Irecv(spare, (int)WORDS, MPI_UINT64_T, peer, tag, MPI_COMM_WORLD, &req[0]);
        MPI_Isend(block, (int)WORDS, MPI_UINT64_T, peer, tag, MPI_COMM_WORLD, &req[1]);
        MPI_Waitall(2, req, status);
        for (size_t i = 0; i < WORDS; i++)
            block[i] = spare[i];
    }
}

/* After ROUNDS exchanges a block began on the other rank when ROUNDS is odd. */
static uint64_t count_wrong(uint64_t **blocks, int n, int rank)
{
    uint64_t wrong = 0, origin = (uint64_t)(ROUNDS % 2 ? !rank : rank);

    for (int b = 0; b < n; b++)
        for (size_t i = 0; i < WORDS; i++)
            wrong += blocks[b][i] != mix(origin << 60 | (uint64_t)b << 32 | i) + ROUNDS;
    return wrong;
}

static int run(int n, int rank)
{
    uint64_t **blocks = make_blocks(n, rank), *spare = malloc(BLOCK), wrong, sum = 0, all = 0;

    if (!blocks || !spare) {
        fprintf(stderr, "rank %d: no memory\n", rank);
        return 1;
    }
    for (int round = 0; round < ROUNDS; round++)
        for (int b = 0; b < n; b++) {
            exchange(blocks[b], spare, !rank, b);
            for (size_t i = 0; i < WORDS; i++)
                sum += blocks[b][i]++;
        }
    wrong = count_wrong(blocks, n, rank);
    MPI_Allreduce(&wrong, &all, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
    printf("rank %d: %d blocks, sum %016" PRIx64 ", %" PRIu64 " words wrong\n", rank, n, sum,
           wrong);
    return all != 0;
}

int main(int argc, char **argv)
{
    int rank, size, rc = 2, mib = argc > 1 ? atoi(argv[1]) : 256;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (size == 2 && mib >= 8)
        rc = run(mib / 8, rank);
    else if (rank == 0)
        fprintf(stderr, "usage: mpiexec -n 2 mpi_exchange [MIB, at least 8]\n");
    MPI_Finalize();
    return rc;
}
