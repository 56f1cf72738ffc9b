/*
 * Large zeroed data of the program (`manage = "bss"`): static arrays, which no call makes.
 */
#ifndef EDM_BSS_H
#define EDM_BSS_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Attaches and makes the program's zeroed data managed, at the same address and with the same
 * contents, when the setting asks for it and there is attach_threshold of it or more; else nothing.
 * Once, by the constructor: no other thread may use it meanwhile.
 */
void bss_manage(void);
/* The part of [*start, *end) that is managed zeroed data; false: none. */
bool bss_overlaps(uint64_t *start, uint64_t *end);

#endif
