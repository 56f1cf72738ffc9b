/* A program that fills memory as fast as it can stays within its budget; so does its child. */
#include "../lib/edmtest.h"
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#define THREADS 4
#define SLACK (4 * EDMTEST_MIB)
#define OWN_MEMORY (3 * EDMTEST_MIB) /* libraries and thread stacks */

static size_t share;
static char *parts[THREADS];
static volatile unsigned running;

static void *filler(void *arg)
{
    size_t i = (size_t)arg;

    edmtest_fill(parts[i], share, i);
    for (size_t at = 0; at < share; at += 64 * EDMTEST_PAGE) /* back and forth */
        parts[i][share - at - 1]++, parts[i][share - at - 1]--;
    __atomic_sub_fetch(&running, 1, __ATOMIC_RELAXED);
    return arg;
}

static void fill_and_watch(size_t budget, const char *who)
{
    pthread_t t[THREADS];
    uint64_t max = 0;

    running = THREADS;
    for (size_t i = 0; i < THREADS; i++)
        EXPECT(pthread_create(&t[i], NULL, filler, (void *)i) == 0, "pthread_create");
    while (running) {
        uint64_t rss = edmtest_anon_rss(NULL, 0);

        max = rss > max ? rss : max;
    }
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(t[i], NULL);
        edmtest_expect(parts[i], share, i, who);
    }
    EXPECT(edmtest_native() || max <= budget + SLACK + OWN_MEMORY,
           "%s: %lu bytes resident with a budget of %zu", who, max, budget);
}

int main(void)
{
    struct edmtest_counters c;
    size_t budget;
    pid_t pid;

    edmtest_begin("faults_budget", 120);
    edmtest_pressure();
    budget = edmtest_budget();
    share = budget & ~(EDMTEST_PAGE * 64 - 1);
    for (size_t i = 0; i < THREADS; i++)
        parts[i] = edmtest_map(share);
    fill_and_watch(budget, "parent");
    c = edmtest_now();
    EXPECT(c.resident_max <= budget + SLACK, "resident_max_bytes %lu, budget %zu", c.resident_max,
           budget);
    EXPECT_CALL(pid = fork());
    if (pid == 0) {
        fill_and_watch(budget, "child");
        _exit(0);
    }
    edmtest_reap(pid, "child");
    for (size_t i = 0; i < THREADS; i++)
        edmtest_expect(parts[i], share, i, "parent after its child");
    edmtest_pressure_check();
    edmtest_ok();
}
