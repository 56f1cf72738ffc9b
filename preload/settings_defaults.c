/* Runs when the shim is built: writes settings_defaults[], the defaults as edm_config_load has
 * them, as C. */
#include "../config/config.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
    static struct edm_config c;
    char empty[] = "/tmp/edm-empty-XXXXXX", err[512];
    const struct edm_config_request nothing = {.file = empty};
    int fd = mkstemp(empty), rc;

    clearenv();
    rc = edm_config_load(&c, &nothing, err, sizeof(err));
    close(fd);
    unlink(empty);
    if (rc) {
        fprintf(stderr, "settings_defaults: %s\n", err);
        return 1;
    }
    memset(c.socket, 0, sizeof(c.socket)); /* not the same for everybody */
    printf("#include <stddef.h>\nextern const unsigned char settings_defaults[];\n"
           "const unsigned char settings_defaults[%zu] = {",
           sizeof(c));
    for (size_t i = 0; i < sizeof(c); i++)
        printf("%s%u,", i % 24 ? "" : "\n", ((const unsigned char *)&c)[i]);
    puts("\n};");
    return ferror(stdout) != 0;
}
