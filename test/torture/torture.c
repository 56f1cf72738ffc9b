#include "torture.h"
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define STALL_SECONDS 60
#define IN_FLIGHT (4 * EDMTEST_MIB)
#define OWN_MEMORY (6 * EDMTEST_MIB) /* libraries', threads' and P_RAW memory */

struct settings settings = {.threads = 1, .seconds = 10, .bytes = 256 * EDMTEST_MIB};
struct worker *workers;
struct region common;
int pattern_file;
pthread_rwlock_t quiet;

static const struct op {
    const char *name;
    unsigned weight;
    bool (*run)(struct worker *w);
    bool parent_only; /* needs the heap, or forks */
} ops[] = {
    {"map", 6, op_map, false},
    {"map_fixed", 3, op_map_fixed, false},
    {"map_noreplace", 3, op_map_noreplace, false},
    {"map_file", 2, op_map_file, false},
    {"unmap", 3, op_unmap, false},
    {"protect", 6, op_protect, false},
    {"remap_shrink", 2, op_remap_shrink, false},
    {"remap_grow", 4, op_remap_grow, false},
    {"remap_move", 4, op_remap_move, false},
    {"remap_fixed", 3, op_remap_fixed, false},
    {"remap_dontunmap", 2, op_remap_dontunmap, false},
    {"dontneed", 3, op_dontneed, false},
    {"free", 3, op_free, false},
    {"remove", 1, op_remove, false},
    {"willneed", 2, op_willneed, false},
    {"cold", 2, op_cold, false},
    {"pageout", 3, op_pageout, false},
    {"populate_read", 3, op_populate_read, false},
    {"populate_write", 3, op_populate_write, false},
    {"forkadvice", 2, op_forkadvice, false},
    {"hugepage", 2, op_hugepage, false},
    {"dontdump", 1, op_dontdump, false},
    {"lock", 2, op_lock, false},
    {"unlock", 2, op_unlock, false},
    {"write", 30, op_write, false},
    {"read", 30, op_read, false},
    {"copy", 8, op_copy, false},
    {"pipe", 6, op_pipe, false},
    {"file", 6, op_file, false},
    {"common", 6, op_common, false},
    {"probe", 4, op_probe, false},
    {"heap", 40, op_heap, true},
    {"fork", 1, op_fork, true},
};
#define OPS (sizeof(ops) / sizeof(ops[0]))

static bool enabled[OPS];

static double seconds_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- options ---- */

__attribute__((noreturn)) static void usage(const char *why)
{
    fprintf(stderr,
            "torture: %s\nusage: torture [--seed N] [--threads N] [--seconds N] [--ops N]\n"
            "  [--bytes SIZE] [--calls libc|raw|mixed] [--only OP,OP...] [--without OP,OP...] "
            "[--replay]\n"
            "--ops 0 (default): until the time is over; --ops counts each thread's operations\n"
            "--replay verifies everything after each operation: finds the first wrong one\n",
            why);
    exit(125);
}

static uint64_t parse_number(const char *text)
{
    char *end;
    uint64_t n = strtoull(text, &end, 0);

    if (end != text && *end)
        n <<= *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
    if (end == text || (*end && (!strchr("KMG", *end) || end[1])))
        usage("not a number");
    return n;
}

static enum calls_mode parse_calls(const char *text)
{
    static const char *const names[] = {"libc", "raw", "mixed"};

    for (int i = 0; i < 3; i++)
        if (strcmp(text, names[i]) == 0)
            return (enum calls_mode)i;
    usage("--calls is libc, raw or mixed");
}

static void enable_list(const char *names, bool on)
{
    char list[512], *save, *name;

    snprintf(list, sizeof(list), "%s", names);
    for (name = strtok_r(list, ",", &save); name; name = strtok_r(NULL, ",", &save)) {
        size_t i = 0;

        while (i < OPS && strcmp(ops[i].name, name) != 0)
            i++;
        if (i == OPS)
            usage("--only or --without names an unknown operation");
        enabled[i] = on;
    }
}

/* Some of --only's work needs memory, so map is always there. */
static void enable_ops(void)
{
    for (size_t i = 0; i < OPS; i++)
        enabled[i] = !settings.only[0] || ops[i].run == op_map;
    enable_list(settings.only, true);
    enable_list(settings.without, false);
}

