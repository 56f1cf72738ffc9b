/* In place of libFuzzer: runs the target over files, each named before it is run. */
#include "fuzz.h"

static int run_file(const char *path)
{
    static uint8_t buf[1 << 20];
    FILE *f = fopen(path, "re");
    if (!f) {
        perror(path);
        return 1;
    }
    size_t n = fread(buf, 1, sizeof(buf), f);
    fclose(f);
    fprintf(stderr, "%s: %zu bytes\n", path, n);
    uint8_t *exact = malloc(n ? n : 1); /* the sanitizer sees where it ends */
    if (!exact)
        return 1;
    memcpy(exact, buf, n);
    LLVMFuzzerTestOneInput(exact, n);
    free(exact);
    return 0;
}

int main(int argc, char **argv)
{
    int failed = argc < 2;
    for (int i = 1; i < argc; i++)
        failed |= run_file(argv[i]);
    return failed;
}
