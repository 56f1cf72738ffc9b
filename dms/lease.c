/*
 * Leases: a chunk that the program has not touched yet is charged whole and handed to the kernel,
 * which then serves its first touches at native speed.
 */
#include "die.h"
#include "instance.h"
#include "uffd.h"
#include <errno.h>
#include <string.h>

/* Registers the chunk for MISSING and WP, leaving out pages that are not ours. */
int lease_register(struct instance *in, struct chunk *c)
{
    if (!c->foreign)
        return uffd_register(in->uffd, c->addr, EDM_CHUNK_SIZE, UFFD_MISSING | UFFD_WP);
    int err = 0;
    for (uint32_t i = 0; i < EDM_CHUNK_PAGES;) {
        uint32_t n = 0;
        while (i + n < EDM_CHUNK_PAGES && c->pages[i + n].state != PAGE_FOREIGN)
            n++;
        if (n) {
            uint64_t start = c->addr + i * EDM_PAGE_SIZE;
            int e = uffd_register(in->uffd, start, n * EDM_PAGE_SIZE, UFFD_MISSING | UFFD_WP);
            err = e ? e : err;
        }
        i += n ? n : 1;
    }
    return err;
}

/* A REMOVE by a raw system call is over when its thread has run on: nobody says when. */
#define QUIET_NS 1000000000ull
/* A chunk whose lease was ended by eviction is not leased again at once. */
#define AGAIN_NS 100000000ull

static bool remove_is_over(const struct instance *in, const struct chunk *c, uint64_t since_ns)
{
    if (!since_ns)
        return true;
    if (op_note_covers(in, c->addr, c->addr + EDM_CHUNK_SIZE))
        return false;
    return now_ns() - since_ns > QUIET_NS;
}

bool lease_is_quiet(const struct instance *in, const struct chunk *c)
{
    return remove_is_over(in, c, c->removed_ns);
}

static bool lease_allowed(struct instance *in, struct chunk *c)
{
    const struct budget *b = &in->budget;
    uint64_t end = c->addr + EDM_CHUNK_SIZE;
    if (!in->set.lease || !in->claimed || c->touched || c->pinned || c->unevictable || c->leased)
        return false;
    if (c->addr < in->arena_start || end > in->arena_start + in->arena_len)
        return false;
    if (budget_charge(in) + EDM_CHUNK_PAGES > b->high || b->leases >= in->stats->lease_limit)
        return false;
    if (in->tampered || in->nat) /* a late command may take what the kernel serves */
        return false;
    if (c->broken_ns && now_ns() - c->broken_ns < AGAIN_NS)
        return false;
    if (!remove_is_over(in, c, c->last_remove_ns))
        return false;
    return !op_covers(in, c->addr, end) && !in->chan->fork_hold;
}

int lease_take(struct instance *in, struct chunk *c, uint64_t addr)
{
    if (!lease_allowed(in, c))
        return -EBUSY;
    int err = uffd_unregister(in->uffd, c->addr, EDM_CHUNK_SIZE);
    if (!err) {
        /* KERNEL.md 2: is there an event that we have not read, which brought pages here? */
        int probe = uffd_zero(in->uffd, addr & ~(EDM_PAGE_SIZE - 1), 1);
        err = probe == -EAGAIN ? probe : 0;
    }
    if (!err)
        die_at(DIE_LEASE_OPEN);
    if (!err)
        err = uffd_register(in->uffd, c->addr, EDM_CHUNK_SIZE, UFFD_WP);
    if (err) { /* KERNEL.md 5: whatever went half way, the chunk is in MISSING mode again */
        if (lease_register(in, c))
            c->unevictable = 1;
        if (err == -ENOMEM) /* near vm.max_map_count (KERNEL.md 24) */
            in->set.lease = 0;
        return err == -EAGAIN ? err : -EBUSY;
    }
    die_at(DIE_LEASE_TAKEN);
    c->leased = 1;
    in->budget.leases++;
    in->stats->leases++;
    lspt_push_lease(&in->lspt, &in->spt, c);
    budget_note(in);
    uffd_wake(in->uffd, c->addr, EDM_CHUNK_SIZE);
    return 0;
}

bool lease_break(struct instance *in, struct chunk *c, bool first)
{
    uint64_t bits[EDM_CHUNK_PAGES / 64];
    if (lease_register(in, c) || uffd_present(in->pagemap_fd, c->addr, EDM_CHUNK_PAGES, bits)) {
        c->unevictable = 1;
        return false;
    }
    die_at(DIE_LEASE_BREAK);
    c->leased = 0;
    c->broken_ns = now_ns();
    in->budget.leases--;
    if (c->listed)
        lspt_remove_lease(&in->lspt, &in->spt, c);
    /* in address order, whichever end of the queue they go to */
    for (uint32_t n = 0; n < EDM_CHUNK_PAGES; n++) {
        uint32_t i = first ? EDM_CHUNK_PAGES - 1 - n : n;
        if (bits[i / 64] >> (i % 64) & 1 && c->pages[i].state == PAGE_NEW)
            page_make_resident(in, c, spt_id(c, i), first);
    }
    return true;
}
