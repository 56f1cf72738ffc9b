/*
 * What happens when the shim is loaded, in order. Nothing happens at unload: the kernel cleans up.
 * Every command that the user runs pays for this; a few microseconds is all it may cost.
 */
#include "../config/log.h"
#include "bss.h"
#include "managed.h"
#include "nursery.h"
#include "settings.h"
#include "shim.h"
#include "sys.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/sysinfo.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <unistd.h>

#define EXIT_EDM 125
#define FIRST_CONSTRUCTOR 101 /* the lowest that is not reserved: before jemalloc's */

AT_LOAD_DATA struct shim_config shim_config;

/* A page of its own, so that MADV_WIPEONFORK takes nothing else with it. */
static union {
    struct shim_state state;
    char page[EDM_PAGE_SIZE];
} state_page __attribute__((aligned(4096)));
struct shim_state *shim_state = &state_page.state;

/* Linked without the compiler's start files (their destructor only costs): what atfork needs. */
extern void *__dso_handle __attribute__((visibility("hidden")));
void *__dso_handle = &__dso_handle;
extern const char __ehdr_start[] __attribute__((visibility("hidden")));

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *fmt, ...)
{
    char line[2048];
    size_t n = (size_t)snprintf(line, sizeof(line), "edm: ");
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);
    va_end(ap);
    n = strlen(line);
    line[n++] = '\n';
    sys_write(STDERR_FILENO, line, n);
    sys_exit_group(EXIT_EDM);
}

/* The line of /proc/self/maps in buf (without its newline) that holds our own code: its path. */
static bool line_path(const char *line, char *path, size_t len)
{
    uint64_t start = 0, end = 0, *v = &start;
    for (; *line && *line != ' '; line++) {
        if (*line == '-')
            v = &end;
        else
            *v = *v << 4 | (uint64_t)(*line <= '9' ? *line - '0' : *line - 'a' + 10);
    }
    if ((uint64_t)__ehdr_start < start || (uint64_t)__ehdr_start >= end)
        return false;
    const char *name = strchr(line, '/');
    if (!name || strlen(name) >= len)
        return false;
    strcpy(path, name);
    return true;
}

/* Where this library was loaded from, however LD_PRELOAD named it. */
static bool find_own_path(char *path, size_t len)
{
    char buf[1024], line[PATH_MAX + 128];
    size_t n = 0;
    bool found = false;
    long got;
    int fd = (int)sys_open("/proc/self/maps", O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return false;
    while (!found && (got = sys_read(fd, buf, sizeof(buf))) > 0) {
        for (long i = 0; i < got && !found; i++) {
            line[n] = buf[i] == '\n' ? 0 : buf[i];
            if (!line[n]) {
                found = line_path(line, path, len);
                n = 0;
            } else if (n < sizeof(line) - 1) {
                n++;
            }
        }
    }
    sys_close(fd);
    return found;
}

void shim_find_server(void)
{
    /* From the library's folder: in the build tree, and installed with or without a triplet. */
    static const char *const places[] = {"../dms/edm-dms", "../../bin/edm-dms", "../bin/edm-dms",
                                         "edm-dms"};
    char path[PATH_MAX + 64];
    if (shim_config.dms_path[0] || !find_own_path(path, PATH_MAX))
        return;
    char *name = strrchr(path, '/') + 1;
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        if ((size_t)(name - path) + strlen(places[i]) >= sizeof(shim_config.dms_path))
            continue;
        strcpy(name, places[i]);
        if (!sys_call3(SYS_access, (long)path, X_OK, 0)) {
            strcpy(shim_config.dms_path, path);
            return;
        }
    }
}

AT_LOAD static uint32_t permille(double share)
{
    return (uint32_t)(share * 1000 + 0.5);
}

AT_LOAD static void resolve_settings(void)
{
    const struct edm_config *c = &shim_config.config;
    shim_config.settings = (struct edm_settings){
        .local_memory = c->local_memory.permille ? 0 : c->local_memory.bytes,
        .local_permille = c->local_memory.permille,
        .arena_size = c->arena_size,
        .low_permille = permille(c->low_watermark),
        .high_permille = permille(c->high_watermark),
        .manage = c->manage,
        .reconnect_timeout_ms = (uint32_t)(c->reconnect_timeout * 1000),
        .on_server_lost = c->on_server_lost,
        .replicas = c->replicas,
        .placement = c->placement,
        .lease = c->lease,
        .prefetch = c->prefetch,
        .prefetch_max = c->prefetch_max,
        .cluster = c->cluster,
        .evict_method = c->evict_method,
        .handlers = c->handlers,
    };
}

/* No program may pass its budget before it attaches. */
AT_LOAD static uint64_t effective_threshold(void)
{
    const struct edm_config *c = &shim_config.config;
    struct sysinfo si;
    uint64_t budget = c->local_memory.bytes;
    if (c->local_memory.permille) {
        if (sys_call3(SYS_sysinfo, (long)&si, 0, 0) != 0)
            return c->attach_threshold;
        budget = edm_size_bytes(c->local_memory, (uint64_t)si.totalram * si.mem_unit);
    }
    return c->attach_threshold < budget / 2 ? c->attach_threshold : budget / 2;
}

AT_LOAD static void read_settings(void)
{
    char err[2000];
    if (settings_load(&shim_config.config, err, sizeof(err)))
        die("%s", err);
    const char *token = settings_env("EDM_RUN_TOKEN");
    if (token)
        shim_config.run_token = strtoull(token, NULL, 0);
    sys_call3(SYS_prctl, PR_GET_NAME, (long)shim_config.command, 0);
    resolve_settings();
}

/* Here, because NSS is not for the LPET; only who names a group pays for it. */
static void find_group(void)
{
    const char *group = shim_config.config.server_group;
    struct group *g = *group ? getgrnam(group) : NULL;
    shim_config.group = g ? g->gr_gid : ~0u;
}

__attribute__((constructor(FIRST_CONSTRUCTOR))) static void shim_load(void)
{
    const char *disable = settings_env("EDM_DISABLE");
    char err[240] = "";

    if ((disable && *disable && strcmp(disable, "0") != 0) || getauxval(AT_SECURE))
        return;
    read_settings();
    if (shim_config.config.server == EDM_SERVER_OFF)
        return;
    /* Settings of the log are needed before the first thing that may be said. */
    const struct edm_config *c = &shim_config.config;
    int ret = 0;
    if (c->log_level != EDM_LOG_WARNING || c->log_file[0]) /* else it is as it has to be */
        ret = edm_log_init("edm", c->log_level, c->log_file);
    if (ret)
        die("log_file = \"%s\": %s: give a file that can be written", c->log_file, strerror(-ret));
    find_group();
    shim_config.threshold = effective_threshold();
    attach_init();
    if (shim_config.config.server == EDM_SERVER_REQUIRE) {
        shim_find_server();
        if (attach_probe(err, sizeof(err)))
            die("%s", err);
        managed_open(); /* or it ends */
    }
    shim_config.enabled = true;
    if (shim_config.threshold == 0) {
        nursery_close();
        if (managed_open())
            managed_grow(0);
    }
    bss_manage();
}
