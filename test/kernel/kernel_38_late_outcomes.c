/*
 * Rule 38: memory is moved by raw mremap from and to addresses whose pages are on their way out, by
 * two threads, so that the events come late and in any order. Whichever page a command took, its
 * contents are that page's, in memory or evicted. What comes is resident, on its way out itself, or
 * (at first: raw calls end all leases) of a leased chunk, of whose pages nothing is known.
 */
#include "../lib/edmtest.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PART (64 * EDMTEST_PAGE)
#define CHUNK (2 * EDMTEST_MIB)
#define PAIRS 3
#define ROUNDS 90

/* One thread moves memory away from `place`, the other moves its own there. */
struct pair {
    char *place, *away;
    char *map, *source; /* a fresh mapping, and the part of it that comes */
    pthread_barrier_t barrier;
    uint64_t seed;
    bool leased;
};

/* libc's would tell the server beforehand. */
static char *raw_move(char *from, char *to)
{
    char *ret;
    register long r10 __asm__("r10") = MREMAP_MAYMOVE | MREMAP_FIXED;
    register long r8 __asm__("r8") = (long)to;

    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(SYS_mremap), "D"(from), "S"(PART), "d"(PART), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return ret;
}

/* Fails with ENOMEM once nothing is mapped there. */
static bool is_mapped(char *p)
{
    unsigned char there[PART / EDMTEST_PAGE];

    return mincore(p, PART, there) == 0;
}

static void *leaver(void *arg)
{
    struct pair *pair = arg;

    for (uint64_t round = 0; round < ROUNDS; round++) {
        pthread_barrier_wait(&pair->barrier);
        if (round % 3 == 0)
            EXPECT(raw_move(pair->place, pair->away) == pair->away, "raw mremap away");
        pthread_barrier_wait(&pair->barrier);
    }
    return NULL;
}

/* Nobody maps anything while a part of `place` is a hole. */
static pthread_rwlock_t holes = PTHREAD_RWLOCK_INITIALIZER;

static size_t source_len(const struct pair *pair)
{
    return pair->leased ? 2 * CHUNK : PART;
}

static void prepare(struct pair *pair, uint64_t seed, uint64_t round)
{
    pthread_rwlock_wrlock(&holes);
    pair->place = edmtest_map(PART);
    pair->away = edmtest_map(PART);
    pair->source = pair->map = edmtest_map(source_len(pair));
    pthread_rwlock_unlock(&holes);
    if (pair->leased)
        pair->source += -(uintptr_t)pair->map % CHUNK;
    edmtest_fill(pair->place, PART, seed);
    edmtest_fill(pair->source, PART, seed + 1);
    if (!pair->leased && round % 2)
        EXPECT_CALL(madvise(pair->source, PART, MADV_PAGEOUT)); /* does not wait */
    EXPECT_CALL(madvise(pair->place, PART, MADV_PAGEOUT));
    usleep((unsigned)(round * 7 % 100));
}

/* By turns: another thread moves away what is there; we do; it is dropped. */
static void move_over(struct pair *pair, uint64_t round)
{
    pthread_rwlock_rdlock(&holes);
    pthread_barrier_wait(&pair->barrier);
    if (round % 3 == 1)
        EXPECT(raw_move(pair->place, pair->away) == pair->away, "raw mremap away");
    while (round % 3 == 0 && is_mapped(pair->place))
        ;
    EXPECT(raw_move(pair->source, pair->place) == pair->place, "raw mremap into the place");
    pthread_barrier_wait(&pair->barrier);
    pthread_rwlock_unlock(&holes);
}

/* Of the fresh mapping, what did not move. */
static void drop_rest(struct pair *pair)
{
    size_t before = (size_t)(pair->source - pair->map), after = source_len(pair) - before - PART;

    if (before)
        EXPECT_CALL(munmap(pair->map, before));
    if (after)
        EXPECT_CALL(munmap(pair->source + PART, after));
}

static void check(struct pair *pair, uint64_t seed, uint64_t round)
{
    edmtest_expect(pair->place, PART, seed + 1, "what came");
    if (round % 3 != 2)
        edmtest_expect(pair->away, PART, seed, "what was there before");
}

static void *comer(void *arg)
{
    struct pair *pair = arg;
    pthread_t t;

    pthread_barrier_init(&pair->barrier, NULL, 2);
    EXPECT(pthread_create(&t, NULL, leaver, pair) == 0, "pthread_create");
    for (uint64_t round = 0; round < ROUNDS; round++) {
        uint64_t seed = pair->seed + 2 * round;

        prepare(pair, seed, round);
        move_over(pair, round);
        check(pair, seed, round);
        EXPECT_CALL(madvise(pair->place, PART, MADV_PAGEOUT));
        EXPECT_CALL(madvise(pair->away, PART, MADV_PAGEOUT));
        check(pair, seed, round);
        EXPECT_CALL(munmap(pair->place, PART));
        EXPECT_CALL(munmap(pair->away, PART));
        drop_rest(pair);
        edmtest_beat();
    }
    pthread_join(t, NULL);
    return NULL;
}

static void run(bool leased)
{
    struct pair pairs[PAIRS] = {0};
    pthread_t t[PAIRS];

    for (uint64_t i = 0; i < PAIRS; i++) {
        pairs[i].seed = (i + 1) << 32;
        pairs[i].leased = leased;
        EXPECT(pthread_create(&t[i], NULL, comer, &pairs[i]) == 0, "pthread_create");
    }
    for (uint64_t i = 0; i < PAIRS; i++)
        pthread_join(t[i], NULL);
}

/* More than the budget, so that the program is attached and older pages go out. */
static char *ballast_make(size_t len)
{
    char *p = edmtest_map(len);

    edmtest_fill(p, len, 1);
    return p;
}

int main(void)
{
    struct edmtest_counters before, after;
    size_t len = 4 * edmtest_budget();
    char *ballast;

    edmtest_begin("kernel_38_late_outcomes", 80);
    ballast = ballast_make(len);
    EXPECT_CALL(munmap(ballast, len));
    before = edmtest_now();
    run(true);
    ballast = ballast_make(len);
    run(false);
    edmtest_expect(ballast, len, 1, "memory that stayed");
    after = edmtest_now();
    EXPECT(edmtest_native() || after.remaps >= before.remaps + 2 * PAIRS * ROUNDS,
           "%lu remap events", after.remaps - before.remaps);
    EXPECT(edmtest_native() || after.leases > before.leases, "nothing was leased");
    edmtest_ok();
}
