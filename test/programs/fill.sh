#!/bin/bash
# Memory filled as fast as it can be, by one thread, by eight, and in forked children: the budget holds.
source "$(dirname "$0")/../lib/program.sh"
fill=$EDM_BUILD/test/programs/fill
for shape in "256 1 0" "256 8 0" "128 2 2"; do
    read -r mib threads children <<<"$shape"
    native "$fill" $((mib * SCALE)) "$threads" "$children" >native.out
    budget_from_need
    INSTANCES=$((children + 1))
    managed "$fill" $((mib * SCALE)) "$threads" "$children" >managed.out 2>program.err ||
        fail "fill $shape: $? $(tail -1 program.err)"
    expect_same native.out managed.out
    expect_paged
done
(($(stats 'map(.events.fork) | add // 0') >= 2)) || fail "no fork was seen"
program_end
