#include "die.h"
#include "../config/log.h"
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum die_point die_wanted;
static atomic_long left;

static const char *const names[DIE_POINTS] = {
    [DIE_EVENTS_READ] = "events_read",
    [DIE_EVENT_BEGIN] = "event_begin",
    [DIE_EVENT_END] = "event_end",
    [DIE_REMOVE_PAGE] = "remove_page",
    [DIE_REMOVE_COUNTED] = "remove_counted",
    [DIE_UNMAP_PAGE] = "unmap_page",
    [DIE_REMAP_BEFORE] = "remap_before",
    [DIE_REMAP_COPIED] = "remap_copied",
    [DIE_REMAP_BOTH] = "remap_both",
    [DIE_REMAP_MOVED] = "remap_moved",
    [DIE_REMAP_REGISTER] = "remap_register",
    [DIE_FORGET] = "forget",
    [DIE_FORK_BEGIN] = "fork_begin",
    [DIE_FORK_TABLE] = "fork_table",
    [DIE_FORK_SAVED] = "fork_saved",
    [DIE_FORK_PUBLISHED] = "fork_published",
    [DIE_FOLLOW_PUT] = "follow_put",
    [DIE_ZERO_PLACED] = "zero_placed",
    [DIE_LIMBO_PLACED] = "limbo_placed",
    [DIE_STORED_PLACED] = "stored_placed",
    [DIE_DISK_PLACED] = "disk_placed",
    [DIE_LEASE_OPEN] = "lease_open",
    [DIE_LEASE_TAKEN] = "lease_taken",
    [DIE_LEASE_BREAK] = "lease_break",
    [DIE_COMMAND_TRACKED] = "command_tracked",
    [DIE_COMMAND_WRITTEN] = "command_written",
    [DIE_COMMAND_POSTED] = "command_posted",
    [DIE_COMPLETE_BEGIN] = "complete_begin",
    [DIE_LIMBO_NAMED] = "limbo_named",
    [DIE_COMPLETE_PAGE] = "complete_page",
    [DIE_COMPLETE_SEEN] = "complete_seen",
    [DIE_COMPLETE_OVER] = "complete_over",
    [DIE_DRAIN_DROPPED] = "drain_dropped",
    [DIE_DRAIN_PUT] = "drain_put",
    [DIE_DRAIN_HANDLE] = "drain_handle",
    [DIE_STORE_WRITTEN] = "store_written",
    [DIE_STORE_MOVED] = "store_moved",
    [DIE_HELLO] = "hello",
    [DIE_WELCOME] = "welcome",
    [DIE_UFFD] = "uffd",
    [DIE_ATTACHED] = "attached",
    [DIE_READY] = "ready",
    [DIE_CLAIM] = "claim",
    [DIE_CLAIM_WELCOME] = "claim_welcome",
    [DIE_CLAIM_UFFD] = "claim_uffd",
    [DIE_CLAIMED] = "claimed",
    [DIE_CLAIM_READY] = "claim_ready",
    [DIE_REATTACH] = "reattach",
    [DIE_OP] = "op",
    [DIE_RELEASE] = "release",
    [DIE_RELEASED] = "released",
    [DIE_RECOVER_OPENED] = "recover_opened",
    [DIE_RECOVER_STORE] = "recover_store",
    [DIE_RECOVER_LOADED] = "recover_loaded",
    [DIE_RECOVER_SETTLED] = "recover_settled",
    [DIE_RECOVER_CAUGHT] = "recover_caught",
    [DIE_RECOVER_RESUMED] = "recover_resumed",
    [DIE_RECOVER_UNSAID] = "recover_unsaid",
    [DIE_RECOVER_SAID] = "recover_said",
    [DIE_RECOVER_TOLD] = "recover_told",
};

const char *die_name(unsigned point)
{
    return point < DIE_POINTS ? names[point] : NULL;
}

void die_init(void)
{
    const char *want = getenv("EDM_TEST_DIE"), *colon = want ? strchr(want, ':') : NULL;
    size_t len = colon ? (size_t)(colon - want) : want ? strlen(want) : 0;
    for (unsigned p = 1; len && p < DIE_POINTS; p++)
        if (strlen(names[p]) == len && memcmp(names[p], want, len) == 0)
            die_wanted = (enum die_point)p;
    if (want && *want && !die_wanted)
        edm_error("EDM_TEST_DIE: there is no point %s", want);
    atomic_store(&left, colon ? atol(colon + 1) : 1);
}

void die_pass(void)
{
    if (atomic_fetch_sub(&left, 1) != 1)
        return;
    edm_warn("EDM_TEST_DIE: ending at %s", names[die_wanted]);
    for (;;)
        kill(getpid(), SIGKILL);
}
