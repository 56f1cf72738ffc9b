/* Answers to `edm`: statistics, resize, evict, fetch, stop. */
#include "../config/log.h"
#include "instance.h"
#include "keeper.h"
#include "peer.h"
#include "server.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define KEPT_MAX 65536

/* Last counters of instances whose run somebody watches. */
struct kept {
    uint64_t token;
    char *json;
    struct kept *next;
};

static struct {
    pthread_mutex_t lock;
    unsigned
        next; /* of the state's tokens, which a successor goes on with: the one to be forgotten */
    struct kept *first;
    unsigned count;
} watch = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uint64_t started_ns;

void control_init(void)
{
    started_ns = now_ns();
}

static bool watched(uint64_t token)
{
    for (unsigned i = 0; i < STATE_WATCHED; i++)
        if (keeper_state()->watched[i] == token)
            return true;
    return false;
}

void control_keep(struct instance *in)
{
    size_t len;
    struct kept *k = NULL;
    pthread_mutex_lock(&watch.lock);
    bool keep = in->run_token && watched(in->run_token) && watch.count < KEPT_MAX;
    pthread_mutex_unlock(&watch.lock);
    if (!keep || !(k = calloc(1, sizeof(*k))))
        return;
    FILE *f = open_memstream(&k->json, &len);
    if (!f) {
        free(k);
        return;
    }
    stats_instance_json(in, f);
    fclose(f);
    k->token = in->run_token;
    pthread_mutex_lock(&watch.lock);
    k->next = watch.first;
    watch.first = k;
    watch.count++;
    pthread_mutex_unlock(&watch.lock);
}

static void watch_begin(uint64_t token)
{
    uint64_t *tokens = keeper_state()->watched;
    pthread_mutex_lock(&watch.lock);
    for (unsigned i = 0; i < STATE_WATCHED && tokens[watch.next]; i++)
        watch.next = (watch.next + 1) % STATE_WATCHED;
    tokens[watch.next] = token; /* all in use: the oldest watcher is long gone */
    watch.next = (watch.next + 1) % STATE_WATCHED;
    pthread_mutex_unlock(&watch.lock);
}

/* Writes what was kept for a token, and forgets it. */
static void watch_end(uint64_t token, FILE *f, const char **comma)
{
    pthread_mutex_lock(&watch.lock);
    for (struct kept **p = &watch.first; *p;) {
        struct kept *k = *p;
        if (k->token != token) {
            p = &k->next;
            continue;
        }
        fprintf(f, "%s%s", *comma, k->json);
        *comma = ",";
        *p = k->next;
        watch.count--;
        free(k->json);
        free(k);
    }
    for (unsigned i = 0; i < STATE_WATCHED; i++)
        if (keeper_state()->watched[i] == token)
            keeper_state()->watched[i] = 0;
    pthread_mutex_unlock(&watch.lock);
}

static void json_level(FILE *f, const char *name, const struct store_level *l)
{
    fprintf(f, "\"%s\":{\"capacity_bytes\":%lu,\"used_bytes\":%lu,\"pages\":%lu}", name,
            l->capacity_bytes, l->used_bytes, l->pages);
}

static void json_server(FILE *f)
{
    struct store_stats s;
    store_get_stats(&s);
    fprintf(f,
            "\"version\":\"%s\",\"server\":{\"pid\":%d,\"ranks\":%d,\"rank\":%d,"
            "\"uptime_s\":%.1f,",
            EDM_VERSION, getpid(), peer_ranks(), peer_rank(),
            (double)(now_ns() - started_ns) / 1e9);
    json_level(f, "memory_store", &s.memory);
    fputc(',', f);
    json_level(f, "disk_store", &s.disk);
    fprintf(f, ",\"raw_pages\":%lu,\"lz4_pages\":%lu,\"refused_pages\":%lu,\"peers\":", s.raw_pages,
            s.lz4_pages, copies_refused());
    copies_peers_json(f);
    fputc('}', f);
}

static int send_text(int fd, const char *text, size_t len)
{
    for (size_t off = 0; off < len; off += 32768) {
        size_t n = len - off < 32768 ? len - off : 32768;
        int err = server_send(fd, EDM_MSG_PART, text + off, (uint32_t)n, NULL, 0);
        if (err)
            return err;
    }
    return 0;
}

