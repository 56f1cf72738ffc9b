/* Pages that can be recomputed from a number: all but empty, compressible, and noise. */
#ifndef STORE_PAGES_H
#define STORE_PAGES_H

#include <stdint.h>
#include <string.h>

#define PAGE 4096u

enum content { SPARSE, TEXT, NOISE, CONTENTS };

static inline uint32_t next_random(uint32_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 17;
    return *x ^= *x << 5;
}

static inline void fill(unsigned char *p, uint32_t seed)
{
    uint32_t x = seed * 2654435761u + 1;
    enum content kind = seed % CONTENTS;
    x = x ? x : 1;
    memset(p, 0, PAGE);
    memcpy(p, &seed, sizeof seed);
    if (kind == SPARSE)
        return;
    for (uint32_t i = 4; i < PAGE; i++) {
        unsigned char c = (unsigned char)next_random(&x);
        p[i] = kind == NOISE || i % 16 == 0 ? c : (unsigned char)(i / 128);
    }
}

#endif
