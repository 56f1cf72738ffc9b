/*
 * A table in a memfd that outlives its process, as the keeper holds it: a header that says what it
 * is, and behind it items of one size, zero until they are written. A process may be killed between
 * any two instructions; who writes an item does it in an order in which every state between two
 * stores can be understood. lasting_order() keeps the compiler to it.
 */
#ifndef EDM_LASTING_H
#define EDM_LASTING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define lasting_order() __atomic_signal_fence(__ATOMIC_SEQ_CST)

/* What is in it; both sides of a take-over must mean the same. */
struct lasting_kind {
    const char *name;
    uint32_t magic, layout;
    size_t item; /* bytes */
    uint64_t n;  /* items; only those written take memory */
};

struct lasting {
    int fd;
    void *items;
    size_t item;
    uint64_t n;
};

/*
 * Makes the table (fd < 0), or maps the one of a dead process; fd is the table's then. 0 or -errno;
 * -EPROTO: not such a table. fd stays the caller's when this fails.
 */
int lasting_open(struct lasting *t, int fd, const struct lasting_kind *k);

/*
 * The next items from *to on that may ever have been written: [*from, *to). False: no more. Start
 * with *to = 0.
 */
bool lasting_next(const struct lasting *t, uint64_t *from, uint64_t *to);

#endif
