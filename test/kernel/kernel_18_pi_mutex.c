/* Rule 18: mutexes with priority inheritance work, whatever eviction there was. */
#include "../lib/edmtest.h"
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#define THREADS 4
#define ROUNDS 2000

struct guarded {
    pthread_mutex_t mutex;
    uint64_t count;
};

static struct guarded *g;

static void *adder(void *arg)
{
    for (int i = 0; i < ROUNDS; i++) {
        int rc = pthread_mutex_lock(&g->mutex);

        EXPECT(rc == 0, "pthread_mutex_lock: %d", rc);
        g->count++;
        EXPECT(pthread_mutex_unlock(&g->mutex) == 0, "pthread_mutex_unlock");
        if (i % 50 == 0)
            madvise((void *)((uintptr_t)g & ~(EDMTEST_PAGE - 1)), EDMTEST_PAGE, MADV_PAGEOUT);
    }
    return arg;
}

static void one(struct guarded *where)
{
    pthread_mutexattr_t attr;
    pthread_t t[THREADS];

    g = where;
    g->count = 0;
    pthread_mutexattr_init(&attr);
    EXPECT(pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT) == 0, "PRIO_INHERIT");
    EXPECT(pthread_mutex_init(&g->mutex, &attr) == 0, "pthread_mutex_init");
    edmtest_pressure();
    for (size_t i = 0; i < THREADS; i++)
        EXPECT(pthread_create(&t[i], NULL, adder, NULL) == 0, "pthread_create");
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    EXPECT(g->count == THREADS * ROUNDS, "count %lu", g->count);
    pthread_mutex_destroy(&g->mutex);
}

int main(void)
{
    edmtest_begin("kernel_18_pi_mutex", 60);
    one(edmtest_map(EDMTEST_PAGE));
    one(malloc(sizeof(*g)));
    edmtest_ok();
}
