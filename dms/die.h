/*
 * Points at which the server kills itself when a test asks for it: EDM_TEST_DIE=NAME:N, at the Nth
 * passing of the point NAME (N 1 when it is missing). Off, a point costs one comparison.
 * Callable from any thread; die_init before there are others.
 */
#ifndef EDM_DIE_H
#define EDM_DIE_H

enum die_point {
    DIE_NEVER,
    /* events */
    DIE_EVENTS_READ,    /* in the image, none applied */
    DIE_EVENT_BEGIN,    /* before one is applied */
    DIE_EVENT_END,      /* applied, not yet said so */
    DIE_REMOVE_PAGE,    /* after a page of a REMOVE */
    DIE_REMOVE_COUNTED, /* a page that is being copied out: counted, step not ended */
    DIE_UNMAP_PAGE,     /* after a page of an UNMAP */
    DIE_REMAP_BEFORE,   /* a page of a REMAP: its entry is not copied yet */
    DIE_REMAP_COPIED,   /* … is copied, but for its state */
    DIE_REMAP_BOTH,     /* … is at both addresses */
    DIE_REMAP_MOVED,    /* … is moved, step not ended */
    DIE_REMAP_REGISTER, /* the new range is registered, nothing applied */
    DIE_FORGET,         /* a page's new state is written, its handle not dropped */
    DIE_FORK_BEGIN,     /* FORK: nothing of the child is made */
    DIE_FORK_TABLE,     /* … the child's table is complete, nobody knows of it */
    DIE_FORK_SAVED,     /* … in its image, not published */
    DIE_FORK_PUBLISHED, /* … published, the parent not told */
    DIE_FOLLOW_PUT, /* what left its parent is stored for the child, whose table does not say so */
    /* faults */
    DIE_ZERO_PLACED,   /* zeros placed, the table does not say so */
    DIE_LIMBO_PLACED,  /* the same from limbo */
    DIE_STORED_PLACED, /* … from the store */
    DIE_DISK_PLACED,   /* … from disk */
    DIE_LEASE_OPEN,    /* between UNREGISTER and REGISTER */
    DIE_LEASE_TAKEN,   /* registered again, the table does not say so */
    DIE_LEASE_BREAK,   /* MISSING again, its pages not counted */
    /* eviction */
    DIE_COMMAND_TRACKED, /* the record is written, the command not */
    DIE_COMMAND_WRITTEN, /* written, not published */
    DIE_COMMAND_POSTED,  /* published, the LPET not told */
    DIE_COMPLETE_BEGIN,  /* before the first page of an outcome */
    DIE_LIMBO_NAMED,     /* an outcome has said where in limbo, the state does not yet */
    DIE_COMPLETE_PAGE,   /* after a page of an outcome */
    DIE_COMPLETE_SEEN,   /* all pages done, the command not yet over */
    DIE_COMPLETE_OVER,   /* over, its record not cleared */
    DIE_DRAIN_DROPPED,   /* the old copy is dropped, the new one not stored */
    DIE_DRAIN_PUT,       /* in the store, the table does not say so */
    DIE_DRAIN_HANDLE,    /* the handle is written, the state not */
    DIE_STORE_WRITTEN,   /* contents are in the store, the slot is not */
    DIE_STORE_MOVED,     /* a page's slot says the new place, the old one is not free */
    /* the front door */
    DIE_HELLO,         /* before WELCOME */
    DIE_WELCOME,       /* after it */
    DIE_UFFD,          /* UFFD read */
    DIE_ATTACHED,      /* registered and saved, no READY */
    DIE_READY,         /* after READY */
    DIE_CLAIM,         /* a child's: before WELCOME */
    DIE_CLAIM_WELCOME, /* … after it */
    DIE_CLAIM_UFFD,    /* … UFFD read */
    DIE_CLAIMED,       /* … saved, no READY */
    DIE_CLAIM_READY,   /* … after READY */
    DIE_REATTACH,      /* before READY */
    DIE_OP,            /* a request of the hooks is done, they are not told */
    DIE_RELEASE,       /* a clean end: pages are given back */
    DIE_RELEASED,      /* … unregistered, the LPET told to end */
    /* taking over */
    DIE_RECOVER_OPENED,  /* the old keeper answers */
    DIE_RECOVER_STORE,   /* the store is taken over */
    DIE_RECOVER_LOADED,  /* after an instance is loaded */
    DIE_RECOVER_SETTLED, /* after its table is settled */
    DIE_RECOVER_CAUGHT,  /* after its events are applied */
    DIE_RECOVER_RESUMED, /* after its handlers are started */
    DIE_RECOVER_UNSAID,  /* all done, not yet said so */
    DIE_RECOVER_SAID,    /* said so, the old keeper not told */
    DIE_RECOVER_TOLD,    /* the old keeper has ended */
    DIE_POINTS
};

extern enum die_point die_wanted;

/* Reads EDM_TEST_DIE. */
void die_init(void);
/* One passing of the point that is wanted. */
void die_pass(void);
/* The name of a point as EDM_TEST_DIE has it; NULL beyond the last. */
const char *die_name(unsigned point);

static inline void die_at(enum die_point p)
{
    if (__builtin_expect(p == die_wanted, 0))
        die_pass();
}

#endif
