/*
 * exec_cost TIMES LIBRARY[,VARIABLE=VALUE]...: what a preloaded library costs a short command. By
 * turns, TIMES times each, starts /bin/true four times by vfork and exec with that LD_PRELOAD ("-":
 * none). Prints for each the 10th percentile and the median of one start, in us by the clock.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STARTS 4

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int by_size(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static double starts(const char *library)
{
    static char path[] = "PATH=/bin", home[] = "HOME=/", command[] = "/bin/true";
    char preload[4096], *args[] = {command, NULL};
    snprintf(preload, sizeof(preload), "LD_PRELOAD=%s", library);
    char *variable = strchr(preload, ',');
    if (variable)
        *variable++ = 0;
    char *with[] = {path, home, preload, variable, NULL}, *without[] = {path, home, NULL};
    char **env = strcmp(library, "-") == 0 ? without : with;
    double began = now_us();
    for (int i = 0; i < STARTS; i++) {
        int status = 0;
        pid_t pid = vfork();
        if (pid == 0) {
            execve(command, args, env);
            _exit(127);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
            exit(1);
    }
    return (now_us() - began) / STARTS;
}

int main(int argc, char **argv)
{
    size_t n = argc > 2 ? strtoul(argv[1], NULL, 10) : 0, kinds = argc > 2 ? (size_t)argc - 2 : 0;
    double *took = calloc(n * kinds + 1, sizeof(*took));
    if (!n || !took)
        return 2;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < kinds; k++)
            took[k * n + i] = starts(argv[2 + k]);
    for (size_t k = 0; k < kinds; k++) {
        qsort(took + k * n, n, sizeof(*took), by_size);
        printf("%8.1f %8.1f  %s\n", took[k * n + n / 10], took[k * n + n / 2], argv[2 + k]);
    }
    return 0;
}
