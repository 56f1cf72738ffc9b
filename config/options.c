/*
 * The table of settings. Parsing, `edm config`, the help of `edm` and edm.conf's test come from it.
 */
#include "config.h"

static const char *const manage_flags[] = {"malloc", "mmap", "bss", NULL};
static const char *const server_modes[] = {"auto", "require", "off", NULL};
static const char *const lost_modes[] = {"abort", "wait", NULL};
static const char *const compressions[] = {"auto", "lz4", "none", NULL};
static const char *const placements[] = {"local", "remote", "spread", NULL};
static const char *const prefetches[] = {"off", "auto", NULL};
static const char *const evict_methods[] = {"auto", "move", "copy", NULL};
static const char *const log_levels[] = {"error", "warning", "info", "debug", NULL};
static const char *const auto_word[] = {"auto", NULL}; /* stands for 0 */

#define K 1024.0
#define M (K * K)
#define G (K * M)
#define T (K * G)

#define FIELD(name)                                                                                \
    .key = #name, .offset = offsetof(struct edm_config, name),                                     \
    .size = sizeof(((struct edm_config *)0)->name)

/* The order is the one of the documentation, and of struct edm_config's origin[]. */
const struct edm_option edm_options[] = {
    {FIELD(local_memory), .type = EDM_TYPE_SIZE, .min = M, .max = 1024 * T, .def = "60%",
     .text = "most managed memory an instance keeps resident"},
    {FIELD(low_watermark), .type = EDM_TYPE_SHARE, .min = 0.1, .max = 1, .def = "0.90",
     .text = "share of local_memory at which eviction stops"},
    {FIELD(high_watermark), .type = EDM_TYPE_SHARE, .min = 0.1, .max = 1, .def = "0.95",
     .text = "share of local_memory at which eviction starts"},
    {FIELD(manage), .type = EDM_TYPE_FLAGS, .choices = manage_flags, .def = "malloc,mmap",
     .text = "kinds of memory that are managed"},
    {FIELD(attach_threshold), .type = EDM_TYPE_BYTES, .min = 0, .max = 1024 * T, .def = "32M",
     .text = "managed memory below which a process stays ordinary; 0 attaches at load"},
    {FIELD(arena_size), .type = EDM_TYPE_BYTES, .min = 64 * M, .max = 64 * T, .def = "1T",
     .text = "address space reserved in each process"},
    {FIELD(server), .type = EDM_TYPE_CHOICE, .choices = server_modes, .def = "auto",
     .text = "auto starts a server when none runs; require stops without one; off manages nothing"},
    {FIELD(socket), .type = EDM_TYPE_STRING, .def = "$XDG_RUNTIME_DIR/edm/dms.sock",
     .text = "where the server listens (root: /run/edm/dms.sock)"},
    {FIELD(server_group), .type = EDM_TYPE_STRING, .def = "", .is_server = true,
     .text = "group that may attach besides the server's own user"},
    {FIELD(reconnect_timeout), .type = EDM_TYPE_SECONDS, .min = 0, .max = 86400, .def = "60",
     .text = "seconds to wait for a new server when the server died"},
    {FIELD(on_server_lost), .type = EDM_TYPE_CHOICE, .choices = lost_modes, .def = "abort",
     .text = "what to do after reconnect_timeout: end the program, or wait for ever"},
    {FIELD(memory_store), .type = EDM_TYPE_SIZE, .min = 0, .max = 1024 * T, .def = "20%",
     .is_server = true, .text = "memory of a rank for stored pages; 0 = none"},
    {FIELD(disk_store), .type = EDM_TYPE_SIZE, .min = 0, .max = 1024 * T, .def = "50%",
     .is_server = true,
     .text = "disk space of a rank for stored pages (% of what is free); 0 = none"},
    {FIELD(disk_path), .type = EDM_TYPE_STRING, .def = "/var/tmp/edm", .is_server = true,
     .text = "directory of the disk store"},
    {FIELD(compression), .type = EDM_TYPE_CHOICE, .choices = compressions, .def = "auto",
     .is_server = true,
     .text = "auto: raw while there is room, then LZ4; lz4: always; none: never"},
    {FIELD(replicas), .type = EDM_TYPE_UINT, .min = 1, .max = 3, .def = "1",
     .text = "copies of a stored page, on different hosts where there are"},
    {FIELD(placement), .type = EDM_TYPE_CHOICE, .choices = placements, .def = "local",
     .text = "where pages are stored; remote: never on the instance's own host"},
    {FIELD(hosts), .type = EDM_TYPE_LIST, .def = "", .is_server = true,
     .text = "hosts of the server's ranks"},
    {FIELD(request_timeout), .type = EDM_TYPE_SECONDS, .min = 0.05, .max = 3600, .def = "2",
     .is_server = true, .text = "seconds after which a silent rank is taken for dead"},
    {FIELD(lease), .type = EDM_TYPE_BOOL, .def = "true",
     .text = "leave untouched memory to the kernel, 2 MiB at a time, while there is room"},
    {FIELD(prefetch), .type = EDM_TYPE_CHOICE, .choices = prefetches, .def = "auto",
     .text = "fetch ahead of sequential access"},
    {FIELD(prefetch_max), .type = EDM_TYPE_UINT, .min = 0, .max = 4096, .def = "256",
     .text = "most pages to fetch ahead"},
    {FIELD(cluster), .type = EDM_TYPE_UINT, .min = 1, .max = 64, .def = "16",
     .text = "neighbouring pages that are evicted together"},
    {FIELD(evict_method), .type = EDM_TYPE_CHOICE, .choices = evict_methods, .def = "auto",
     .text = "how pages leave a program; auto is right, the others are for tests"},
    {FIELD(handlers), .type = EDM_TYPE_UINT, .min = 1, .max = 64, .choices = auto_word,
     .def = "auto",
     .text = "fault handling threads per instance; auto: one on each CPU; at most 8"},
    {FIELD(log_level), .type = EDM_TYPE_CHOICE, .choices = log_levels, .def = "warning",
     .text = "what is logged"},
    {FIELD(log_file), .type = EDM_TYPE_STRING, .def = "", .text = "where to; none is stderr"},
};

const size_t edm_options_count = sizeof(edm_options) / sizeof(edm_options[0]);

_Static_assert(sizeof(edm_options) / sizeof(edm_options[0]) <=
                   sizeof(((struct edm_config *)0)->origin) /
                       sizeof(((struct edm_config *)0)->origin[0]),
               "struct edm_config has too few origins");
