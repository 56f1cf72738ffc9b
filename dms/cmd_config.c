/*
 * edm config: what is in effect, and where it came from.
 */
#include "cmd.h"

#include <string.h>

static void print_keys(void)
{
    for (size_t i = 0; i < edm_options_count; i++)
        printf("%-18s %s\n", edm_options[i].key, edm_options[i].text);
}

static int config_main(const struct cmd *self, int argc, char **argv)
{
    static const struct option longs[] = {{"keys", no_argument, NULL, 'k'}, {0}};
    struct cmd_settings s = {0};
    bool keys = false;
    int found, rc = 0;

    while ((found = getopt_long(argc, argv, ":c:o:", longs, NULL)) != -1) {
        if (found == 'k')
            keys = true;
        else if (found == 'c')
            s.request.file = optarg;
        else if (found == 'o')
            cmd_settings_add(&s, optarg);
        else
            return cmd_bad_option(self, found, argv);
    }
    if (argv[optind])
        rc = cmd_misused(self, "\"%s\" is too much", argv[optind]);
    else if (keys)
        print_keys();
    else if (!(rc = cmd_settings_load(&s)))
        edm_config_print(&s.config, stdout);
    cmd_settings_fini(&s);
    return rc;
}

const struct cmd cmd_config = {
    .name = "config",
    .run = config_main,
    .usage = " [--keys] [-c FILE] [-o KEY=VALUE]...",
    .help = "the settings in effect, each with where it came from\n\n"
            "  --keys        what each key means\n"
            "  -c FILE       read settings from FILE and no other\n"
            "  -o KEY=VALUE  as for edm run\n\n"
            "The output can be used as an edm.conf.\n",
};
