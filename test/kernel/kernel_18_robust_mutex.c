/* Rule 18: the owner of a robust mutex ends under pressure; the next one is told so. */
#include "../lib/edmtest.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

static pthread_mutex_t *m;

static void *owner(void *arg)
{
    EXPECT(pthread_mutex_lock(m) == 0, "pthread_mutex_lock");
    edmtest_pressure();
    madvise((void *)((uintptr_t)m & ~(EDMTEST_PAGE - 1)), EDMTEST_PAGE, MADV_PAGEOUT);
    return arg;
}

static void one(pthread_mutex_t *where)
{
    pthread_mutexattr_t attr;
    pthread_t t;

    m = where;
    pthread_mutexattr_init(&attr);
    EXPECT(pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST) == 0, "robust");
    EXPECT(pthread_mutex_init(m, &attr) == 0, "pthread_mutex_init");
    for (int i = 0; i < 3; i++) {
        EXPECT(pthread_create(&t, NULL, owner, NULL) == 0, "pthread_create");
        EXPECT(pthread_join(t, NULL) == 0, "pthread_join");
        EXPECT(pthread_mutex_lock(m) == EOWNERDEAD, "the dead owner was not noticed");
        EXPECT(pthread_mutex_consistent(m) == 0, "pthread_mutex_consistent");
        EXPECT(pthread_mutex_unlock(m) == 0, "pthread_mutex_unlock");
    }
    pthread_mutex_destroy(m);
}

int main(void)
{
    edmtest_begin("kernel_18_robust_mutex", 60);
    edmtest_pressure();
    one(edmtest_map(EDMTEST_PAGE));
    one(malloc(sizeof(*m)));
    edmtest_ok();
}
