/* Discarding memory while it is being evicted: it must be zero ever after. */
#ifndef DISCARD_H
#define DISCARD_H

#include "edmtest.h"

#define DISCARD_LEN (64 * EDMTEST_PAGE)

/* Calls discard(p, len) again and again on memory that is evicted at the same moment; prepare
 * runs after each fill. The memory must read as zeros then, also after an eviction of its own. */
void discard_rounds(int rounds, void (*prepare)(char *p, size_t len),
                    void (*discard)(char *p, size_t len));

#endif
