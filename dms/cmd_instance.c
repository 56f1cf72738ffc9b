/*
 * edm resize, evict, fetch: orders about one running instance.
 */
#include "cmd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct order {
    uint32_t type;
    const char *done; /* "fetched" */
    bool on_terminal, drawn;
};

static void draw(void *ctx, const struct edm_progress *p)
{
    struct order *o = ctx;
    char a[16], b[16];

    if (!o->on_terminal)
        return;
    o->drawn = true;
    fprintf(stderr, "\r%s %s of %s \x1b[K", o->done, cmd_human((double)p->done * EDM_PAGE_SIZE, a),
            cmd_human((double)p->total * EDM_PAGE_SIZE, b));
}

static int give(struct order *o, const struct edm_config *c, struct edm_request *req)
{
    const struct edm_client_call call = {
        .type = o->type, .payload = req, .len = sizeof(*req), .progress = draw, .ctx = o};
    struct edm_done done = {0};
    char err[CMD_ERR_MAX], human[16];
    int fd = edm_client_connect(c, true, err, sizeof(err)), rc;

    if (fd < 0)
        return cmd_fail("%s", err);
    o->on_terminal = isatty(2);
    rc = edm_client_call(fd, &call, &done, err, sizeof(err));
    close(fd);
    if (o->drawn)
        fprintf(stderr, "\r\x1b[K");
    if (rc)
        return cmd_fail("%s", err);
    if (o->type == EDM_MSG_RESIZE)
        printf("%d: local_memory is now %s\n", req->pid, cmd_human((double)req->size, human));
    else
        printf("%d: %s %s\n", req->pid, o->done,
               cmd_human((double)done.count * EDM_PAGE_SIZE, human));
    return 0;
}

/* A size above 0 in bytes; shares are of this host's memory. */
static int parse_size(const struct cmd *self, const char *text, uint64_t *bytes)
{
    struct edm_size s;

    if (edm_size_parse(text, &s) || !(s.bytes | s.permille))
        return cmd_misused(self, "\"%s\" is not a size such as 64K, 512M, 2G or 80%%", text);
    *bytes = edm_size_bytes(s, edm_memory_total());
    return 0;
}

/* PID and SIZE: how many of them there may be says `most`, how many there must be `least`. */
static int order_main(const struct cmd *self, struct order *o, int argc, char **argv, int least,
                      int most)
{
    struct cmd_settings s = {0};
    struct edm_request req = {0};
    int found, rc = 0;

    while ((found = getopt_long(argc, argv, ":c:o:", (struct option[]){{0}}, NULL)) != -1) {
        if (found == 'c')
            s.request.file = optarg;
        else if (found == 'o')
            cmd_settings_add(&s, optarg);
        else
            return cmd_bad_option(self, found, argv);
    }
    argc -= optind;
    argv += optind;
    if (argc < least)
        rc = cmd_misused(self, argc ? "SIZE is missing" : "PID is missing");
    else if (argc > most)
        rc = cmd_misused(self, "\"%s\" is too much", argv[most]);
    if (!rc)
        rc = cmd_parse_pid(self, argv[0], &req.pid);
    if (!rc && argc > 1)
        rc = parse_size(self, argv[1], &req.size);
    if (!rc)
        rc = cmd_settings_load(&s);
    if (!rc)
        rc = give(o, &s.config, &req);
    cmd_settings_fini(&s);
    return rc;
}

static int resize_main(const struct cmd *self, int argc, char **argv)
{
    struct order o = {.type = EDM_MSG_RESIZE, .done = "resized"};

    return order_main(self, &o, argc, argv, 2, 2);
}

static int evict_main(const struct cmd *self, int argc, char **argv)
{
    struct order o = {.type = EDM_MSG_EVICT, .done = "evicted"};

    return order_main(self, &o, argc, argv, 1, 2);
}

static int fetch_main(const struct cmd *self, int argc, char **argv)
{
    struct order o = {.type = EDM_MSG_FETCH, .done = "fetched"};

    return order_main(self, &o, argc, argv, 1, 1);
}

#define OPTIONS                                                                                    \
    "  -c FILE       read settings from FILE and no other\n"                                       \
    "  -o KEY=VALUE  any setting; socket says which server\n"

const struct cmd cmd_resize = {
    .name = "resize",
    .run = resize_main,
    .usage = " [-c FILE] [-o KEY=VALUE]... PID SIZE",
    .help = "change how much memory a running process keeps local\n\n"
            "  SIZE          512M, 2G, or 40% of this host's memory\n" OPTIONS,
};

const struct cmd cmd_evict = {
    .name = "evict",
    .run = evict_main,
    .usage = " [-c FILE] [-o KEY=VALUE]... PID [SIZE]",
    .help = "push memory of a running process out now\n\n"
            "  SIZE          at most so much; all of it when not given\n" OPTIONS,
};

const struct cmd cmd_fetch = {
    .name = "fetch",
    .run = fetch_main,
    .usage = " [-c FILE] [-o KEY=VALUE]... PID",
    .help =
        "bring all memory of a running process back\n\n" OPTIONS
        "\nDo this before attaching a debugger that reads memory by /proc/PID/mem. The process "
        "may\n"
        "then have more memory local than `local_memory` says, until it touches new memory: `edm\n"
        "resize` it first to have it stay so.\n",
};
