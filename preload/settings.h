/* The settings of this process, as cheaply as can be: most commands run with the defaults. */
#ifndef EDM_SETTINGS_H
#define EDM_SETTINGS_H

#include "../config/config.h"

/*
 * As edm_config_load(c, NULL, err, errlen), for the constructor. When there is no file, the
 * defaults that were worked out when the shim was built are taken.
 */
int settings_load(struct edm_config *c, char *err, size_t errlen);

/* getenv, without binding a function of libc for it. */
const char *settings_env(const char *name);

#endif
