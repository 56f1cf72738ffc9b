#!/bin/bash
# An MPICH program, two ranks under mpiexec, both under the shim, exchanging large managed buffers.
source "$(dirname "$0")/../lib/program.sh"
need mpiexec mpicc
make -s -C "$TEST_ROOT/examples/mpi_exchange" BUILD="$CASE_TMP" || fail "it does not build"
native mpiexec -n 2 "$CASE_TMP/mpi_exchange" $((SCALE * 256)) >native.out
budget_from_need
INSTANCES=2
managed mpiexec -n 2 "$CASE_TMP/mpi_exchange" $((SCALE * 256)) >managed.out 2>program.err ||
    fail "mpiexec: $?: $(tail -qn 2 program.err managed.out)"
sort -o native.out native.out && sort -o managed.out managed.out
expect_same native.out managed.out
(($(stats 'map(select(.evictions.pages > 0)) | length') == 2)) || fail "not both ranks were paged"
expect_paged
program_end
