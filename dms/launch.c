#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SHIM "libedm_preload.so"

/* Directory of this program, without a slash at the end. */
static int own_directory(char *buf, size_t len)
{
    ssize_t n = readlink("/proc/self/exe", buf, len - 1);
    char *slash;

    if (n <= 0)
        return -ENOENT;
    buf[n] = '\0';
    slash = strrchr(buf, '/');
    if (!slash)
        return -ENOENT;
    *slash = '\0';
    return 0;
}

/* The first readable match of dir/pattern, with its real path in buf. */
static bool find_one(const char *dir, const char *pattern, char *buf, size_t len)
{
    char path[PATH_MAX], real[PATH_MAX];
    bool found = false;
    glob_t g;

    if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, pattern) >= sizeof(path))
        return false;
    if (glob(path, 0, NULL, &g))
        return false;
    for (size_t i = 0; i < g.gl_pathc && !found; i++) {
        found =
            access(g.gl_pathv[i], R_OK) == 0 && realpath(g.gl_pathv[i], real) && strlen(real) < len;
        if (found)
            strcpy(buf, real);
    }
    globfree(&g);
    return found;
}

static int find(const char *const *patterns, const char *what, char *buf, size_t len, char *err,
                size_t errlen)
{
    char dir[PATH_MAX];

    if (own_directory(dir, sizeof(dir)) == 0)
        for (const char *const *p = patterns; *p; p++)
            if (find_one(dir, *p, buf, len))
                return 0;
    snprintf(err, errlen, "%s is not found: it must be built or installed together with edm", what);
    return -ENOENT;
}

int edm_launch_find_shim(char *buf, size_t len, char *err, size_t errlen)
{
    static const char *const patterns[] = {"../preload/" SHIM, "../lib/*-linux-gnu/" SHIM,
                                           "../lib64/" SHIM, "../lib/" SHIM, NULL};

    return find(patterns, SHIM, buf, len, err, errlen);
}

int edm_launch_find_dms(char *buf, size_t len, char *err, size_t errlen)
{
    static const char *const patterns[] = {"edm-dms", NULL};

    return find(patterns, "edm-dms", buf, len, err, errlen);
}

/* Variables that would change what the server is: preloads, and the marks of a surrounding MPI job
 * (a plain MPI_Init would join it). */
static bool unwanted(const char *var)
{
    static const char *const prefixes[] = {
        "LD_PRELOAD=", "EDM_RUN_TOKEN=", "EDM_DISABLE=", "PMI_",  "PMIX_",  "PMI2_",
        "MPI",         "HYDRA_",         "HYDI_",        "OMPI_", "SLURM_", NULL};

    for (const char *const *p = prefixes; *p; p++)
        if (!strncmp(var, *p, strlen(*p)))
            return true;
    return false;
}

void edm_launch_clean_environment(void)
{
    char **to = environ;

    for (char **from = environ; *from; from++)
        if (!unwanted(*from))
            *to++ = *from;
    *to = NULL;
}

static void run_server(const char *path, const struct edm_config_request *req, bool automatic)
{
    char **argv = calloc(req->noptions * 2 + 6, sizeof(*argv));
    char file[PATH_MAX];
    size_t n = 0;
    int fd;

    if (!argv)
        _exit(125);
    if (automatic && (fd = open("/dev/null", O_WRONLY | O_CLOEXEC)) >= 0)
        dup2(fd, 2); /* the program will try, too, and say why it runs unmanaged */
    argv[n++] = (char *)"edm-dms";
    argv[n++] = (char *)"--daemon";
    if (automatic)
        argv[n++] = (char *)"--auto";
    if (req->file) {
        argv[n++] = (char *)"-c";
        argv[n++] = realpath(req->file, file) ? file : (char *)req->file;
    }
    for (size_t i = 0; i < req->noptions; i++) {
        argv[n++] = (char *)"-o";
        argv[n++] = (char *)req->options[i];
    }
    edm_launch_clean_environment();
    execv(path, argv);
    dprintf(2, "edm: %s cannot be run: %s\n", path, strerror(errno));
    _exit(125);
}

int edm_launch(const struct edm_config_request *req, bool automatic, char *err, size_t errlen)
{
    char path[PATH_MAX];
    int rc = edm_launch_find_dms(path, sizeof(path), err, errlen), status;
    pid_t pid;

    if (rc)
        return rc;
    pid = fork();
    if (pid < 0) {
        rc = -errno;
        snprintf(err, errlen, "no process for the server: %s", strerror(-rc));
        return rc;
    }
    if (pid == 0)
        run_server(path, req, automatic);
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) {
            rc = -errno;
            snprintf(err, errlen, "the server is lost while it starts: %s: see its log",
                     strerror(-rc));
            return rc;
        }
    *err = '\0';
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (WIFSIGNALED(status))
        snprintf(err, errlen, "the server died while it started (signal %d): see its log",
                 WTERMSIG(status));
    else if (WEXITSTATUS(status) != 125)
        snprintf(err, errlen, "the server did not start (exit status %d): see its log",
                 WEXITSTATUS(status));
    return -ECHILD;
}
