/* What instance.c (life), instance_attach.c (how it begins) and budget.c share. Only for these. */
#ifndef EDM_INSTANCE_INT_H
#define EDM_INSTANCE_INT_H

#include "instance.h"

#define LIMBO_MAX 1024u /* pages */

/* Closes it, if it is open, and makes it -1. */
void instance_close_fd(int *fd);

/* ---- budget.c ---- */
/* At start: how many bytes of memory the store may take. */
void budget_init(uint64_t store_bytes);
/* Bytes that its settings ask for, of so much memory. */
uint64_t budget_wanted(const struct instance *in);

#endif
