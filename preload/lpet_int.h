/* What lpet.c (the thread) and lpet_cmd.c (its commands) share. Only for these. */
#ifndef EDM_LPET_INT_H
#define EDM_LPET_INT_H

#include "lpet.h"

/* One command, if there is one. Returns its kind, or -1. */
int lpet_command_next(struct lpet *l);
/* Gives the frames of staging back: what was moved there is in the channel. */
void lpet_staging_drop(struct lpet *l);

#endif
