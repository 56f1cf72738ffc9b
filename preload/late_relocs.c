#include "late_relocs.h"

#include <elf.h>

extern const char __ehdr_start[] __attribute__((visibility("hidden")));

/* volatile: the compiler must not believe the zeros. First in the tables' section, which the linker
 * thus meets before at_load: the dynamic linker writes to the last page of data in any case. */
static const volatile struct late_relocs_place place
    __attribute__((section("jem_tables"), used)) = {0};

void late_relocs_apply(void)
{
    uint64_t base = (uint64_t)__ehdr_start, n = place.n;
    const Elf64_Rela *r = (const Elf64_Rela *)(base + place.offset);
    for (uint64_t i = 0; i < n; i++)
        *(volatile uint64_t *)(base + r[i].r_offset) = base + (uint64_t)r[i].r_addend;
}
