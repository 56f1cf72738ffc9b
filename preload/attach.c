/*
 * The program's side of attaching: when it attaches, what became of it, and what that means for the
 * children that it forks. The thread that attaches waits for the LPET, which does it.
 */
#include "../config/log.h"
#include "arena.h"
#include "attach_int.h"
#include "hooks.h"
#include "ops.h"
#include <errno.h>
#include <signal.h>
#include <string.h>

#define CLAIM_TRIES 3

/*
 * Ordinary memory, unlike *shim_state: a forked child finds what its parent was. Written by the
 * thread that attaches, while attach_state is SHIM_ATTACHING, and under fork.
 */
static struct lpet *attach_lpet; /* of this process */
static bool attach_registered;   /* this process or the one it was forked from was attached */
static bool attach_refused;      /* … could not be, or has detached: its children do not try */
AT_LOAD_DATA bool attach_found;
uint64_t attach_identity;
AT_LOAD_DATA bool attach_socket_default;
struct edm_hello attach_hello;

static void state_set(enum shim_attach_state state)
{
    atomic_store(&shim_state->attach_state, state);
    sys_futex_wake(&shim_state->attach_state, INT32_MAX, 0);
}

static bool state_take(enum shim_attach_state from)
{
    unsigned was = from;
    return atomic_compare_exchange_strong(&shim_state->attach_state, &was, SHIM_ATTACHING);
}

static enum shim_attach_state state_settled(void)
{
    unsigned s;
    while ((s = atomic_load(&shim_state->attach_state)) == SHIM_ATTACHING) {
        struct timespec tick = {.tv_nsec = 10 * 1000 * 1000};
        sys_futex_wait(&shim_state->attach_state, SHIM_ATTACHING, &tick, 0);
    }
    return s;
}

