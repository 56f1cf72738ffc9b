#include "settings.h"
#include "shim.h"
#include "sys.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Generated: what edm_config_load gives without file and environment (settings_defaults.c). */
extern const unsigned char settings_defaults[sizeof(struct edm_config)];

AT_LOAD static bool begins(const char *s, const char *with)
{
    while (*with && *s == *with)
        s++, with++;
    return !*with;
}

AT_LOAD const char *settings_env(const char *name)
{
    for (char **e = environ; e && *e; e++) {
        if (**e != *name || !begins(*e, name))
            continue;
        const char *rest = *e;
        for (const char *n = name; *n; n++)
            rest++;
        if (*rest == '=')
            return rest + 1;
    }
    return NULL;
}

AT_LOAD static bool exists(const char *path)
{
    return sys_call3(SYS_access, (long)path, F_OK, 0) == 0;
}

/* What cannot be told is taken for a file, and left to edm_config_load. */
AT_LOAD static bool has_file(void)
{
    char path[512];
    const char *home = settings_env("HOME");
    if (exists("/etc/edm/edm.conf"))
        return true;
    if (!home || !*home)
        return false;
    size_t n = strlen(home);
    static const char name[] = "/.config/edm/edm.conf";
    if (n + sizeof(name) > sizeof(path))
        return true;
    memcpy(path, home, n);
    memcpy(path + n, name, sizeof(name));
    return exists(path);
}

AT_LOAD static bool has_variable(void)
{
    for (char **e = environ; e && *e; e++)
        if (begins(*e, "EDM_") && !begins(*e, "EDM_RUN_TOKEN="))
            return true;
    return false;
}

/* The one default that depends on who and where we are. */
AT_LOAD static void default_socket(char *buf, size_t len)
{
    const char *dir = settings_env("XDG_RUNTIME_DIR");
    static const char name[] = "/edm/dms.sock";
    uid_t uid = (uid_t)sys_call3(SYS_geteuid, 0, 0, 0);
    struct stat st;
    if (uid == 0)
        strcpy(buf, "/run/edm/dms.sock");
    else if (dir && *dir == '/' && strlen(dir) + sizeof(name) <= len &&
             sys_call3(SYS_stat, (long)dir, (long)&st, 0) == 0 && st.st_uid == uid)
        strcpy(stpcpy(buf, dir), name);
    else
        snprintf(buf, len, "/tmp/edm-%u/dms.sock", (unsigned)uid);
}

AT_LOAD int settings_load(struct edm_config *c, char *err, size_t errlen)
{
    if (settings_env("EDM_CONF") || has_file())
        return edm_config_load(c, NULL, err, errlen);
    memcpy(c, settings_defaults, sizeof(*c));
    memset(c->socket, 0, sizeof(c->socket));
    default_socket(c->socket, sizeof(c->socket));
    return has_variable() ? edm_config_environment(c, err, errlen) : 0;
}
