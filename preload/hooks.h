/* What the hooks on fork and on process-wide calls have for the rest of the shim. */
#ifndef EDM_HOOKS_H
#define EDM_HOOKS_H

/* Registers the atfork handlers, once; before jemalloc's. Constructor, or jemalloc's first malloc.
 */
void hooks_fork_init(void);
/* Tells a server just attached to what was pinned by mlockall before. */
void hooks_misc_attached(void);

#endif
