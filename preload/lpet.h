/*
 * The local page eviction thread, and the small thread library under it.
 *
 * The LPET is a raw clone with its own stack, TLS and descriptor table (KERNEL.md 19). It makes the
 * connection to the server itself (attach.c, through `setup`), so that the program's descriptor
 * table never holds a descriptor of ours, and then executes the server's commands until it is told
 * to exit. It calls nothing of libc, blocks all signals, and waits only for: its command socket
 * and the server's socket; fork_hold, while a fork is under way; the kernel.
 */
#ifndef EDM_LPET_H
#define EDM_LPET_H

#include "shim.h"
#include "sys.h"

#define LPET_STACK_SIZE 65536ul
#define LPET_SPAWN_STACK_SIZE 16384ul

enum lpet_phase { LPET_STARTING = 0, LPET_RUNNING, LPET_FAILED };

/* One line for people, put together without libc. Never overflows; cuts off instead. */
struct lpet_text {
    uint32_t len;
    char s[380];
};
void lpet_text_put(struct lpet_text *t, const char *s);
void lpet_text_num(struct lpet_text *t, uint64_t n);
/* ": " and what -errno means, by name where a user may meet it. */
void lpet_text_errno(struct lpet_text *t, long err);

struct lpet;

/* All but overdue run on the thread. */
struct lpet_calls {
    int (*setup)(struct lpet *l); /* 0 or -errno, with why; fills the rest */
    int (*again)(struct lpet *l); /* the server is gone: asks its successor; 0 or -errno */
    /* every second that setup takes, by who waits for it; ms since its begin */
    void (*overdue)(struct lpet *l, uint64_t ms);
    void (*released)(void); /* the server has given everything back and wants nothing any more */
};

/* Lives in the thread's own mapping, which children do not get (MADV_DONTFORK). */
struct lpet {
    /* set by lpet_create's caller */
    struct lpet_calls calls;
    bool is_claim; /* a forked child taking over what the server kept for it */

    /* between the threads */
    uint32_t phase;       /* futex, private; enum lpet_phase */
    uint32_t tid;         /* futex, not private: the kernel makes it 0 when the thread ends */
    int id;               /* thread id; of the creator */
    struct lpet_text why; /* of a failure */

    /* of the thread; descriptors are of its own table */
    const char *socket; /* where its server listens */
    uint64_t until_ms;  /* while the server is lost: then it is given up */
    bool handed_over;   /* the server has all that it needs of us */
    struct edm_chan *chan;
    uint64_t chan_size, data_offset;
    uint64_t staging; /* EDM_STAGING_PAGES pages */
    uint64_t probe;   /* one more, which always has a page */
    uint32_t staging_used;
    int cmd_fd, comp_fd, socket_fd, arena_uffd, staging_uffd, pagemap_fd, mem_fd;
    uint32_t since_comp;
    int32_t cpu;               /* where it is now, as lpet_cpu */
    uint64_t all_cpus[16];     /* its affinity at start */
    uint64_t err_dev, err_ino; /* the program's stderr at start; 0 = it had none */

    /* the mapping */
    uint64_t map_start, map_len;
    uint64_t spawn_stack; /* top of the stacks of two children, see autostart.c */
};

/* A thread that runs setup and then the command loop; returns when setup is over: 0, or -errno
 * with *why set. *out is set only on success. The caller has all signals blocked. */
int lpet_create(const struct lpet_calls *calls, bool is_claim, struct lpet **out,
                struct lpet_text *why);
/* Ends the program: memory is missing that nobody can give back. */
__attribute__((noreturn)) void lpet_end_program(const struct lpet *l);
/* Waits at most timeout_ms for the thread's end (the server told it to exit), until the kernel does
 * not count it any more, and frees it. 0 or -ETIMEDOUT. */
int lpet_join(struct lpet *l, int timeout_ms);
/* Sleeps in the kernel; not for hiding races. */
void lpet_pause_ms(int ms);
uint64_t lpet_now_ms(void);

/* clone; the child runs fn(arg) on `stack` and ends with its result as exit code. */
long lpet_clone(uint64_t flags, uint64_t stack, int *parent_fd, uint32_t *tid_word, uint64_t tls,
                int (*fn)(void *), void *arg);

#endif
