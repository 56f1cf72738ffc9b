/* What attach.c, attach_handshake.c (on the LPET) and attach_server.c share. Only for these. */
#ifndef EDM_ATTACH_INT_H
#define EDM_ATTACH_INT_H

#include "attach.h"
#include <sys/socket.h>

#define SYSTEM_SOCKET "/run/edm/dms.sock"
#define ANSWER_LIMIT_S 10
#define AWAIT_PAUSE_MS 50

struct packet {
    struct edm_msg head;
    union {
        struct edm_hello hello;
        struct edm_claim claim;
        struct edm_welcome welcome;
        struct edm_staging staging;
        struct edm_done done;
        struct edm_reattach reattach;
    } u;
};

/* Set by attach.c; constant while the LPET attaches. */
extern uint64_t attach_identity;      /* address of the identity page, 0 = none yet */
extern bool attach_found;             /* there was a server when the program was loaded */
extern bool attach_socket_default;    /* no socket was named: look at the system's, too */
extern struct edm_hello attach_hello; /* what it says to the server */

/* ---- attach.c ---- */
/* On the LPET, which ends: the server has given everything back. From now on unmanaged. */
void attach_released(void);

/* ---- attach_server.c ---- */
/* p->head.type and .len are set. 0 or -errno. */
int attach_packet_send(int sock, struct packet *p, const int *fds, uint32_t nfds);
/* The answer `type` with at least `len` bytes, or what the server says instead: 0, or -errno with
 * why set. Descriptors that came are in fds[0..*nfds). */
int attach_packet_expect(int sock, uint32_t type, uint32_t len, struct packet *p, int *fds,
                         uint32_t *nfds, struct lpet_text *why);
/* A connected socket with time limits, or -errno with why set. */
int attach_server_connect(const char *path, struct lpet_text *why);
/* The same for the user's server, else the host's; *path is whose it is. */
int attach_server_find(const char **path, struct lpet_text *why);
/* … and if nobody is there, waits for a server that is being replaced, or starts one. */
int attach_server_find_or_start(struct lpet *l, bool was_there);
/* Does the error say that there is no server? */
bool attach_nobody_there(int err);

/* ---- attach_handshake.c ---- */
/* For lpet_create. */
extern const struct lpet_calls attach_calls;

#endif
