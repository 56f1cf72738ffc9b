/*
 * What the fuzz targets share. A target is one LLVMFuzzerTestOneInput: with clang libFuzzer drives
 * it, else replay.c runs it over files. The bytes of an input are a program of what the liar does,
 * read front to back; when they are used up everything reads as 0.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct input {
    const uint8_t *at;
    size_t left;
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Up to n bytes; how many there were, the rest of `to` is 0. */
static inline size_t input_bytes(struct input *in, void *to, size_t n)
{
    size_t take = n < in->left ? n : in->left;
    memset(to, 0, n);
    if (take)
        memcpy(to, in->at, take);
    in->at += take;
    in->left -= take;
    return take;
}

static inline uint8_t input_u8(struct input *in)
{
    uint8_t v;
    input_bytes(in, &v, sizeof(v));
    return v;
}

static inline uint16_t input_u16(struct input *in)
{
    uint16_t v;
    input_bytes(in, &v, sizeof(v));
    return v;
}

static inline uint64_t input_u64(struct input *in)
{
    uint64_t v;
    input_bytes(in, &v, sizeof(v));
    return v;
}

/* What must hold whatever the input says; the sanitizers' way out keeps the input. */
#define FUZZ_CHECK(what)                                                                           \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #what);              \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif
