/* fork: children that verify, change, fork again, exec, exit or are killed. */
#include "torture.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEPTH_MAX 2

/* What the advice for fork makes of the parent's model. */
static void model_after_fork(struct worker *w)
{
    for (uint32_t k = 0; k < REGIONS; k++) {
        struct region *r = &w->regions[k];

        for (uint32_t i = 0; i < r->n; i++) {
            struct page *p = &r->page[i];

            p->flags &= ~(uint32_t)P_LOCKED;
            if (p->flags & P_DONTFORK)
                memset(p, 0, sizeof(*p));
            else if (p->flags & P_WIPE)
                page_zero(p);
        }
    }
    w->locked = 0;
    w->in_child = true;
    for (uint32_t i = 0; i < CHILDREN; i++)
        w->children[i] = 0;
}

static void child_verify(struct worker *w, bool everybody)
{
    for (uint32_t i = 0; i < settings.threads; i++)
        if (everybody || &workers[i] == w)
            worker_verify(&workers[i]);
    heap_verify(w);
}

/* The parent goes on with its pipe and file, and with its numbers for contents. */
static void child_own_things(struct worker *w, unsigned depth)
{
    close(w->pipe[0]);
    close(w->pipe[1]);
    close(w->file);
    worker_open(w);
    w->next_id += (w->ops * 4 + depth + 1) << 26;
    w->rng ^= 0x9e3779b97f4a7c15ull * (depth + 1);
}

static void child_forks(struct worker *w, unsigned depth);

__attribute__((noreturn)) static void child_main(struct worker *w, bool raw, bool everybody,
                                                 bool die, unsigned depth)
{
    static char *const true_argv[] = {"true", NULL};
    static char *const no_env[] = {NULL};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    w->only_raw |= raw;
    for (uint32_t i = 0; i < settings.threads; i++)
        if (everybody || &workers[i] == w)
            model_after_fork(&workers[i]);
    child_own_things(w, depth);
    child_verify(w, everybody);
    for (uint64_t n = worker_random(w, 64); n > 0; n--)
        child_operation(w);
    if (depth < DEPTH_MAX && worker_chance(w, 40))
        child_forks(w, depth);
    child_verify(w, false);
    if (die)
        kill(getpid(), SIGKILL);
    if (worker_chance(w, 40))
        execve("/bin/true", true_argv, no_env);
    _exit(0);
}

static void child_forks(struct worker *w, unsigned depth)
{
    bool raw, die = worker_chance(w, 25);
    long pid = call_fork(w, &raw);

    if (pid == 0)
        child_main(w, raw, false, die, depth + 1);
    if (is_error(pid))
        torture_fail(w, 0, "fork: %s", strerror((int)-pid));
    w->children[0] = (int)pid;
    w->child_killed[0] = die;
    worker_verify(w);
    children_reap(w, true);
}

static void child_ended(struct worker *w, uint32_t slot, int status)
{
    int pid = w->children[slot];

    w->children[slot] = 0;
    if (w->child_killed[slot] ? WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL : status == 0)
        return;
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS)
        torture_lost(w, "child %d ended by SIGBUS", pid);
    torture_fail(w, 0, "child %d ended with status %x", pid, status);
}

void children_reap(struct worker *w, bool all)
{
    for (uint32_t i = 0; i < CHILDREN; i++) {
        int status;
        pid_t got;

        if (!w->children[i])
            continue;
        do {
            got = waitpid(w->children[i], &status, all ? 0 : WNOHANG);
        } while (got < 0 && errno == EINTR);
        if (got < 0)
            torture_fail(w, 0, "waitpid of %d: %s", w->children[i], strerror(errno));
        if (got == w->children[i])
            child_ended(w, i, status);
    }
}

bool op_fork(struct worker *w)
{
    uint32_t slot = 0;
    bool everybody, raw, die = worker_chance(w, 25);
    long pid;

    children_reap(w, false);
    while (slot < CHILDREN && w->children[slot])
        slot++;
    if (slot == CHILDREN) {
        children_reap(w, true);
        slot = 0;
    }
    everybody = worker_chance(w, 25);
    if (everybody) { /* this operation holds it for reading */
        pthread_rwlock_unlock(&quiet);
        pthread_rwlock_wrlock(&quiet);
    }
    pid = call_fork(w, &raw);
    if (pid == 0)
        child_main(w, raw, everybody, die, 0);
    if (everybody) {
        pthread_rwlock_unlock(&quiet);
        pthread_rwlock_rdlock(&quiet);
    }
    if (is_error(pid))
        torture_fail(w, 0, "fork: %s", strerror((int)-pid));
    w->children[slot] = (int)pid;
    w->child_killed[slot] = die;
    w->forks++;
    if (worker_chance(w, 30))
        worker_verify(w);
    return true;
}
