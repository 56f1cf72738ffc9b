/*
 * What shim, server and command say to each other.
 *
 * 1. Messages on a SOCK_SEQPACKET unix socket, one struct edm_msg (plus payload) a packet.
 * 2. The channel: memory shared by one instance and its server (struct edm_chan). The server
 *    makes it (a memfd sealed against shrinking) and trusts nothing it reads from it.
 *
 * Attaching:   client HELLO ─► server WELCOME [uffd device, chan memfd, cmd socket, comp eventfd]
 *              client makes two userfaultfds from the device, maps the channel, makes its staging
 *              client UFFD [arena uffd, /proc/self/pagemap, /proc/self/maps] ─► server READY
 * A forked child whose atfork handler ran: reads its identity page, then CLAIM ─► WELCOME, UFFD
 * (without the arena uffd: the server has it; WELCOME carries a duplicate of it as a fifth
 * descriptor), READY. Refusals are DONE with a code and a line of text.
 *
 * When the connection ends and the server did not say EXIT, the LPET goes on with the commands in
 * the channel and asks whoever serves on the socket: REATTACH ─► READY.
 */
#ifndef EDM_PROTO_H
#define EDM_PROTO_H

#include <stddef.h>
#include <stdint.h>

#define EDM_PAGE_SHIFT 12
#define EDM_PAGE_SIZE 4096ul
#define EDM_CHUNK_SHIFT 21
#define EDM_CHUNK_SIZE (1ul << EDM_CHUNK_SHIFT)
#define EDM_CHUNK_PAGES 512u

#define EDM_PROTO_MAGIC 0x314d4445u
#define EDM_PROTO_VERSION 2u
#define EDM_MSG_MAX 65536u /* longest packet */
#define EDM_MSG_FDS 5

enum edm_msg_type {
    EDM_MSG_HELLO = 1, /* struct edm_hello */
    EDM_MSG_CLAIM,     /* struct edm_claim */
    EDM_MSG_WELCOME,   /* struct edm_welcome */
    EDM_MSG_UFFD,      /* struct edm_staging */
    EDM_MSG_READY,     /* nothing */
    EDM_MSG_DONE,      /* struct edm_done: end of a request, or a refusal */
    EDM_MSG_PING,      /* nothing; answered by DONE. "Does it serve?" */
    EDM_MSG_STAT,      /* struct edm_request: pid or 0; answered by PARTs, then DONE */
    EDM_MSG_PART,      /* a piece of text (JSON), without a final 0 */
    EDM_MSG_STOP,      /* nothing */
    EDM_MSG_RESIZE,    /* struct edm_request: pid, size */
    EDM_MSG_EVICT,     /* struct edm_request: pid, size (0 = all) */
    EDM_MSG_FETCH,     /* struct edm_request: pid */
    EDM_MSG_PROGRESS,  /* struct edm_progress: on the way to DONE, at most a few a second */
    EDM_MSG_REATTACH, /* struct edm_reattach: an LPET comes back to its server's successor; READY */
    EDM_MSG_HANDOVER, /* nothing: end as if killed, a successor takes everything over */
    EDM_MSG_WATCH,    /* struct edm_request: pid: from now on keep the last counters of every
                         instance whose `run_token` is `size`; `edm run --stats` sends it before
                         CMD starts and asks STAT with `token` at the end */
    EDM_MSG_STAY,     /* nothing: do not end after the last instance, though started for one */
};

struct edm_msg {
    uint32_t magic, version;
    uint32_t type; /* enum edm_msg_type */
    uint32_t len;  /* bytes that follow this header in the packet */
};

/* Settings of an instance, resolved on its side except shares of memory. */
struct edm_settings {
    uint64_t local_memory; /* bytes; 0 when local_permille says it */
    uint64_t arena_size;
    uint32_t local_permille;
    uint32_t low_permille, high_permille;
    uint32_t manage;
    uint32_t reconnect_timeout_ms;
    uint32_t on_server_lost, replicas, placement;
    uint32_t lease, prefetch, prefetch_max, cluster;
    uint32_t evict_method, handlers;
};

struct edm_hello {
    uint64_t arena_start, arena_len; /* chunk aligned */
    uint64_t identity;               /* address of the identity page, outside the arena */
    uint64_t used_start, used_end;   /* part of the arena ever handed out */
    uint64_t run_token;              /* EDM_RUN_TOKEN of `edm run`, 0 = none */
    struct edm_settings settings;
    char command[64];
};

struct edm_claim {
    uint64_t nonce; /* read from the identity page */
};

struct edm_reattach {
    uint64_t instance; /* its number, as in the channel */
};

struct edm_welcome {
    uint64_t instance; /* its number in the server */
    uint64_t chan_size;
};

struct edm_staging {
    uint64_t start, len; /* the LPET's staging range */
    uint32_t lpet_tid;   /* 0: not running yet; chan->lpet_tid is set when it is */
    uint32_t methods;    /* bit 0: UFFDIO_MOVE works in this kernel */
};

struct edm_done {
    int32_t code;   /* 0 or -errno */
    uint32_t count; /* pages or bytes/4096 done, where that means something */
    char text[240]; /* one line, what is wrong: what would be right; "" when code is 0 */
};

struct edm_request {
    uint64_t size;
    uint64_t token; /* STAT: also the kept last counters of instances with this run_token */
    int32_t pid;
    uint32_t flags;
};

struct edm_progress {
    uint64_t done, total; /* pages */
};

/* ------------------------------------------------------------------ the channel */