/* Never touched by the process that made it; in each forked child it is empty again. */
static int identity_make(void)
{
    if (attach_identity)
        return 0;
    long at =
        sys_mmap(0, EDM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (sys_is_error(at))
        return (int)at;
    if (sys_madvise((uint64_t)at, EDM_PAGE_SIZE, MADV_WIPEONFORK)) {
        sys_munmap((uint64_t)at, EDM_PAGE_SIZE);
        return -ENOSYS;
    }
    sys_madvise((uint64_t)at, EDM_PAGE_SIZE, MADV_DONTDUMP);
    attach_identity = (uint64_t)at;
    return 0;
}

static void hello_fill(void)
{
    struct edm_hello *h = &attach_hello;
    h->arena_start = arena_start();
    h->arena_len = arena_len();
    h->identity = attach_identity;
    arena_used(&h->used_start, &h->used_end);
    h->run_token = shim_config.run_token;
    h->settings = shim_config.settings;
    memcpy(h->command, shim_config.command, sizeof(h->command));
}

static void unmanaged(const struct lpet_text *why)
{
    if (shim_config.config.server == EDM_SERVER_REQUIRE) {
        edm_error("%.*s", (int)why->len, why->s);
        sys_exit_group(125);
    }
    if (!attach_refused)
        edm_warn("%.*s: running unmanaged", (int)why->len, why->s);
    attach_refused = true;
    state_set(SHIM_UNMANAGED);
}

static void attached(struct lpet *l)
{
    attach_lpet = l;
    attach_registered = true;
    ops_publish(l->chan);
    state_set(SHIM_ATTACHED);
    hooks_misc_attached();
}

void attach_now(void)
{
    struct lpet_text why = {.len = 0};
    struct lpet *l;
    if (!shim_config.enabled || !shim_state || !state_take(SHIM_NOT_ATTACHED))
        return;
    if (attach_registered) { /* forked by a raw system call: it is served, and never evicted */
        state_set(SHIM_UNMANAGED);
        return;
    }
    int saved = errno;
    uint64_t all = ~0ull, old;
    sys_sigprocmask(SIG_SETMASK, &all, &old);
    int rc = identity_make();
    if (rc) {
        lpet_text_put(&why, "cannot make the identity page");
        lpet_text_errno(&why, rc);
    } else {
        hello_fill();
        if (shim_config.config.server == EDM_SERVER_AUTO)
            autostart_prepare();
        rc = lpet_create(&attach_calls, false, &l, &why);
    }
    if (rc)
        unmanaged(&why);
    else
        attached(l);
    sys_sigprocmask(SIG_SETMASK, &old, NULL);
    errno = saved;
}

void attach_claim_child(void)
{
    struct lpet_text why = {.len = 0};
    struct lpet *l;
    int saved = errno;
    uint64_t all = ~0ull, old;
    attach_lpet = NULL; /* the parent's */
    if (!state_take(SHIM_NOT_ATTACHED))
        return;
    sys_sigprocmask(SIG_SETMASK, &all, &old);
    int err = -EAGAIN;
    for (int tries = 0; err && tries < CLAIM_TRIES; tries++) {
        why.len = 0;
        err = lpet_create(&attach_calls, true, &l, &why);
    }
    if (err) {
        edm_warn("forked child %d: %.*s: it runs without a budget", sys_getpid(), (int)why.len,
                 why.s);
        state_set(SHIM_UNMANAGED);
    } else {
        attached(l);
    }
    sys_sigprocmask(SIG_SETMASK, &old, NULL);
    errno = saved;
}

/* Whoever waits for the server's answer to an operation sees that there is nobody. */
void attach_released(void)
{
    attach_refused = true;
    attach_registered = false;
    ops_unpublish();
    state_set(SHIM_UNMANAGED);
}

int attach_detach(void)
{
    struct ops_guard g;
    uint64_t all = ~0ull, old;
    int rc = 0;
    if (!shim_config.enabled || !shim_state)
        return 0;
    sys_sigprocmask(SIG_SETMASK, &all, &old);
    attach_refused = true;
    while (state_settled() == SHIM_NOT_ATTACHED)
        if (state_take(SHIM_NOT_ATTACHED)) {
            state_set(SHIM_UNMANAGED);
            break;
        }
    ops_enter(&g);
    if (atomic_load(&shim_state->attach_state) == SHIM_ATTACHED) {
        rc = ops_request(EDM_OP_DETACH, 0, 0, 0);
        if (rc == -ESRCH) /* it has done so, and did not come to saying it */
            rc = 0;
        if (!rc)
            rc = lpet_join(attach_lpet, ANSWER_LIMIT_S * 1000);
        if (!rc)
            attach_lpet = NULL;
    }
    ops_leave(&g);
    sys_sigprocmask(SIG_SETMASK, &old, NULL);
    return rc;
}

void attach_unlock_staging(void)
{
    if (atomic_load(&shim_state->attach_state) == SHIM_ATTACHED && attach_lpet)
        sys_call3(SYS_munlock, (long)attach_lpet->staging, EDM_STAGING_PAGES * EDM_PAGE_SIZE, 0);
}

AT_LOAD bool attach_was_tried(void)
{
    return attach_registered || attach_refused;
}

bool attach_was_registered(void)
{
    return attach_registered;
}

bool attach_block(void)
{
    for (;;) {
        enum shim_attach_state s = state_settled();
        if (s != SHIM_NOT_ATTACHED)
            return s == SHIM_ATTACHED;
        if (state_take(SHIM_NOT_ATTACHED))
            return false;
    }
}

void attach_unblock(void)
{
    if (atomic_load(&shim_state->attach_state) == SHIM_ATTACHING)
        state_set(SHIM_NOT_ATTACHED);
}

void attach_after_fork(bool parent_attached)
{
    if (parent_attached)
        attach_claim_child();
    else if (attach_refused || attach_registered)
        state_set(SHIM_UNMANAGED);
}

AT_LOAD void attach_init(void)
{
    hooks_fork_init();
    attach_socket_default = shim_config.config.socket_is_default &&
                            strcmp(shim_config.config.socket, SYSTEM_SOCKET) != 0;
    if (shim_config.config.server == EDM_SERVER_AUTO)
        autostart_init();
}

int attach_probe(char *err, size_t errlen)
{
    struct lpet_text why = {.len = 0};
    struct packet p;
    int fds[EDM_MSG_FDS];
    uint32_t n;
    const char *path;
    int sock = attach_server_find(&path, &why), rc = sock;
    if (sock >= 0) {
        p.head.type = EDM_MSG_PING;
        p.head.len = 0;
        rc = attach_packet_send(sock, &p, NULL, 0);
        if (!rc)
            rc = attach_packet_expect(sock, EDM_MSG_DONE, sizeof(p.u.done), &p, fds, &n, &why);
        if (!rc && p.u.done.code) {
            p.u.done.text[sizeof(p.u.done.text) - 1] = 0;
            lpet_text_put(&why, p.u.done.text);
            rc = p.u.done.code;
        }
        sys_close(sock);
    }
    attach_found = !rc;
    if (rc && errlen) {
        size_t len = why.len < errlen - 1 ? why.len : errlen - 1;
        memcpy(err, why.s, len);
        err[len] = 0;
    }
    return rc;
}
