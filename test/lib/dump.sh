#!/bin/bash
# dump.sh: where every process of this case stands, and what its servers say.
source "$(dirname "$0")/common.sh"
source "$TEST_ROOT/test/lib/cgroup.sh"
source "$TEST_ROOT/test/lib/watchdog.sh"
dump_case
