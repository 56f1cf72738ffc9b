/* Counters of an instance and their JSON. */
#ifndef EDM_STATS_H
#define EDM_STATS_H

#include <stdint.h>
#include <stdio.h>

#define LATENCY_BUCKETS 128

struct instance_stats {
    uint64_t faults_new, faults_existing, faults_limbo, faults_waited;
    uint64_t prefetch_fetched, prefetch_used;
    uint64_t leases, lease_limit;
    uint64_t evicted, evicted_zero, evicted_clean, evicted_busy;
    uint64_t forks, remaps, removes, unmaps;
    uint64_t again, poisoned;
    uint64_t latency[LATENCY_BUCKETS], latency_max_ns;
    uint64_t resident_max; /* highest charge seen, pages */
};

/* Adds one fault that took ns from its reading to its wake-up. */
void stats_latency_add(struct instance_stats *s, uint64_t ns);
/* The latency (ns) that `permille` of the faults did not pass; 0 when there were none. */
uint64_t stats_latency_at(const struct instance_stats *s, unsigned permille);

struct instance;
void stats_instance_json(struct instance *in, FILE *f);

#endif
