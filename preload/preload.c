/*
 * What happens when the shim is loaded, in order. Nothing happens at unload: the kernel cleans up.
 * Every command that the user runs pays for this; a few microseconds is all it may cost.
 */
#include "../config/log.h"
#include "managed.h"
#include "nursery.h"
#include "settings.h"
#include "shim.h"
#include "sys.h"
#include <errno.h>
#include <limits.h>
#include <link.h>
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

struct shim_config shim_config;

/* A page of its own, so that MADV_WIPEONFORK takes nothing else with it. */
static union {
    struct shim_state state;
    char page[EDM_PAGE_SIZE];
} state_page __attribute__((aligned(4096)));
struct shim_state *shim_state = &state_page.state;

static char own_path[PATH_MAX]; /* of this library */
extern const char __ehdr_start[] __attribute__((visibility("hidden")));

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *fmt, ...)
{
    char line[1024];
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

static int note_own_path(struct dl_phdr_info *info, size_t size, void *arg)
{
    if (info->dlpi_addr != (ElfW(Addr))__ehdr_start)
        return 0;
    if (strlen(info->dlpi_name) < sizeof(own_path))
        strcpy(own_path, info->dlpi_name);
    return 1;
}

/* LD_PRELOAD may be relative; the program may change its directory before we attach. */
static void find_own_path(void)
{
    char cwd[PATH_MAX / 2];
    dl_iterate_phdr(note_own_path, NULL);
    if (!own_path[0] || own_path[0] == '/')
        return;
    size_t n = strlen(own_path);
    long len = sys_call3(SYS_getcwd, (long)cwd, sizeof(cwd), 0);
    if (len <= 0 || (size_t)len + n >= sizeof(own_path)) {
        own_path[0] = 0;
        return;
    }
    memmove(own_path + len, own_path, n + 1);
    memcpy(own_path, cwd, (size_t)len - 1);
    own_path[len - 1] = '/';
}

void shim_find_server(void)
{
    /* From the library's folder: in the build tree, and installed with or without a triplet. */
    static const char *const places[] = {"../dms/edm-dms", "../../bin/edm-dms", "../bin/edm-dms",
                                         "edm-dms"};
    char path[sizeof(own_path)];
    strcpy(path, own_path);
    char *name = strrchr(path, '/');
    if (!name || shim_config.dms_path[0])
        return;
    name++;
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

static uint32_t permille(double share)
{
    return (uint32_t)(share * 1000 + 0.5);
}

static void resolve_settings(void)
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
static uint64_t effective_threshold(void)
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

static void read_settings(void)
{
    char err[512];
    if (settings_load(&shim_config.config, err, sizeof(err)))
        die("%s", err);
    const char *token = getenv("EDM_RUN_TOKEN");
    if (token)
        shim_config.run_token = strtoull(token, NULL, 0);
    sys_call3(SYS_prctl, PR_GET_NAME, (long)shim_config.command, 0);
    resolve_settings();
}

__attribute__((constructor(FIRST_CONSTRUCTOR))) static void shim_load(void)
{
    const char *disable = getenv("EDM_DISABLE");
    char err[240] = "";

    if ((disable && *disable && strcmp(disable, "0") != 0) || getauxval(AT_SECURE))
        return;
    read_settings();
    if (shim_config.config.server == EDM_SERVER_OFF)
        return;
    /* Settings of the log are needed before the first thing that may be said. */
    int ret = edm_log_init("edm", shim_config.config.log_level, shim_config.config.log_file);
    if (ret)
        die("log_file = \"%s\": %s: give a file that can be written", shim_config.config.log_file,
            strerror(-ret));
    find_own_path();
    shim_config.threshold = effective_threshold();
    attach_init();
    if (shim_config.config.server == EDM_SERVER_REQUIRE) {
        shim_find_server();
        if (attach_probe(err, sizeof(err)))
            die("%s", err);
    }
    shim_config.enabled = true;
    if (shim_config.threshold == 0) {
        nursery_close();
        if (managed_open())
            managed_grow(0);
    }
}