static void parse_options(int argc, char **argv)
{
    static const struct option options[] = {{"seed", 1, NULL, 's'},    {"threads", 1, NULL, 't'},
                                            {"seconds", 1, NULL, 'd'}, {"bytes", 1, NULL, 'b'},
                                            {"ops", 1, NULL, 'o'},     {"only", 1, NULL, 'l'},
                                            {"calls", 1, NULL, 'c'},   {"replay", 0, NULL, 'r'},
                                            {"without", 1, NULL, 'w'}, {0}};
    int c;

    settings.seed = (uint64_t)time(NULL) ^ (uint64_t)getpid() << 32;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 's')
            settings.seed = parse_number(optarg);
        else if (c == 't')
            settings.threads = (uint32_t)parse_number(optarg);
        else if (c == 'd')
            settings.seconds = (unsigned)parse_number(optarg);
        else if (c == 'b')
            settings.bytes = parse_number(optarg);
        else if (c == 'o')
            settings.ops = parse_number(optarg);
        else if (c == 'l')
            snprintf(settings.only, sizeof(settings.only), "%s", optarg);
        else if (c == 'w')
            snprintf(settings.without, sizeof(settings.without), "%s", optarg);
        else if (c == 'c')
            settings.calls = parse_calls(optarg);
        else if (c == 'r')
            settings.replay = true;
        else
            usage("unknown option");
    }
    if (optind < argc || settings.threads < 1 || settings.threads > 64)
        usage("--threads is 1 to 64, and there are no arguments");
    if (settings.bytes / settings.threads < 2 * EDMTEST_MIB)
        usage("--bytes must be at least 2M for each thread");
    enable_ops();
}

/* ---- workers ---- */

static void run_op(struct worker *w, size_t i)
{
    bool done = ops[i].run(w);

    w->counts[i].done += done;
    w->counts[i].refused += !done;
}

static size_t choose_op(struct worker *w, bool in_child)
{
    unsigned total = 0, at;

    for (size_t i = 0; i < OPS; i++)
        if (enabled[i] && !(in_child && ops[i].parent_only))
            total += ops[i].weight;
    at = (unsigned)worker_random(w, total);
    for (size_t i = 0;; i++) {
        if (!enabled[i] || (in_child && ops[i].parent_only))
            continue;
        if (at < ops[i].weight)
            return i;
        at -= ops[i].weight;
    }
}

void child_operation(struct worker *w)
{
    edmtest_beat();
    run_op(w, choose_op(w, true));
}

void worker_open(struct worker *w)
{
    EXPECT_CALL(pipe2(w->pipe, O_CLOEXEC));
    EXPECT_CALL(w->file = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
}

static __thread struct worker *current;

static void on_fault(int sig, siginfo_t *info, void *context)
{
    struct worker *w = current ? current : &workers[0];

    (void)context;
    if (sig == SIGBUS)
        torture_lost(w, "SIGBUS at %p", info->si_addr);
    torture_fail(w, (uint64_t)info->si_addr, "SIGSEGV at %p", info->si_addr);
}

static void catch_faults(void)
{
    struct sigaction act = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};

    EXPECT_CALL(sigaction(SIGSEGV, &act, NULL));
    EXPECT_CALL(sigaction(SIGBUS, &act, NULL));
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    double end = seconds_now() + settings.seconds;

    current = w;

    while (settings.ops ? w->ops < settings.ops : seconds_now() < end) {
        size_t i = choose_op(w, false);

        edmtest_beat();
        w->ops++;
        pthread_rwlock_rdlock(&quiet);
        run_op(w, i);
        if (settings.replay) {
            printf("# worker %u op %lu %s\n", w->index, w->ops, ops[i].name);
            fflush(stdout);
            worker_verify(w);
            heap_verify(w);
        } else if (w->ops % 64 == 0) {
            region_verify(w, &w->regions[worker_random(w, REGIONS)]);
        }
        children_reap(w, false);
        pthread_rwlock_unlock(&quiet);
    }
    children_reap(w, true);
    worker_verify(w);
    heap_verify(w);
    return NULL;
}

static void worker_init(struct worker *w, uint32_t index)
{
    uint64_t pages = settings.bytes / settings.threads / PAGE;

    w->index = index;
    w->rng = (settings.seed * 0x9e3779b97f4a7c15ull + index * 0xd1342543de82ef95ull) | 1;
    for (int i = 0; i < 8; i++)
        worker_random(w, 2);
    w->pages_max = (uint32_t)(pages * 6 / 8);
    w->region_max = w->pages_max / 6;
    w->raw_max = 1024 / settings.threads;
    w->heap_max = settings.bytes / settings.threads / 8;
    w->counts = model_alloc(OPS * sizeof(*w->counts));
    w->history = model_alloc(HISTORY * sizeof(*w->history));
    for (uint32_t i = 0; i < REGIONS; i++)
        w->regions[i].page = model_alloc(w->region_max * sizeof(struct page));
    worker_open(w);
}

static void model_make(void)
{
    size_t page = settings.bytes / PAGE * sizeof(struct page) * REGIONS / 6 + sizeof(*workers);

    model_init(page +
               settings.threads * (sizeof(*workers) + HISTORY * sizeof(struct event) +
                                   OPS * sizeof(struct op_count) + 64 * REGIONS) +
               EDMTEST_MIB);
    workers = model_alloc(settings.threads * sizeof(*workers));
}

static void common_make(void)
{
    uint32_t n = (uint32_t)(settings.bytes / 8 / PAGE);

    common.page = model_alloc(n * sizeof(struct page));
    common.base = (uint64_t)edmtest_map(n * PAGE);
    common.n = n;
    for (uint32_t i = 0; i < n; i++) {
        common.page[i].flags = P_MAPPED | P_READ | P_WRITE;
        page_write(&workers[0], &common, i);
    }
    EXPECT_CALL(mprotect((void *)common.base, n * PAGE, PROT_READ));
}

