/*
 * Keeps a thread that answers off the CPU that it is asked from. Ranks of one machine talk over
 * TCP: the kernel wakes whoever is sent something on the sender's CPU, for it expects the sender to
 * sleep; but the sender is a handler that looks for its answer there and cannot go elsewhere, and
 * neither can the program that it serves. For one thread: the calls are to be made by that.
 */
#ifndef EDM_KEEP_OFF_H
#define EDM_KEEP_OFF_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

struct keep_off {
    uint32_t machine;  /* this one's number; 0: it cannot be told */
    unsigned met;      /* questions in a row that came from the CPU that the thread was on */
    bool off;          /* the thread is kept off a CPU */
    uint64_t asked_ns; /* when there was the last question of this machine */
    cpu_set_t all;     /* where it may be else */
};

/* The machine's number, the same for all its containers until it is booted again. 0: unknown. */
uint32_t keep_off_machine(void);
/* The CPU that the caller is on, counted from 1; 0: unknown. */
uint32_t keep_off_cpu(void);
void keep_off_init(struct keep_off *k);
/* A question has come, from that CPU (counted from 1) of that machine. now_ns: CLOCK_MONOTONIC. */
void keep_off_asked(struct keep_off *k, uint32_t machine, uint32_t cpu, uint64_t now_ns);
/* To be called now and then: a second after the last question the thread may be anywhere again. */
void keep_off_tick(struct keep_off *k, uint64_t now_ns);

#endif
