/*
 * Settings of EDM: one table of keys (options.c), read from a libconfig file, the environment
 * (EDM_<KEY>) and -o KEY=VALUE, later wins.
 *
 * Used by the shim (in its constructor, once), by edm-dms and by edm. Not thread safe; a loaded
 * struct edm_config is constant afterwards and may be read from any thread.
 */
#ifndef EDM_CONFIG_H
#define EDM_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define EDM_CONFIG_PATH_MAX 108                         /* as sun_path */
#define EDM_KEEPER_SUFFIX ".keeper"                     /* behind the socket's name */
#define EDM_CONFIG_SOCKET_MAX (EDM_CONFIG_PATH_MAX - 7) /* so that there is room for it */
#define EDM_CONFIG_HOSTS_MAX 1024

/* A size as the user gave it: bytes, or a share of something that is only known later. */
struct edm_size {
    uint64_t bytes;    /* valid when permille is 0 */
    uint32_t permille; /* "60%" is 600; 0 when bytes were given */
};

enum edm_server_mode { EDM_SERVER_AUTO, EDM_SERVER_REQUIRE, EDM_SERVER_OFF };
enum edm_compression { EDM_COMPRESSION_AUTO, EDM_COMPRESSION_LZ4, EDM_COMPRESSION_NONE };
enum edm_placement { EDM_PLACEMENT_LOCAL, EDM_PLACEMENT_REMOTE, EDM_PLACEMENT_SPREAD };
enum edm_lost { EDM_LOST_ABORT, EDM_LOST_WAIT };
enum edm_evict_method { EDM_EVICT_AUTO, EDM_EVICT_MOVE, EDM_EVICT_COPY };
enum edm_log_level { EDM_LOG_ERROR, EDM_LOG_WARNING, EDM_LOG_INFO, EDM_LOG_DEBUG };

#define EDM_MANAGE_MALLOC 1u
#define EDM_MANAGE_MMAP 2u
#define EDM_MANAGE_BSS 4u

struct edm_config {
    struct edm_size local_memory;
    double low_watermark, high_watermark;
    uint32_t manage; /* EDM_MANAGE_* */
    uint64_t attach_threshold;
    uint64_t arena_size;
    enum edm_server_mode server;
    char socket[EDM_CONFIG_SOCKET_MAX]; /* variables expanded */
    bool socket_is_default;             /* none was named: the system's is looked at, too */
    char server_group[64];              /* "" = none */
    double reconnect_timeout;           /* seconds */
    enum edm_lost on_server_lost;
    struct edm_size memory_store, disk_store;
    char disk_path[512];
    enum edm_compression compression;
    uint32_t replicas;
    enum edm_placement placement;
    char hosts[EDM_CONFIG_HOSTS_MAX]; /* commas between; "" = none */
    double request_timeout;           /* seconds */
    bool lease;
    bool prefetch;         /* "auto" = true, "off" = false */
    uint32_t prefetch_max; /* pages */
    uint32_t cluster;      /* pages */
    enum edm_evict_method evict_method;
    uint32_t handlers; /* 0 = auto */
    enum edm_log_level log_level;
    char log_file[512];  /* "" = stderr */
    char origin[32][96]; /* per key of edm_options[], where its value came from, for `edm config` */
};

/* What to read besides the environment. */
struct edm_config_request {
    const char *file;           /* -c FILE, or NULL: search $EDM_CONF, ~/.config/edm, /etc/edm */
    const char *const *options; /* "KEY=VALUE" strings of -o, or NULL */
    size_t noptions;
};

/*
 * Fills *c: defaults, then the first file found, then the environment, then the options, then
 * checks what spans keys (low < high). Returns 0, or -EINVAL/-ENOENT/… with one line in err that
 * says what is wrong and what would be right (file:line and key where there are any, no "edm: "
 * in front, no newline). *c is set only on success.
 */
int edm_config_load(struct edm_config *c, const struct edm_config_request *req, char *err,
                    size_t errlen);
/* The last two steps of it for *c, which has the defaults. *c is of no use after an error. */
int edm_config_environment(struct edm_config *c, char *err, size_t errlen);

/* Writes every key, its effective value and its origin to f, one line a key. */
void edm_config_print(const struct edm_config *c, FILE *f);

/* The value of key number i of edm_options[] as text that -o accepts. */
int edm_config_value(const struct edm_config *c, size_t key, char *buf, size_t len);

/* "4096", "64K", "512M", "2G", "1T", "80%". Returns 0 or -EINVAL; *out set only on success. */
int edm_size_parse(const char *text, struct edm_size *out);

/* The size in bytes when 100 % is `whole` bytes. */
static inline uint64_t edm_size_bytes(struct edm_size s, uint64_t whole)
{
    if (!s.permille)
        return s.bytes;
    return whole / 1000 * s.permille + whole % 1000 * s.permille / 1000;
}

/* Memory this process may use: physical memory, or its memory cgroup's limit where smaller. Bytes.
 */
uint64_t edm_memory_total(void);
/* The same for process pid. *group: which cgroup's limit it is; 0: it is the machine's memory. */
uint64_t edm_memory_of(pid_t pid, uint64_t *group);

/* The table of keys; options.c. */
struct edm_option {
    const char *key;
    enum {
        EDM_TYPE_SIZE,
        EDM_TYPE_BYTES,
        EDM_TYPE_SHARE,
        EDM_TYPE_UINT,
        EDM_TYPE_SECONDS,
        EDM_TYPE_BOOL,
        EDM_TYPE_CHOICE,
        EDM_TYPE_FLAGS,
        EDM_TYPE_STRING,
        EDM_TYPE_LIST
    } type;
    size_t offset;              /* of the field in struct edm_config */
    size_t size;                /* of the field, for strings */
    double min, max;            /* for numbers */
    const char *const *choices; /* for CHOICE and FLAGS, NULL at the end */
    const char *def;            /* default, as text */
    const char *text;           /* one line for people */
    bool is_server;             /* read by edm-dms (else by the instance) */
};
extern const struct edm_option edm_options[];
extern const size_t edm_options_count;

#endif
