#include "discard.h"
#include <pthread.h>
#include <sys/mman.h>

static char *volatile range;
static volatile bool stop;

static void *evictor(void *arg)
{
    while (!stop)
        if (range)
            madvise(range, DISCARD_LEN, MADV_PAGEOUT);
    return arg;
}

void discard_rounds(int rounds, void (*prepare)(char *p, size_t len),
                    void (*discard)(char *p, size_t len))
{
    char *p = edmtest_map(DISCARD_LEN);
    pthread_t t;

    range = p;
    EXPECT(pthread_create(&t, NULL, evictor, NULL) == 0, "pthread_create");
    for (int round = 0; round < rounds; round++) {
        EXPECT_CALL(mprotect(p, DISCARD_LEN, PROT_READ | PROT_WRITE));
        edmtest_fill(p, DISCARD_LEN, (uint64_t)round);
        prepare(p, DISCARD_LEN);
        if (round % 4 == 0)
            edmtest_try_evict(p, DISCARD_LEN, 20);
        discard(p, DISCARD_LEN);
        edmtest_expect_zero(p, DISCARD_LEN, "discarded");
        if (round % 8 == 0) {
            edmtest_try_evict(p, DISCARD_LEN, 50);
            edmtest_expect_zero(p, DISCARD_LEN, "discarded, then evicted");
        }
    }
    stop = true;
    pthread_join(t, NULL);
}
