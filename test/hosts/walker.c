/*
 * walker MIB FILE: fills MIB MiB, then reads all of it and changes some, round after round,
 * printing each round's number, until FILE exists. The exit status is 1 when a word was ever wrong.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define STEP 64 /* words: every page is touched several times */

static uint64_t word_of(uint64_t round, size_t i)
{
    uint64_t x = (round << 40 | i) * 0x9e3779b97f4a7c15u;

    return x ^ x >> 29;
}

/* Words of round r are those whose place leaves r % 8: the others are as older rounds left them. */
static uint64_t walk(uint64_t *words, size_t count, uint64_t round)
{
    uint64_t wrong = 0;

    for (size_t i = 0; i < count; i += STEP) {
        uint64_t turn = i / STEP % 8, last = round > turn ? round - 1 - (round - 1 - turn) % 8 : 0;

        wrong += words[i] != word_of(last, i);
        if (round % 8 == turn)
            words[i] = word_of(round, i);
    }
    return wrong;
}

int main(int argc, char **argv)
{
    size_t bytes = argc > 2 ? strtoul(argv[1], NULL, 0) << 20 : 0;
    size_t count = bytes / sizeof(uint64_t);
    uint64_t *words, wrong = 0, round = 0;

    if (!bytes) {
        fprintf(stderr, "usage: walker MIB FILE\n");
        return 2;
    }
    words = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (words == MAP_FAILED) {
        perror("mmap");
        return 2;
    }
    for (size_t i = 0; i < count; i += STEP)
        words[i] = word_of(0, i);
    while (access(argv[2], F_OK)) {
        wrong += walk(words, count, ++round);
        printf("round %" PRIu64 ", %" PRIu64 " wrong\n", round, wrong);
        fflush(stdout);
    }
    return wrong != 0;
}
