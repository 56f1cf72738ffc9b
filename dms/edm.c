/*
 * The command for people: finds the subcommand; what all of them need.
 */
#include "cmd.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct cmd *const commands[] = {
    &cmd_run,   &cmd_start,  &cmd_stop,   &cmd_restart, &cmd_stat,
    &cmd_check, &cmd_config, &cmd_resize, &cmd_evict,   &cmd_fetch,
};
#define NCOMMANDS (sizeof(commands) / sizeof(commands[0]))

int cmd_fail(const char *fmt, ...)
{
    char line[CMD_ERR_MAX + 64];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    if (*line)
        fprintf(stderr, "edm: %s\n", line);
    return CMD_FAILED;
}

int cmd_misused(const struct cmd *self, const char *fmt, ...)
{
    char line[CMD_ERR_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    return cmd_fail("%s: %s: the usage is edm %s%s", self->name, line, self->name, self->usage);
}

int cmd_bad_option(const struct cmd *self, int found, char **argv)
{
    char short_name[3] = {'-', (char)optopt, '\0'};

    if (found == ':')
        return cmd_misused(self, "%s needs a value", argv[optind - 1]);
    return cmd_misused(self, "unknown option %s", optopt ? short_name : argv[optind - 1]);
}

void cmd_print_help(const struct cmd *self)
{
    printf("usage: edm %s%s\n\n%s", self->name, self->usage, self->help);
}

void cmd_settings_add(struct cmd_settings *s, const char *option)
{
    size_t n = s->request.noptions;
    const char **grown = realloc(s->options, (n + 1) * sizeof(*grown));

    if (!grown)
        exit(cmd_fail("out of memory"));
    grown[n] = option;
    s->options = grown;
    s->request.options = grown;
    s->request.noptions = n + 1;
}

int cmd_settings_load(struct cmd_settings *s)
{
    char err[CMD_ERR_MAX];

    if (edm_config_load(&s->config, &s->request, err, sizeof(err)))
        return cmd_fail("%s", err);
    return 0;
}

void cmd_settings_fini(struct cmd_settings *s)
{
    free(s->options);
    s->options = NULL;
}

int cmd_parse_pid(const struct cmd *self, const char *text, pid_t *pid)
{
    char *end;
    long v;

    errno = 0;
    v = strtol(text, &end, 10);
    if (errno || *end || end == text || v <= 0 || v > 1 << 30)
        return cmd_misused(self, "\"%s\" is not a process id", text);
    *pid = (pid_t)v;
    return 0;
}

int cmd_text_part(void *ctx, const char *text, size_t len)
{
    struct cmd_text *t = ctx;
    char *grown;

    if (len > (256u << 20) - t->len)
        return -EMSGSIZE;
    grown = realloc(t->text, t->len + len + 1);
    if (!grown)
        return -ENOMEM;
    memcpy(grown + t->len, text, len);
    t->len += len;
    grown[t->len] = '\0';
    t->text = grown;
    return 0;
}

void cmd_text_trim(struct cmd_text *t)
{
    while (t->len && t->text[t->len - 1] == '\n')
        t->text[--t->len] = '\0';
}

const char *cmd_human(double bytes, char *buf)
{
    static const char units[] = "BKMGTP";
    size_t i = 0;

    while (bytes >= 1024 && i < sizeof(units) - 2) {
        bytes /= 1024;
        i++;
    }
    snprintf(buf, 16, i && bytes < 99.95 ? "%.1f%c" : "%.0f%c", bytes, units[i]);
    return buf;
}

static void print_usage(FILE *f)
{
    fprintf(f, "usage: edm COMMAND [OPTION...]\n\n"
               "EDM lets a program use more memory than there is: what it does not touch is moved\n"
               "to a server, which keeps it in memory, compressed, on disk or on other hosts.\n\n");
    for (size_t i = 0; i < NCOMMANDS; i++)
        fprintf(f, "  %-9s %.*s\n", commands[i]->name, (int)strcspn(commands[i]->help, "\n"),
                commands[i]->help);
    fprintf(f, "\nedm COMMAND --help says more; edm --version prints the version.\n"
               "Every command exits with 0 when done, 125 when it could not, with one line why.\n");
}

static bool wants_help(int argc, char **argv)
{
    return argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"));
}

/* Output that could not be written is an error like any other. */
static int flushed(int rc)
{
    if (fflush(stdout) || ferror(stdout))
        return cmd_fail("standard output: %s: it must be open and have room", strerror(errno));
    return rc;
}

/* Until CMD is executed. */
static bool had_no_children;

void cmd_signals_back(void)
{
    if (had_no_children)
        signal(SIGCHLD, SIG_IGN);
}

/* What the caller may have closed or ignored: the first files that are opened must not become
 * standard streams (CMD finds them closed again), and the ends of children must be told. */
static void start_sanely(void)
{
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            open("/dev/null", O_CLOEXEC | (fd == 2 ? O_WRONLY : O_RDONLY));
    had_no_children = signal(SIGCHLD, SIG_DFL) == SIG_IGN;
}

/* CMD's own arguments are not ours. */
static bool asks_help(int argc, char **argv)
{
    if (!strcmp(argv[0], "run"))
        return wants_help(argc, argv);
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (!strcmp(argv[i], "--help"))
            return true;
    return wants_help(argc, argv);
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";

    start_sanely();
    opterr = 0;
    if (wants_help(argc, argv) || !strcmp(name, "help")) {
        print_usage(stdout);
        return flushed(0);
    }
    if (!strcmp(name, "--version")) {
        printf("edm %s\n", EDM_VERSION);
        return flushed(0);
    }
    if (!*name)
        return cmd_fail("no command: `edm --help` lists them");
    for (size_t i = 0; i < NCOMMANDS; i++) {
        if (strcmp(name, commands[i]->name) != 0)
            continue;
        if (asks_help(argc - 1, argv + 1)) {
            cmd_print_help(commands[i]);
            return flushed(0);
        }
        return flushed(commands[i]->run(commands[i], argc - 1, argv + 1));
    }
    return cmd_fail("unknown command \"%s\": `edm --help` lists them", name);
}
