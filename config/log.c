#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1024
#define HIGH_FD 500 /* out of the way of programs that expect low numbers */

static int log_fd = 2;
static enum edm_log_level log_level = EDM_LOG_WARNING;
static char log_name[32] = "edm";

int edm_log_init(const char *name, enum edm_log_level level, const char *file)
{
    int fd = 2, high;

    if (file && *file) {
        fd = open(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);
        if (fd < 0) /* a FIFO that nobody reads, too */
            return -errno;
        fcntl(fd, F_SETFL, O_APPEND);
        high = fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);
        if (high >= 0) {
            close(fd);
            fd = high;
        }
    }
    if (log_fd != 2)
        close(log_fd);
    log_fd = fd;
    log_level = level;
    snprintf(log_name, sizeof(log_name), "%s", name);
    return 0;
}

int edm_log_fd(void)
{
    return log_fd;
}

void edm_log(enum edm_log_level level, const char *fmt, ...)
{
    char line[LINE_MAX_BYTES];
    int saved = errno, rc;
    size_t n;
    va_list ap;

    if (level > log_level)
        return;
    n = (size_t)snprintf(line, sizeof(line), "%s: ", log_name);
    va_start(ap, fmt);
    rc = vsnprintf(line + n, sizeof(line) - n, fmt, ap);
    va_end(ap);
    if (rc > 0)
        n += (size_t)rc;
    if (n > sizeof(line) - 1)
        n = sizeof(line) - 1;
    for (size_t i = 0; i < n; i++) /* one line, whatever the arguments brought */
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
            line[i] = ' ';
    line[n++] = '\n';
    while (write(log_fd, line, n) < 0 && errno == EINTR)
        ;
    errno = saved;
}