#define EDM_CHAN_MAGIC 0x6e616863u
#define EDM_CHAN_CMDS 64u      /* commands in the ring, a power of two */
#define EDM_CMD_PAGES 64u      /* most pages of one command */
#define EDM_STAGING_PAGES 512u /* of the LPET */
#define EDM_CHAN_OPS 64u

enum edm_cmd_kind {
    EDM_CMD_NOP = 0,
    EDM_CMD_MOVE = 1, /* UFFDIO_MOVE to staging, copy to ring pages, give the frames back */
    EDM_CMD_COPY = 2, /* pages are write-protected: copy to ring pages, MADV_DONTNEED */
    EDM_CMD_EXIT = 3, /* the LPET closes all and ends */
};

enum edm_cmd_state { EDM_CMD_POSTED = 0, EDM_CMD_RUNNING = 1, EDM_CMD_CANCELLED = 2 };

/*
 * One eviction of a run of neighbouring pages. Written by the server before cmd_head passes it,
 * state by compare-and-swap from both sides, results by the LPET before cmd_tail passes it.
 * Result masks: bit i is page i of the run; each page is in exactly one of them.
 */
struct edm_cmd {
    uint64_t addr;
    uint32_t npages; /* 1..EDM_CMD_PAGES */
    uint32_t slot;   /* contents of page i go to ring page slot + i (never wraps) */
    uint32_t kind;
    uint32_t state;
    uint64_t moved;   /* out of the instance; contents in the ring page */
    uint64_t zero;    /* out of the instance; all zero, ring page not written */
    uint64_t busy;    /* still in the instance: pinned or shared in a way that does not end */
    uint64_t gone;    /* nothing was there (ENOENT) */
    uint64_t refused; /* still in the instance: MOVE said EINVAL (not plain read-write memory) */
    uint64_t staged;  /* staging address of page 0 while RUNNING (page i at + i * 4096) */
};

enum edm_op_kind {
    /* notes: made before the system call, closed after it; the server only looks at them */
    EDM_OP_REMOVE = 1, /* madvise DONTNEED, FREE, REMOVE of [start, +len) */
    EDM_OP_UNMAP,      /* real munmap or MAP_FIXED over [start, +len) */
    EDM_OP_REMAP,      /* [start, +len) goes to arg */
    /* requests: the server acts, sets result and state EDM_OP_DONE, wakes the futex on state */
    EDM_OP_UNLEASE = 16, /* no chunk of [start, +len) is leased until this operation is closed */
    EDM_OP_REFRESHED,    /* [start, +len) is a fresh arena mapping: register it, all pages new */
    EDM_OP_PIN,          /* never evict [start, +len) (counted: as many UNPIN as PIN); arg 1: for
                            as long as the mapping lives, in forked children, too */
    EDM_OP_UNPIN,
    EDM_OP_WIPEONFORK, /* arg 1: children see zeros; 0: undo */
    EDM_OP_DONTFORK,   /* arg 1: children do not have the range; 0: undo */
    EDM_OP_WILLNEED,   /* start fetching; does not wait for the pages */
    EDM_OP_PAGEOUT,    /* evict soon; does not wait */
    EDM_OP_DETACH,     /* fetch everything back, end all management; result 0 or -errno */
    EDM_OP_RIGHTS,     /* result: PROT_* of the mapping at start, as the kernel has it */
    EDM_OP_SYNC,       /* every event before this is applied; the server's tables are up to date */
};

enum edm_op_state { EDM_OP_FREE = 0, EDM_OP_OPEN, EDM_OP_REQUEST, EDM_OP_DONE };

struct edm_op {
    uint32_t state; /* futex, shared; FREE -> OPEN/REQUEST by the instance, REQUEST -> DONE by the
                       server, -> FREE by the instance */
    uint32_t kind;
    uint64_t start, len, arg;
    int32_t result;
    uint32_t tid;
};

struct edm_chan {
    /* set by the server before the instance sees it */
    uint32_t magic, version;
    uint64_t size;        /* of the whole mapping */
    uint64_t instance;    /* number */
    uint64_t data_offset; /* of ring page 0 */
    uint32_t ring_pages;
    uint32_t cluster;

    /* command ring */
    _Alignas(64) uint32_t cmd_head; /* posted; server */
    int32_t lpet_cpu;               /* where the server wants the LPET; -1 = anywhere */
    uint32_t starved;               /* futex; 1: hooks hold back calls that raise events */
    _Alignas(64) uint32_t cmd_tail; /* finished; LPET */
    uint32_t lpet_tid;              /* 0 when there is none */
    uint32_t lpet_busy;             /* futex; 1 while the LPET is inside a command */
    uint32_t tampered;              /* server: part of the arena was unmapped by a raw system call;
                                       pieces are given back by fresh mappings from then on */
    uint32_t comp_wanted;           /* server sets 1 to get the eventfd after each command */

    /* fork: prepare sets hold, then waits while lpet_busy is 1; parent handler clears and wakes */
    _Alignas(64) uint32_t fork_hold; /* futex */
    uint32_t fork_tid;               /* thread inside fork */
    uint32_t fork_seq;               /* futex; server: +1 when a FORK event is applied */
    uint32_t batch;                  /* server: odd while events are read and not applied */

    /* operations of the hooks */
    _Alignas(64) uint32_t op_bell; /* futex; +1 and wake after an op became REQUEST */
    struct edm_op ops[EDM_CHAN_OPS];

    struct edm_cmd cmds[EDM_CHAN_CMDS];
};

#endif