static void pattern_make(void)
{
    struct page p = {0};
    uint64_t words[PAGE / 8];

    EXPECT_CALL(pattern_file = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    for (uint32_t i = 0; i < FILE_PAGES; i++) {
        page_from_file(&p, i);
        for (uint32_t k = 0; k < PAGE / 8; k++)
            words[k] = model_word(p.id, k / BLOCK_WORDS, 1, k % BLOCK_WORDS);
        EXPECT(write(pattern_file, words, PAGE) == (ssize_t)PAGE, "pattern file: %m");
    }
}

/* ---- result ---- */

static uint64_t sum_done(const char *name)
{
    uint64_t n = 0;

    for (size_t i = 0; i < OPS; i++)
        for (uint32_t t = 0; t < settings.threads; t++)
            if (!name || strcmp(ops[i].name, name) == 0)
                n += workers[t].counts[i].done;
    return n;
}

static void check_edm(uint64_t rss_max, const struct edmtest_counters *c)
{
    uint64_t limit = c->local_memory + IN_FLIGHT;

    if (edmtest_native())
        return;
    EXPECT(c->evicted * PAGE > c->local_memory, "only %" PRIu64 " pages were evicted", c->evicted);
    EXPECT(c->faults_existing > 0, "no evicted page ever came back");
    EXPECT(c->resident_max <= limit, "resident_max_bytes %" PRIu64 " above the budget %" PRIu64,
           c->resident_max, c->local_memory);
    if (settings.calls == CALLS_LIBC)
        EXPECT(rss_max <= limit + OWN_MEMORY + settings.threads * EDMTEST_MIB / 2,
               "smaps: %" PRIu64 " bytes resident, budget %" PRIu64, rss_max, c->local_memory);
    EXPECT(!sum_done("fork") || c->forks, "no fork event");
    EXPECT(!sum_done("remap_move") || c->remaps, "no remap event");
    EXPECT(!sum_done("dontneed") || c->removes, "no remove event");
}

static void print_json(uint64_t rss_max, const struct edmtest_counters *c, double seconds)
{
    static const char *const calls[] = {"libc", "raw", "mixed"};
    uint64_t total = 0, verified = 0, words = 0, forks = 0;

    for (uint32_t t = 0; t < settings.threads; t++) {
        total += workers[t].ops;
        verified += workers[t].verified;
        words += workers[t].words_verified;
        forks += workers[t].forks;
    }
    printf("{\"seed\": %" PRIu64 ", \"threads\": %u, \"calls\": \"%s\", \"bytes\": %" PRIu64
           ", \"seconds\": %.1f, \"ops\": %" PRIu64 ", \"verified_pages\": %" PRIu64
           ", \"verified_heap_words\": %" PRIu64 ", \"forks\": %" PRIu64 ", \"rss_max\": %" PRIu64,
           settings.seed, settings.threads, calls[settings.calls], settings.bytes, seconds, total,
           verified, words, forks, rss_max);
    printf(", \"evicted\": %" PRIu64 ", \"existing\": %" PRIu64 ", \"limbo\": %" PRIu64
           ", \"resident_max\": %" PRIu64 ", \"done\": {",
           c->evicted, c->faults_existing, c->faults_limbo, c->resident_max);
    for (size_t i = 0; i < OPS; i++)
        printf("%s\"%s\": %" PRIu64, i ? ", " : "", ops[i].name, sum_done(ops[i].name));
    printf("}}\n");
}

/* Looks at the resident set while the workers run. */
static uint64_t watch_rss(void)
{
    struct timespec pause = {.tv_sec = 1};
    uint64_t max = 0, rss;
    uint32_t t = 0;

    while (t < settings.threads) {
        struct timespec until;

        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += pause.tv_sec;
        if (pthread_timedjoin_np(workers[t].thread, NULL, &until) == 0)
            t++;
        rss = edmtest_anon_rss(model_start, model_len);
        max = rss > max ? rss : max;
    }
    return max;
}

int main(int argc, char **argv)
{
    pthread_rwlockattr_t attr;
    struct edmtest_counters c;
    double start = seconds_now();
    uint64_t rss_max;

    parse_options(argc, argv);
    edmtest_begin("torture", settings.ops ? 7 * 24 * 3600 : settings.seconds + 600);
    edmtest_stall_limit(STALL_SECONDS);
    printf("# torture --seed %" PRIu64 " --threads %u\n", settings.seed, settings.threads);
    fflush(stdout);
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&quiet, &attr);
    model_make();
    catch_faults();
    for (uint32_t i = 0; i < settings.threads; i++)
        worker_init(&workers[i], i);
    pattern_make();
    common_make();
    for (uint32_t i = 0; i < settings.threads; i++)
        EXPECT(pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]) == 0,
               "pthread_create");
    rss_max = watch_rss();
    region_verify(&workers[0], &common);
    c = edmtest_now();
    print_json(rss_max, &c, seconds_now() - start);
    check_edm(rss_max, &c);
    for (uint32_t i = 0; i < settings.threads; i++)
        heap_release(&workers[i]);
    edmtest_ok();
}
