/* Rule 18: threads on stacks that the program supplied run, end and are joined under pressure. */
#include "../lib/edmtest.h"
#include <pthread.h>
#include <sys/mman.h>

#define STACK (256 * 1024ul)
#define THREADS 8

static void *work(void *arg)
{
    volatile char room[100000];

    for (size_t i = 0; i < sizeof(room); i++)
        room[i] = (char)(i * 7);
    madvise(arg, STACK, MADV_PAGEOUT);
    for (size_t i = 0; i < sizeof(room); i++)
        EXPECT(room[i] == (char)(i * 7), "the stack lost bytes");
    madvise(arg, STACK, MADV_PAGEOUT);
    return arg;
}

int main(void)
{
    char *stacks[THREADS];
    pthread_t t[THREADS];

    edmtest_begin("kernel_18_own_stack", 60);
    edmtest_pressure();
    for (int i = 0; i < THREADS; i++)
        stacks[i] = edmtest_map(STACK);
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < THREADS; i++) {
            pthread_attr_t attr;

            pthread_attr_init(&attr);
            EXPECT(pthread_attr_setstack(&attr, stacks[i], STACK) == 0, "pthread_attr_setstack");
            EXPECT(pthread_create(&t[i], &attr, work, stacks[i]) == 0, "pthread_create");
        }
        if (round % 4 == 0)
            edmtest_pressure();
        for (int i = 0; i < THREADS; i++)
            EXPECT(pthread_join(t[i], NULL) == 0, "pthread_join");
    }
    edmtest_ok();
}
