#!/bin/bash
# The tests' own honesty: without EDM a program of four times the budget does not end in the cgroup
# that the program tests use, and one that fits does.
source "$(dirname "$0")/../lib/program.sh"
fill=$EDM_BUILD/test/programs/fill
cg_limit "$CASE_CG/prog" $((64 * MIB + 64 * MIB)) || fail "cannot limit the cgroup"
(cg_exec "$CASE_CG/prog" "$fill" 64 2 0) >small.out || fail "64 MiB do not fit into 128 MiB: $?"
(cg_exec "$CASE_CG/prog" "$fill" 256 2 0) >large.out 2>&1
rc=$?
((rc == 137)) || fail "256 MiB fitted into 128 MiB (status $rc): the limit does not limit"
[[ $(cg_oom_kills "$CASE_CG/prog") == 1 ]] || fail "it was not for want of memory"
