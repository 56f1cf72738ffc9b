#include "managed.h"
#include "../config/log.h"
#include "lpet.h"
#include <errno.h>
#include <linux/sysinfo.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/vfs.h>

#define FRESH_BYTES (64ull << 20) /* from here on giving back must also uncharge (overcommit) */
#define REFUSE_BYTES (1ull << 30) /* smaller requests are never refused */

atomic_bool managed_paused;

/* The arena counts against RLIMIT_AS like any mapping: leave half to everything else. */
static uint64_t arena_room(uint64_t size)
{
    struct rlimit lim;
    if (sys_call4(SYS_prlimit64, 0, RLIMIT_AS, 0, (long)&lim) == 0 &&
        lim.rlim_cur != RLIM_INFINITY && lim.rlim_cur / 2 < size)
        return lim.rlim_cur / 2;
    return size;
}

bool managed_open(void)
{
    static atomic_bool begun;
    if (arena_len())
        return true;
    /* Others do without it until it is there; when it cannot be had, for good. */
    if (atomic_load(&begun) || atomic_exchange(&begun, true))
        return false;
    sys_madvise((uint64_t)shim_state, EDM_PAGE_SIZE, MADV_WIPEONFORK);
    if (arena_init(arena_room(shim_config.settings.arena_size)) == 0)
        return true;
    bool required = shim_config.config.server == EDM_SERVER_REQUIRE;
    edm_error("no address space for managed memory: raise `ulimit -v`, or lower arena_size%s",
              required ? "" : ": running unmanaged");
    if (required)
        sys_exit_group(125);
    return false;
}

bool managed_attached(void)
{
    return shim_state && atomic_load(&shim_state->chan);
}

/* ---- attaching ---- */

/* Tells a server just attached to what was asked for while there was none. */
static void replay_states(void)
{
    struct arena_piece p;
    for (uint64_t at = arena_start(); arena_piece_at(at, &p); at = p.end) {
        if (p.state & ARENA_LOCKED)
            ops_request(EDM_OP_PIN, p.start, p.end - p.start, 0);
        if (p.state & ARENA_PINNED)
            ops_request(EDM_OP_PIN, p.start, p.end - p.start, 1);
        if (p.state & ARENA_WIPE)
            ops_request(EDM_OP_WIPEONFORK, p.start, p.end - p.start, 1);
        if (p.state & ARENA_DONTFORK)
            ops_request(EDM_OP_DONTFORK, p.start, p.end - p.start, 1);
    }
}

void managed_grow(uint64_t more)
{
    if (atomic_load(&shim_state->attach_state) != SHIM_NOT_ATTACHED ||
        arena_accessible() + more < shim_config.threshold)
        return;
    /* No handler may run that waits for the end of what it interrupted (see wait_attached). */
    uint64_t all = UINT64_MAX, old = 0;
    sys_sigprocmask(0 /* SIG_BLOCK */, &all, &old);
    shim_find_server();
    attach_now();
    if (managed_attached())
        replay_states();
    sys_sigprocmask(2 /* SIG_SETMASK */, &old, NULL);
}

/* The state after an attach that is under way, if one is. */
static unsigned wait_attached(void)
{
    const struct timespec tick = {.tv_nsec = 1000000};
    unsigned s;
    while ((s = atomic_load(&shim_state->attach_state)) == SHIM_ATTACHING)
        sys_futex_wait(&shim_state->attach_state, SHIM_ATTACHING, &tick, 0);
    return s;
}

/* ---- what can never be stored ---- */

