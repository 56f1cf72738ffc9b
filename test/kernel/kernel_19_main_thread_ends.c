/* Rules 19, 33: the main thread ends with pthread_exit; the others go on, and so does paging. */
#include "../lib/edmtest.h"
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN (4 * EDMTEST_MIB)

static pthread_t main_thread;

static void *rest(void *arg)
{
    struct edmtest_counters before = edmtest_now();
    size_t len = 2 * edmtest_budget();
    char *more;

    EXPECT(pthread_join(main_thread, NULL) == 0, "pthread_join");
    edmtest_expect(arg, LEN, 1, "after the main thread ended");
    more = edmtest_map(len);
    edmtest_fill(more, len, 2);
    edmtest_expect(more, len, 2, "filled after the main thread ended");
    edmtest_came_back(&before, LEN / EDMTEST_PAGE);
    return NULL; /* the last thread: the process ends with status 0 */
}

/* The process itself must end too, which only its parent can see. */
int main(void)
{
    pthread_t t;
    char *p;
    pid_t pid;

    edmtest_begin("kernel_19_main_thread_ends", 60);
    EXPECT_CALL(pid = fork());
    if (pid == 0) {
        edmtest_pressure();
        p = edmtest_map(LEN);
        edmtest_fill(p, LEN, 1);
        edmtest_evict(p, LEN);
        main_thread = pthread_self();
        EXPECT(pthread_create(&t, NULL, rest, p) == 0, "pthread_create");
        pthread_exit(NULL);
    }
    edmtest_reap(pid, "process whose main thread ended");
    edmtest_ok();
}
