/*
 * edm stat: the server's counters, as JSON or for people.
 */
#include "cmd.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static const char *string(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "-";
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);

    return n >= m && !strcmp(s + n - m, end);
}

/* Prints text of others with nothing in it that moves a terminal. */
static void print_plain(const char *text, int width)
{
    int n = 0;

    for (; *text && (!width || n < width); text++, n++)
        putchar((unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text);
    for (; n < width; n++)
        putchar(' ');
}

/* ---- the server ---- */

/* All that a server says of itself; NULL with *rc and a line in err. */
static json_t *ask(int fd, int *rc, char *err, size_t errlen)
{
    struct cmd_text answer = {0};
    const struct edm_request all = {0};
    const struct edm_client_call call = {.type = EDM_MSG_STAT,
                                         .payload = &all,
                                         .len = sizeof(all),
                                         .part = cmd_text_part,
                                         .ctx = &answer};
    *rc = edm_client_call(fd, &call, NULL, err, errlen);
    json_t *root = *rc ? NULL : json_loadb(answer.text, answer.len, 0, NULL);

    free(answer.text);
    if (!*rc && !root) {
        snprintf(err, errlen, "the server's answer is no JSON: restart it");
        *rc = -EPROTO;
    }
    return root;
}

int cmd_server_size(int fd, unsigned *ranks, unsigned *instances, char *err, size_t errlen)
{
    int rc;
    json_t *root = ask(fd, &rc, err, errlen);

    if (ranks && root)
        *ranks = (unsigned)number(json_object_get(root, "server"), "ranks");
    if (instances && root)
        *instances = (unsigned)json_array_size(json_object_get(root, "instances"));
    json_decref(root);
    return rc;
}

int cmd_server_needs(int fd, unsigned *instances, uint64_t *kept_pages, char *err, size_t errlen)
{
    int rc;
    size_t i;
    json_t *root = ask(fd, &rc, err, errlen), *peer;

    if (!root)
        return rc;
    *instances = (unsigned)json_array_size(json_object_get(root, "instances"));
    *kept_pages = 0;
    json_array_foreach(json_object_get(json_object_get(root, "server"), "peers"), i,
                       peer) *kept_pages += (uint64_t)number(peer, "kept_pages");
    json_decref(root);
    return 0;
}

int cmd_server_dead(int fd, unsigned *dead, char *err, size_t errlen)
{
    int rc;
    size_t i;
    json_t *root = ask(fd, &rc, err, errlen), *peer;

    *dead = 0;
    json_array_foreach(json_object_get(json_object_get(root, "server"), "peers"), i, peer) *dead +=
        json_is_false(json_object_get(peer, "alive"));
    json_decref(root);
    return rc;
}

static void print_store(const char *name, const json_t *store)
{
    char used[16], capacity[16];

    printf("%s %s of %s, %.0f pages\n", name, cmd_human(number(store, "used_bytes"), used),
           cmd_human(number(store, "capacity_bytes"), capacity), number(store, "pages"));
}

static void print_server(const char *version, const json_t *server)
{
    long up = (long)number(server, "uptime_s");
    const json_t *peers = json_object_get(server, "peers");

    printf("server        EDM %s, rank %.0f of %.0f, up %ld:%02ld:%02ld\n", version,
           number(server, "rank"), number(server, "ranks"), up / 3600, up / 60 % 60, up % 60);
    print_store("memory store ", json_object_get(server, "memory_store"));
    print_store("disk store   ", json_object_get(server, "disk_store"));
    for (size_t i = 0; i < json_array_size(peers); i++) {
        const json_t *peer = json_array_get(peers, i);

        printf("rank %-4.0f     %s on ", number(peer, "rank"),
               json_is_true(json_object_get(peer, "alive")) ? "alive" : "dead");
        print_plain(string(peer, "host"), 0);
        printf(", %.0f pages, round trip %.1f us\n", number(peer, "pages"), number(peer, "rtt_us"));
    }
}

/* ---- instances ---- */

static void print_row(const json_t *in)
{
    const json_t *f = json_object_get(in, "faults"), *e = json_object_get(in, "evictions");
    const json_t *lat = json_object_get(in, "fault_latency_us");
    char limit[16], resident[16], most[16], stored[16];

    printf("%7.0f ", number(in, "pid"));
    print_plain(string(in, "command"), 16);
    printf(" %8s %8s %8s %8s %10.0f %10.0f %10.0f %7.1f %8.1f\n",
           cmd_human(number(in, "local_memory_bytes"), limit),
           cmd_human(number(in, "resident_bytes"), resident),
           cmd_human(number(in, "resident_max_bytes"), most),
           cmd_human(number(in, "stored_bytes"), stored), number(f, "new"),
           number(f, "existing") + number(f, "limbo"), number(e, "pages"), number(lat, "p50"),
           number(lat, "p99"));
}

static void print_instances(const json_t *instances)
{
    if (!json_array_size(instances)) {
        printf("\nno instances\n");
        return;
    }
    printf("\n%7s %-16s %8s %8s %8s %8s %10s %10s %10s %7s %8s\n", "PID", "COMMAND", "LIMIT",
           "RESIDENT", "MOST", "STORED", "NEW", "BACK", "EVICTED", "P50 us", "P99 us");
    for (size_t i = 0; i < json_array_size(instances); i++)
        print_row(json_array_get(instances, i));
}

/* Every counter of an object, "faults.new   12", sizes for people beside the bytes. */
static void print_counters(const char *prefix, json_t *object)
{
    for (void *it = json_object_iter(object); it; it = json_object_iter_next(object, it)) {
        const char *key = json_object_iter_key(it);
        json_t *v = json_object_iter_value(it);
        char name[128], human[16];

        snprintf(name, sizeof(name), "%s%s%s", prefix, *prefix ? "." : "", key);
        if (json_is_object(v)) {
            print_counters(name, v);
            continue;
        }
        printf("%-24s ", name);
        if (json_is_string(v))
            print_plain(json_string_value(v), 0);
        else if (json_is_integer(v))
            printf("%" JSON_INTEGER_FORMAT, json_integer_value(v));
        else if (json_is_number(v))
            printf("%g", json_number_value(v));
        else
            printf("%s", json_is_true(v) ? "yes" : json_is_false(v) ? "no" : "-");
        if (ends_with(name, "_bytes"))
            printf(" (%s)", cmd_human(json_number_value(v), human));
        putchar('\n');
    }
}

static int print_for_people(const char *text, size_t len, pid_t pid)
{
    json_error_t e;
    json_t *root = json_loadb(text, len, 0, &e);
    json_t *instances = json_object_get(root, "instances");

    if (!root)
        return cmd_fail("the server's answer cannot be read (line %d: %s): EDM %s is needed on "
                        "both sides",
                        e.line, e.text, EDM_VERSION);
    if (!pid) {
        print_server(string(root, "version"), json_object_get(root, "server"));
        print_instances(instances);
    } else {
        for (size_t i = 0; i < json_array_size(instances); i++)
            if ((pid_t)number(json_array_get(instances, i), "pid") == pid)
                print_counters("", json_array_get(instances, i));
    }
    json_decref(root);
    return 0;
}

/* ---- the command ---- */

static int stat_print(const struct edm_config *c, pid_t pid, bool json)
{
    struct edm_request req = {.pid = pid};
    struct cmd_text t = {0};
    const struct edm_client_call call = {.type = EDM_MSG_STAT,
                                         .payload = &req,
                                         .len = sizeof(req),
                                         .part = cmd_text_part,
                                         .ctx = &t};
    char err[CMD_ERR_MAX];
    int fd = edm_client_connect(c, true, err, sizeof(err)), rc;

    if (fd < 0)
        return cmd_fail("%s", err);
    rc = edm_client_call(fd, &call, NULL, err, sizeof(err));
    close(fd);
    cmd_text_trim(&t);
    if (rc)
        rc = cmd_fail("%s", err);
    else if (!t.len)
        rc = cmd_fail("the server's answer is empty: EDM " EDM_VERSION " is needed on both sides");
    else if (json)
        printf("%s\n", t.text);
    else
        rc = print_for_people(t.text, t.len, pid);
    free(t.text);
    return rc;
}

static int stat_main(const struct cmd *self, int argc, char **argv)
{
    static const struct option longs[] = {{"json", no_argument, NULL, 'j'}, {0}};
    struct cmd_settings s = {0};
    bool json = false;
    pid_t pid = 0;
    int found, rc = 0;

    while ((found = getopt_long(argc, argv, ":c:o:", longs, NULL)) != -1) {
        if (found == 'j')
            json = true;
        else if (found == 'c')
            s.request.file = optarg;
        else if (found == 'o')
            cmd_settings_add(&s, optarg);
        else
            return cmd_bad_option(self, found, argv);
    }
    if (argc - optind > 1)
        rc = cmd_misused(self, "\"%s\" is too much", argv[optind + 1]);
    else if (argv[optind])
        rc = cmd_parse_pid(self, argv[optind], &pid);
    if (!rc)
        rc = cmd_settings_load(&s);
    if (!rc)
        rc = stat_print(&s.config, pid, json);
    cmd_settings_fini(&s);
    return rc;
}

const struct cmd cmd_stat = {
    .name = "stat",
    .run = stat_main,
    .usage = " [--json] [-c FILE] [-o KEY=VALUE]... [PID]",
    .help = "counters of the server and of the processes it serves\n\n"
            "  --json        as JSON\n"
            "  PID           all counters of this process\n"
            "  -c FILE       read settings from FILE and no other\n"
            "  -o KEY=VALUE  any setting; socket says which server\n\n"
            "LIMIT is local_memory, MOST the largest RESIDENT so far, NEW first touches, BACK\n"
            "pages that were away, P50 and P99 how long faults took in the server.\n",
};
