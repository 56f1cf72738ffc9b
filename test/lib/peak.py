"""peak.py FILE COMMAND...: runs COMMAND, writes the peak resident size in bytes of its largest
process to FILE, and ends as COMMAND did."""
import os
import resource
import sys

pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
with open(sys.argv[1], "w") as f:
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=f)
sys.exit(status if status >= 0 else 128 - status)