static void serve_stat(int fd, const struct edm_request *r)
{
    char *text = NULL;
    const char *comma = "";
    size_t len = 0, n;
    bool found = r->pid == 0 || r->token;
    instance_reap();
    FILE *f = open_memstream(&text, &len);
    struct instance **all = instance_list(&n);
    fputc('{', f);
    json_server(f);
    fprintf(f, ",\"instances\":[");
    if (r->token)
        watch_end(r->token, f, &comma);
    for (size_t i = 0; i < n; i++) {
        bool wanted = r->token ? all[i]->run_token == r->token : !r->pid || all[i]->pid == r->pid;
        if (wanted) {
            found = true;
            fputs(comma, f);
            comma = ",";
            stats_instance_json(all[i], f);
        }
        instance_put(all[i]);
    }
    free(all);
    fprintf(f, "]}\n");
    fclose(f);
    if (!found)
        server_send_done(fd, -ESRCH, 0, "no such instance: `edm stat` lists them");
    else if (send_text(fd, text, len) == 0)
        server_send_done(fd, 0, 0, "");
    free(text);
}

static void serve_resize(int fd, const struct edm_request *r, struct instance *in)
{
    if (r->size < 1 << 20) {
        server_send_done(fd, -EINVAL, 0, "local memory of an instance: at least 1M");
        return;
    }
    pthread_mutex_lock(&in->lock);
    in->set.local_memory = r->size;
    in->set.local_permille = 0;
    budget_set(in, r->size >> EDM_PAGE_SHIFT);
    instance_save(in);
    pthread_mutex_unlock(&in->lock);
    instance_wake(in);
    instance_rebalance();
    server_send_done(fd, 0, 0, "");
}

static void send_progress(void *arg, uint64_t done, uint64_t total)
{
    static _Thread_local uint64_t last;
    struct edm_progress p = {done, total};
    struct pollfd room = {.fd = *(int *)arg, .events = POLLOUT};
    if (now_ns() - last < 200000000 || poll(&room, 1, 0) != 1 || room.revents != POLLOUT)
        return; /* who does not read it, is not waited for */
    last = now_ns();
    server_send(*(int *)arg, EDM_MSG_PROGRESS, &p, sizeof(p), NULL, 0);
}

/* Pages that are on their way; limbo is local memory, too. */
static uint64_t evict_left(const struct instance *in, bool all)
{
    return in->budget.forced + in->budget.evicting + (all ? in->limbo.used : 0);
}

static void serve_evict(int fd, const struct edm_request *r, struct instance *in)
{
    bool all = !r->size;
    uint64_t want = all ? UINT64_MAX : (r->size - 1) / EDM_PAGE_SIZE + 1;
    struct timespec ts = {0, 2000000};
    pthread_mutex_lock(&in->lock);
    uint64_t resident = in->budget.resident + in->budget.leases * EDM_CHUNK_PAGES;
    uint64_t total = want < resident ? want : resident, since = now_ns(), chosen = since;
    uint64_t start = in->stats->evicted, left = UINT64_MAX;
    in->budget.forced = total;
    in->limbo.emptied += all;
    budget_set(in, in->budget.limit); /* and with it limbo's */
    while (evict_left(in, all) > 0 && !in->dead) {
        in->kick = true;
        dm_handler_step(in);
        if (all)
            limbo_drain(in, UINT32_MAX, false); /* the last few, too */
        pthread_mutex_unlock(&in->lock);
        nanosleep(&ts, NULL);
        pthread_mutex_lock(&in->lock);
        uint64_t now_left = evict_left(in, all);
        if (now_left != left)
            since = now_ns();
        left = now_left;
        if (in->budget.forced)
            chosen = now_ns();
        if (now_ns() - since > 1000000000ull || now_ns() - chosen > 2000000000ull)
            break; /* stopped, pinned, or full; or the program moves on: what could be done is */
        send_progress(&fd, total - (left < total ? left : total), total);
    }
    in->budget.forced = 0;
    uint64_t done = in->stats->evicted - start;
    in->limbo.emptied -= all;
    budget_set(in, in->budget.limit);
    pthread_mutex_unlock(&in->lock);
    if (total && !done)
        server_send_done(fd, -EAGAIN, 0,
                         "nothing could be moved out: the program is stopped "
                         "(`kill -CONT` it), or every store is full");
    else
        server_send_done(fd, 0, (uint32_t)done, "");
}

