/*
 * Cost of the page store's calls, in ns each: store_put, store_view (with store_unview) and
 * store_unref, for raw and for LZ4 pages, over a working set of PAGES pages (default 65536);
 * with what memcpy and hash of a page cost alone, which are part of it. Then what it costs to take
 * a store of so many pages over: store_reopen, store_adopt of all, store_reopen_end, in ns a page.
 *
 * usage: store_bench [PAGES [ROUNDS]]
 */
#include "../dms/store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#define PAGE 4096u

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Pages that shrink to about a third. */
static void fill(unsigned char *p, uint32_t seed)
{
    for (uint32_t i = 0; i < PAGE; i++) {
        seed = seed * 1664525u + 1013904223u;
        p[i] = i % 4 ? (unsigned char)(i / 256) : (unsigned char)(seed >> 24);
    }
}

static void bench_parts(const unsigned char *pages, uint32_t n)
{
    unsigned char to[PAGE];
    uint64_t sum = 0;
    double t0 = now();
    for (uint32_t i = 0; i < n; i++) {
        memcpy(to, pages + (size_t)(i % 64) * PAGE, PAGE);
        sum += to[i % PAGE];
    }
    double t1 = now();
    for (uint32_t i = 0; i < n; i++)
        sum += XXH3_64bits(pages + (size_t)(i % 64) * PAGE, PAGE);
    printf("parts: memcpy %.0f ns, hash %.0f ns (%llx)\n", (t1 - t0) / n, (now() - t1) / n,
           (unsigned long long)sum & 0xf);
}

static void check(int rc, const char *what)
{
    if (rc) {
        fprintf(stderr, "store_bench: %s: %s\n", what, strerror(-rc));
        exit(1);
    }
}

static void bench_round(const char *name, const unsigned char *pages, store_handle *h, uint32_t n)
{
    _Alignas(PAGE) unsigned char buf[PAGE];
    struct store_view v;
    double t0 = now();
    for (uint32_t i = 0; i < n; i++)
        check(store_put(pages + (size_t)(i % 64) * PAGE, i, false, &h[i]), "store_put");
    double t1 = now();
    for (uint32_t i = 0; i < n; i++) {
        uint32_t k = (uint32_t)((uint64_t)i * 40503u % n);
        check(store_view(h[k], k, buf, &v), "store_view");
        store_unview(&v);
    }
    double t2 = now();
    for (uint32_t i = 0; i < n; i++)
        store_unref(h[i]);
    double t3 = now();
    for (uint32_t i = 0; i < n; i++) { /* the life of a page that is warm */
        check(store_put(pages + (size_t)(i % 64) * PAGE, i, false, &h[0]), "store_put");
        check(store_view(h[0], i, buf, &v), "store_view");
        store_unview(&v);
        store_unref(h[0]);
    }
    double t4 = now();
    printf("%s: put %.0f ns, view %.0f ns, unref %.0f ns; put + view + unref warm %.0f ns\n", name,
           (t1 - t0) / n, (t2 - t1) / n, (t3 - t2) / n, (t4 - t3) / n);
}

static void bench(const char *name, enum edm_compression c, const unsigned char *pages, uint32_t n,
                  uint32_t rounds)
{
    struct store_options opt = {.memory_bytes = (uint64_t)n * PAGE * 2, .compression = c};
    char err[256];
    store_handle *h = calloc(n, sizeof *h);
    if (!h)
        check(-12, "memory");
    if (store_init(&opt, err, sizeof err)) {
        fprintf(stderr, "store_bench: %s\n", err);
        exit(1);
    }
    for (uint32_t r = 0; r < rounds; r++)
        bench_round(name, pages, h, n);
    store_fini();
    free(h);
}

/* The files outlive store_fini by other descriptors, as they outlive a process. */
static struct store_fds keep_files(void)
{
    struct store_fds f;
    store_get_fds(&f);
    return (struct store_fds){dup(f.memory), dup(f.slots), -1};
}

static void bench_reopen(const unsigned char *pages, uint32_t n)
{
    struct store_options opt = {.memory_bytes = (uint64_t)n * PAGE * 2,
                                .compression = EDM_COMPRESSION_NONE};
    char err[256];
    store_handle *h = calloc(n, sizeof *h);
    uint32_t lost = 0;
    check(h ? 0 : -ENOMEM, "memory");
    check(store_init(&opt, err, sizeof err), "store_init");
    for (uint32_t i = 0; i < n; i++)
        check(store_put(pages + (size_t)(i % 64) * PAGE, i, false, &h[i]), "store_put");
    struct store_fds fds = keep_files();
    store_fini();
    double t0 = now();
    check(store_reopen(&opt, &fds, err, sizeof err), "store_reopen");
    double t1 = now();
    for (uint32_t i = 0; i < n; i++)
        lost += !store_adopt(h[i], i);
    double t2 = now();
    store_reopen_end();
    double t3 = now();
    check(lost ? -EIO : 0, "store_adopt");
    printf("take over: reopen %.0f ns, adopt %.0f ns, end %.0f ns\n", (t1 - t0) / n, (t2 - t1) / n,
           (t3 - t2) / n);
    store_fini();
    free(h);
}

int main(int argc, char **argv)
{
    uint32_t n = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 65536;
    uint32_t rounds = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 3;
    static unsigned char pages[64 * PAGE];
    if (n == 0 || rounds == 0) {
        fprintf(stderr, "usage: store_bench [PAGES [ROUNDS]]\n");
        return 1;
    }
    for (uint32_t i = 0; i < 64; i++)
        fill(pages + (size_t)i * PAGE, i + 1);
    bench_parts(pages, n);
    bench("raw", EDM_COMPRESSION_NONE, pages, n, rounds);
    bench("lz4", EDM_COMPRESSION_LZ4, pages, n, rounds);
    bench_reopen(pages, n);
    return 0;
}
