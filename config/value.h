/*
 * One setting's value as text, to and from its field of struct edm_config.
 */
#ifndef EDM_CONFIG_VALUE_H
#define EDM_CONFIG_VALUE_H

#include "config.h"

/* Longest value as text. */
#define EDM_VALUE_MAX 1100

/*
 * Parses text into o's field of *c. Returns 0, or -EINVAL with "what is wrong: what would be
 * right" in err; the field is set only on success. The caller adds where the text came from.
 */
int edm_value_parse(struct edm_config *c, const struct edm_option *o, const char *text, char *err,
                    size_t errlen);

/* Says what o allows, for people: "one of auto, lz4, none", "a whole number from 1 to 64". */
void edm_value_allowed(const struct edm_option *o, char *buf, size_t len);

/* The inverse of edm_value_parse. Returns 0 or -ENOSPC. */
int edm_value_format(const struct edm_config *c, const struct edm_option *o, char *buf, size_t len);

#endif
