/*
 * Where the copies of the instances' pages are: in this rank's store, on other ranks, or both. With
 * placement "local" and one replica a handle is the store's own and this module is a thin cover;
 * any other page has an entry here, which outlives every move of its copies.
 *
 * A page is taken into the local store first; a thread sends it to the ranks that shall keep it,
 * and the local copy goes when enough of them have said that they have it. So a page is never
 * only on its way. When too many are, copies_put refuses like a full store.
 *
 * An entry knows a strong hash of the page and its version, as its owner gave it: whatever a rank
 * sends back is checked against that, so that neither a damaged nor an older page passes.
 *
 * Threads: every call may be made from any thread. Only copies_read may block; the others are
 * short and may be made under an instance's lock (lock order: instance, copies, then store and
 * peer).
 */
#ifndef EDM_COPIES_H
#define EDM_COPIES_H

#include "store.h"
#include <stdio.h>

#define COPIES_BIT 0x80000000u /* in a handle: an entry of this module */
#define COPIES_BATCH 16u       /* most pages of a copies_fetch */
#define COPIES_MAX 3u          /* most copies of a page, on this rank and on others */

/* Is the handle one of the local store's own? */
static inline bool copies_is_store(store_handle h)
{
    return !(h & COPIES_BIT);
}

/* What an instance wants for its pages. */
struct copies_wish {
    enum edm_placement placement;
    uint32_t replicas;
};

/*
 * The entries outlive their process, killed at whatever instruction, as long as somebody holds
 * copies_fd(). A successor, once it has reopened its store and its homes, calls copies_open with
 * it, copies_adopt for each page that a page table names, then copies_reopen_end; then
 * store_reopen_end. Where copies on other ranks still are is found out by copies_start.
 */
/* Makes the table (fd < 0) or takes one over. 0 or -errno; the descriptor is the table's then. */
int copies_open(int fd);
int copies_fd(void);
/* As store_adopt, of either kind of handle. */
bool copies_adopt(store_handle h, uint32_t version);
void copies_reopen_end(void);

/* Before peer_start; on_room as in store_options. 0 or -errno. */
int copies_init(void (*on_room)(void *arg, bool full), void *arg);
/* After peer_start: asks the other ranks for the pages that they had for us, then starts the
 * sender. No page on another rank can be had before. 0 or -errno. */
int copies_start(void);
/* As the ranks' capacities are known; from peer.c's operations. */
void copies_rank_lost(int rank);
void copies_rank_leaves(int rank);

/* As store_put. -ENOSPC also when too many pages are on their way; on_room tells. */
int copies_put(const void *page, uint32_t version, const struct copies_wish *wish, bool force,
               store_handle *out);
void copies_ref(store_handle h);
void copies_unref(store_handle h);
void copies_ref_many(const store_handle *h, size_t n);
void copies_unref_many(const store_handle *h, size_t n);

/* As store_view; -EAGAIN also when it is on another rank. */
int copies_view(store_handle h, uint32_t version, void *buf, struct store_view *v);
/* Reads the page from the first copy that is intact; may block. 0, -EBADMSG, -EIO; -EBUSY: nothing
 * is known, since a rank that has one could not be asked: try again. */
int copies_read(store_handle h, uint32_t version, void *buf);
/* True when the stored page is known to equal `page` without I/O. */
bool copies_same(store_handle h, uint32_t version, const void *page);
/* As store_fullness, of the store that has the page. */
uint32_t copies_fullness(store_handle h);

/* The rank to fetch the page from; -1 when that is this one. */
int copies_rank(store_handle h);

/* Since when, by the monotonic clock, the page has no copy but on ranks that are lost and may be
 * back in the next job; 0: it has, or there never will be one. */
uint64_t copies_lost_since(store_handle h);

struct copies_page {
    store_handle handle;
    uint32_t version;
};
/* Once, from a thread in peer_poll. page[i]: its contents, checked, valid for this call; NULL: not
 * to be had that way, copies_read may know another. err: why none is, when the rank has not looked:
 * -EHOSTDOWN, or -EBUSY. */
typedef void copies_done(void *arg, int err, unsigned n, const void *const *page);
/*
 * Asks `rank` for n pages, all there, whose handles the caller holds until `done`. 0: done will be
 * called. Else it will not: -EHOSTDOWN; -EBUSY: too many requests, or no memory for one; -ENOENT:
 * none is there any more.
 */
int copies_fetch(int rank, const struct copies_page *pages, unsigned n, copies_done *done,
                 void *arg);

/* How many of these pages have fewer copies than they should. */
uint64_t copies_missing(const store_handle *h, size_t n);
/* Copies, here and elsewhere, that were asked for and were damaged, older or unreadable. */
uint64_t copies_refused(void);
/* "rank R slot N" of the page's (last) copy, for messages. */
void copies_describe(store_handle h, char *buf, size_t len);
/* server.peers of `edm stat --json`: the array. */
void copies_peers_json(FILE *f);

#endif
