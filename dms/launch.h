/*
 * Finding EDM's other programs, and starting its server.
 */
#ifndef EDM_LAUNCH_H
#define EDM_LAUNCH_H

#include "../config/config.h"

/* The shim's and the server's paths, beside this program in the build tree or where installed.
 * 0, or -ENOENT with a line in err. */
int edm_launch_find_shim(char *buf, size_t len, char *err, size_t errlen);
int edm_launch_find_dms(char *buf, size_t len, char *err, size_t errlen);

/* Takes away what would change what a server is: preloads, and the marks of a surrounding MPI job.
 * In the child, before exec. */
void edm_launch_clean_environment(void);

/*
 * Runs edm-dms with the request's file and options, and waits until it serves. `automatic` makes it
 * end some time after its last instance. 0, or -errno with a line in err; err is "" when the server
 * has already said why on stderr.
 */
int edm_launch(const struct edm_config_request *req, bool automatic, char *err, size_t errlen);

#endif
