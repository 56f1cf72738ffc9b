#!/bin/bash
# python3: $1 is dict, bytes, fork (multiprocessing over evicted data), subprocess or numpy.
source "$(dirname "$0")/../lib/program.sh"
work=(/usr/bin/python3 "$TEST_ROOT/test/programs/python_work.py" "$1" "$SCALE")
native "${work[@]}" >native.out
budget_from_need
[[ $1 != fork ]] || INSTANCES=3
[[ $1 != subprocess ]] || INSTANCES=2
managed "${work[@]}" >managed.out 2>program.err || fail "python3: $? $(tail -1 program.err)"
expect_same native.out managed.out
[[ $1 != fork ]] || (($(stats 'map(.events.fork) | add // 0') > 1)) || fail "no fork was seen"
expect_paged
program_end
