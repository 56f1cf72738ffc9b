/* What attach.c, autostart.c and hooks_fork.c share; the rest of attaching is in shim.h. */
#ifndef EDM_ATTACH_H
#define EDM_ATTACH_H

#include "lpet.h"

/* Nobody begins to attach between the two, and nobody is in the middle of it: for fork.
 * attach_block returns whether the process is attached. */
bool attach_block(void);
void attach_unblock(void);
/* Was this process attached, or the one it was forked from, or refused? */
bool attach_was_tried(void);
/* The same, only whether it was attached. */
bool attach_was_registered(void);
/* In the child of a fork: what the parent was decides what the child does. */
void attach_after_fork(bool parent_attached);
/* After mlockall: what is locked cannot be staged into. */
void attach_unlock_staging(void);

/* ---- autostart.c: a server for server = "auto" ---- */
/* Copies what the server gets of the environment; constructor. */
void autostart_init(void);
/* Puts the server's argument vector together; before autostart_run, on the program's thread. */
void autostart_prepare(void);
/* On the LPET: starts edm-dms and waits until it serves. 0, or -errno with l->why set. */
int autostart_run(struct lpet *l);

#endif
