/* Plain futexes, mutexes, condition variables and semaphores on evicted words. */
#include "../lib/edmtest.h"
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ROUNDS 200

struct shared {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    sem_t sem;
    unsigned word, turn, done;
};

static struct shared *s;

static void evict(void)
{
    edmtest_evict(s, EDMTEST_PAGE);
}

static void bare_words(void)
{
    s->word = 5;
    evict();
    EXPECT(syscall(SYS_futex, &s->word, FUTEX_WAIT_PRIVATE, 4, NULL, NULL, 0) == -1 &&
               errno == EAGAIN,
           "FUTEX_WAIT with another value: %m");
    evict();
    EXPECT(syscall(SYS_futex, &s->word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) == 0,
           "FUTEX_WAKE: %m");
    evict();
    EXPECT(syscall(SYS_futex, &s->word, FUTEX_CMP_REQUEUE, 1, 1, &s->turn, 5) == 0,
           "FUTEX_CMP_REQUEUE: %m");
    evict(); /* shared: the key is the page itself */
    EXPECT(syscall(SYS_futex, &s->word, FUTEX_WAIT, 6, NULL, NULL, 0) == -1 && errno == EAGAIN,
           "shared FUTEX_WAIT: %m");
}

static void *partner(void *arg)
{
    for (unsigned i = 1; i < 2 * ROUNDS; i += 2) {
        pthread_mutex_lock(&s->mutex);
        while (s->turn != i)
            pthread_cond_wait(&s->cond, &s->mutex);
        s->turn++;
        pthread_cond_broadcast(&s->cond);
        pthread_mutex_unlock(&s->mutex);
        sem_post(&s->sem);
    }
    return arg;
}

/* Takes turns with another thread; the page is asked to go away while both wait. */
static void take_turns(void)
{
    pthread_t t;

    EXPECT(pthread_create(&t, NULL, partner, NULL) == 0, "pthread_create");
    for (unsigned i = 0; i < 2 * ROUNDS; i += 2) {
        pthread_mutex_lock(&s->mutex);
        while (s->turn != i)
            pthread_cond_wait(&s->cond, &s->mutex);
        s->turn++;
        pthread_cond_broadcast(&s->cond);
        pthread_mutex_unlock(&s->mutex);
        EXPECT_CALL(madvise(s, EDMTEST_PAGE, MADV_PAGEOUT));
        EXPECT_CALL(sem_wait(&s->sem));
    }
    EXPECT(pthread_join(t, NULL) == 0, "pthread_join");
    EXPECT(s->turn == 2 * ROUNDS, "%u turns", s->turn);
}

int main(void)
{
    struct edmtest_counters before;

    edmtest_begin("faults_futex", 60);
    s = edmtest_map(EDMTEST_PAGE);
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->cond, NULL);
    sem_init(&s->sem, 0, 0);
    edmtest_pressure();
    before = edmtest_now();
    bare_words();
    edmtest_came_back(&before, 3); /* FUTEX_WAKE need not look at the word */
    s->turn = 0;
    evict();
    take_turns();
    edmtest_ok();
}
