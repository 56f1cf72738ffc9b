/*
 * The hosts of a server: which of them is this one, and running commands on the others through
 * ssh. Tests put a program of their own in ssh's place: EDM_TEST_LAUNCHER names it; it is called as
 * ssh is, with options first, then the host, then one line for the host's shell.
 */
#ifndef EDM_HOSTS_H
#define EDM_HOSTS_H

#include "../config/config.h"

#define HOSTS_MAX 256
#define HOSTS_OUTPUT_MAX 1024
#define HOSTS_CONNECT_S 10 /* for ssh to reach a host */
/* What ssh is given: it may ask nobody anything, and a silent host ends it. */
#define HOSTS_SSH_OPTIONS "-o BatchMode=yes -o ConnectTimeout=10"

struct hosts {
    char text[EDM_CONFIG_HOSTS_MAX]; /* what names points into */
    const char *names[HOSTS_MAX];
    unsigned n;
};

/* What a command on one host did. */
struct hosts_result {
    int status; /* exit status; -ETIMEDOUT, -EHOSTUNREACH (output: what ssh said), -errno */
    double started, ended;         /* seconds since 1970, by the clock here */
    char output[HOSTS_OUTPUT_MAX]; /* both streams, the start of them, without ends of lines last */
};

/* From "a,b,c"; "" gives none. 0, or -EINVAL with a line in err: an odd name, or one given twice.
 */
int hosts_parse(struct hosts *h, const char *list, char *err, size_t errlen);

/* What names points into is the copy's own. */
void hosts_copy(struct hosts *to, const struct hosts *from);

/* The names with commas between, in a buffer of EDM_CONFIG_HOSTS_MAX. */
void hosts_join(const struct hosts *h, char *list);

/* Is it an address of this host, a name for one, or ""? A name that does not resolve is not. */
bool hosts_is_local(const char *name);

/* This host's address as the host `name` sees it. 0, or -errno with a line in err. */
int hosts_own_address(const char *name, char *buf, size_t len, char *err, size_t errlen);

/* The program used as ssh. */
const char *hosts_launcher(void);

/*
 * Runs a line of shell on every host at the same time (here without ssh where the host is this one)
 * and waits for all, at most limit_s seconds; what still runs then is given up. results has a place
 * for each host.
 */
void hosts_run(const struct hosts *h, const char *line, unsigned limit_s,
               struct hosts_result *results);

/* Appends `word` to the line of shell in buf, quoted. 0, or -E2BIG. */
int hosts_quote(char *buf, size_t len, const char *word);

#endif