static uint64_t disk_free(const char *path)
{
    char buf[512];
    struct statfs fs;
    size_t n = strnlen(path, sizeof(buf) - 1);
    memcpy(buf, path, n);
    buf[n] = 0;
    while (sys_call3(SYS_statfs, (long)buf, (long)&fs, 0) != 0) {
        while (n > 1 && buf[n - 1] != '/')
            n--;
        if (n <= 1)
            return 0;
        buf[--n ? n : 1] = 0;
    }
    return (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
}

static char overcommit_mode(void)
{
    char mode = '0';
    int fd = (int)sys_open("/proc/sys/vm/overcommit_memory", 02000000 /* O_CLOEXEC */, 0);
    if (fd >= 0) {
        sys_read(fd, &mode, 1);
        sys_close(fd);
    }
    return mode;
}

/* Most bytes that memory, swap and the stores of all configured hosts can hold. */
static uint64_t capacity(void)
{
    const struct edm_config *c = &shim_config.config;
    struct sysinfo si;
    if (sys_call3(SYS_sysinfo, (long)&si, 0, 0) != 0)
        return UINT64_MAX;
    uint64_t ram = (uint64_t)si.totalram * si.mem_unit, hosts = 1;
    uint64_t total = ram + (uint64_t)si.totalswap * si.mem_unit;
    if (atomic_load(&shim_state->attach_state) == SHIM_UNMANAGED)
        return total;
    for (const char *h = c->hosts; *h; h++)
        hosts += *h == ',';
    return total + hosts * (edm_size_bytes(c->memory_store, ram) +
                            edm_size_bytes(c->disk_store, disk_free(c->disk_path)));
}

bool managed_refuse(uint64_t len, int prot, int flags)
{
    if (len < REFUSE_BYTES || !(prot & PROT_WRITE) || (flags & MAP_NORESERVE))
        return false;
    /* Mode 1 refuses nothing; in mode 2 the kernel counts NORESERVE mappings too. */
    return overcommit_mode() == '0' && len > capacity();
}

/*
 * Who makes a raw call goes on when its event has been read; what it did is known when that is
 * applied. A server that died in between has a successor, which applies it first.
 */
static void wait_applied(const struct edm_chan *chan)
{
    const struct timespec tick = {.tv_nsec = 100000};
    uint32_t batch = __atomic_load_n(&chan->batch, __ATOMIC_SEQ_CST);
    if (!(batch & 1))
        return;
    uint64_t until = lpet_now_ms() + shim_config.settings.reconnect_timeout_ms;
    while (__atomic_load_n(&chan->batch, __ATOMIC_SEQ_CST) == batch && lpet_now_ms() < until)
        sys_futex_wait(&chan->batch, batch, &tick, 0); /* nobody wakes it */
}

bool managed_tampered(void)
{
    struct edm_chan *chan = atomic_load(&shim_state->chan);
    if (!chan)
        return false;
    wait_applied(chan);
    return __atomic_load_n(&chan->tampered, __ATOMIC_ACQUIRE);
}

/* ---- pieces ---- */

uint64_t managed_part(uint64_t addr, uint64_t end, bool *inside)
{
    uint64_t start = arena_start(), limit = start + arena_len();
    *inside = addr >= start && addr < limit;
    if (*inside)
        return end < limit ? end : limit;
    return addr < start && end > start ? start : end;
}

bool managed_piece(uint64_t addr, uint64_t end, struct arena_piece *out)
{
    struct arena_piece p;
    if (addr >= end || !arena_piece_at(addr, &p) || !(p.state & ARENA_TAKEN))
        return false;
    p.start = addr;
    if (p.end > end)
        p.end = end;
    *out = p;
    return true;
}

bool managed_whole(uint64_t start, uint64_t end, uint64_t *hole)
{
    struct arena_piece p;
    while (start < end) {
        bool inside;
        uint64_t stop = managed_part(start, end, &inside);
        if (inside && !managed_piece(start, stop, &p)) {
            *hole = start;
            return false;
        }
        start = inside ? p.end : stop;
    }
    return true;
}

uint32_t managed_states(uint64_t start, uint64_t end)
{
    uint32_t found = 0;
    struct arena_piece p;
    for (; start < end && arena_piece_at(start, &p); start = p.end)
        found |= p.state;
    return found;
}

void managed_drop_state(uint64_t addr, uint64_t len)
{
    struct arena_piece p;
    uint64_t end = addr + len;
    if (!managed_attached())
        return;
    for (; addr < end && arena_piece_at(addr, &p); addr = p.end) {
        uint64_t n = (p.end < end ? p.end : end) - addr;
        if (p.state & ARENA_LOCKED)
            ops_request(EDM_OP_UNPIN, addr, n, 0);
        if (p.state & ARENA_WIPE)
            ops_request(EDM_OP_WIPEONFORK, addr, n, 0);
        if (p.state & ARENA_DONTFORK)
            ops_request(EDM_OP_DONTFORK, addr, n, 0);
    }
}

/* ---- taking and giving back ---- */

long managed_commit(uint64_t addr, uint64_t len, int prot)
{
    if (prot != PROT_NONE) {
        managed_grow(len);
        long ret = sys_mprotect(addr, len, prot);
        if (ret)
            return ret;
        arena_protect(addr, len, prot);
    }
    sys_madvise(addr, len, MADV_DODUMP);
    return 0;
}

long managed_fresh(uint64_t addr, uint64_t len)
{
    struct ops_guard g;
    unsigned before = atomic_load(&shim_state->attach_state);

    ops_enter(&g);
    ops_note(&g, EDM_OP_UNMAP, addr, len, 0);
    long ret = sys_mmap(addr, len, PROT_NONE,
                        MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!sys_is_error(ret))
        sys_madvise(addr, len, MADV_DONTDUMP);
    ops_leave(&g);
    if (sys_is_error(ret))
        return ret;
    /* An attach may have registered the arena just before the new mapping came. */
    if (before == SHIM_ATTACHED || wait_attached() == SHIM_ATTACHED)
        ops_request(EDM_OP_REFRESHED, addr, len, 0);
    return 0;
}

/* Keeps the mapping, and with it its registration. */
static long release_in_place(uint64_t addr, uint64_t len)
{
    struct ops_guard g;
    ops_enter(&g);
    ops_note(&g, EDM_OP_REMOVE, addr, len, 0);
    long ret = sys_mprotect(addr, len, PROT_NONE);
    if (!ret)
        ret = sys_madvise(addr, len, MADV_DONTNEED);
    if (!ret)
        sys_madvise(addr, len, MADV_DONTDUMP);
    ops_leave(&g);
    return ret;
}

static long release_piece(const struct arena_piece *p)
{
    uint64_t len = p->end - p->start;
    long ret = -EINVAL;
    if (managed_attached() && !(p->state & ARENA_SPECIAL) && len < FRESH_BYTES)
        ret = release_in_place(p->start, len);
    /* locked by a raw system call, or not our mapping any more: known by now, for the events
     * of raw calls come before ours */
    if (ret == -EINVAL || managed_tampered()) {
        managed_drop_state(p->start, len);
        ret = managed_fresh(p->start, len);
    }
    if (!ret)
        arena_give(p->start, len);
    return ret;
}

long managed_release(uint64_t start, uint64_t end)
{
    struct arena_piece p;
    while (start < end && arena_piece_at(start, &p)) {
        p.start = start;
        if (p.end > end)
            p.end = end;
        if (p.state & ARENA_TAKEN) {
            long ret = release_piece(&p);
            if (ret)
                return ret;
        }
        start = p.end;
    }
    return 0;
}