/* Bytes that the kernel could give without swapping; UINT64_MAX: it does not say. */
static uint64_t memory_available(void)
{
    char line[128];
    unsigned long kib;
    uint64_t bytes = UINT64_MAX;
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "MemAvailable: %lu", &kib) == 1)
            bytes = (uint64_t)kib << 10;
    if (f)
        fclose(f);
    return bytes;
}

static void serve_fetch(int fd, struct instance *in)
{
    char text[160];
    uint64_t room = memory_available() >> EDM_PAGE_SHIFT;
    pthread_mutex_lock(&in->lock);
    uint64_t away = in->stored, total = away + in->limbo.used;
    if (away > room) {
        pthread_mutex_unlock(&in->lock);
        snprintf(text, sizeof(text),
                 "%lu MiB are away and only %lu MiB of memory are free: end other "
                 "programs first",
                 away >> 8, room >> 8);
        server_send_done(fd, -ENOMEM, 0, text);
        return;
    }
    int err = fetch_all(in, send_progress, &fd);
    pthread_mutex_unlock(&in->lock);
    server_send_done(fd, err, (uint32_t)total,
                     !err             ? ""
                     : err == -EAGAIN ? "not every page could be brought back: the program was "
                                        "stopped while pages were leaving it: `kill -CONT` it "
                                        "for a moment"
                                      : "not every page could be brought back: is memory "
                                        "exhausted?");
}

/* Users of server_group have a say about their own programs only. */
static bool may_rule(const struct ucred *peer)
{
    return peer->uid == 0 || peer->uid == geteuid();
}

static void serve_instance(int fd, const struct ucred *peer, const struct edm_msg *msg,
                           const struct edm_request *r)
{
    struct instance *in = instance_find(r->pid);
    if (!in || instance_is_gone(in)) {
        server_send_done(fd, -ESRCH, 0, "no such instance: `edm stat` lists them");
    } else if (!may_rule(peer) && peer->uid != in->uid) {
        server_send_done(fd, -EPERM, 0, "this process belongs to another user");
    } else if (msg->type == EDM_MSG_RESIZE) {
        serve_resize(fd, r, in);
    } else if (msg->type == EDM_MSG_EVICT) {
        serve_evict(fd, r, in);
    } else {
        serve_fetch(fd, in);
    }
    instance_put(in);
}

static void serve_stop(int fd)
{
    char text[120];
    instance_reap();
    unsigned n = instance_count();
    if (n) {
        snprintf(text, sizeof(text),
                 "%u instance%s still running: end %s first (edm stat lists them)", n,
                 n == 1 ? " is" : "s are", n == 1 ? "it" : "them");
        server_send_done(fd, -EBUSY, n, text);
        return;
    }
    server_send_done(fd, 0, 0, "");
    server_stop();
}

/* As if killed, but between two messages of the front door: the keeper has it all. */
static void serve_handover(int fd)
{
    edm_info("handing over to a successor");
    server_send_done(fd, 0, instance_count(), "");
    _exit(0);
}

void control_serve(int fd, const struct ucred *peer, const struct edm_msg *msg, const void *payload)
{
    struct edm_request r = {0};
    memcpy(&r, payload, msg->len < sizeof(r) ? msg->len : sizeof(r));
    bool ends = msg->type == EDM_MSG_STOP || msg->type == EDM_MSG_HANDOVER;
    bool rules = ends || msg->type == EDM_MSG_STAY;
    bool bare = msg->type == EDM_MSG_PING || rules;
    if (msg->len != (bare ? 0 : sizeof(r))) {
        edm_warn("pid %d: malformed request %u: connection dropped", peer->pid, msg->type);
    } else if (rules && !may_rule(peer)) {
        server_send_done(fd, -EPERM, 0,
                         "this server belongs to another user: ask them, or start "
                         "your own");
    } else if (msg->type == EDM_MSG_STAY) {
        server_stay();
        server_send_done(fd, 0, 0, "");
    } else if (msg->type == EDM_MSG_PING) {
        server_send_done(fd, 0, 0, "");
    } else if (msg->type == EDM_MSG_STAT) {
        serve_stat(fd, &r);
    } else if (msg->type == EDM_MSG_WATCH) {
        watch_begin(r.size);
        server_send_done(fd, 0, 0, "");
    } else if (msg->type == EDM_MSG_STOP) {
        serve_stop(fd);
    } else if (msg->type == EDM_MSG_HANDOVER) {
        serve_handover(fd);
    } else {
        serve_instance(fd, peer, msg, &r);
    }
    close(fd);
}
