/* What the hooks on fork and on process-wide calls have for the rest of the shim. */
#ifndef EDM_HOOKS_H
#define EDM_HOOKS_H

#include <stdbool.h>
#include <stdint.h>

/* Registers the atfork handlers, once; before jemalloc's. Constructor, or jemalloc's first malloc.
 */
void hooks_fork_init(void);
/* True when `more` bytes of the arena would pass the RLIMIT_AS that the program has set for itself;
 * the kernel has counted the whole arena already. */
bool hooks_misc_as_refuses(uint64_t more);
/* In a forked child: mlockall is not inherited. */
void hooks_misc_forked(void);
/* Tells a server just attached to what was pinned by mlockall before. */
void hooks_misc_attached(void);

#endif
