#include "bss.h"
#include "../config/log.h"
#include "managed.h"
#include "nursery.h"
#include <elf.h>
#include <string.h>
#include <sys/auxv.h>

struct range {
    uint64_t start, end;
};

static struct range managed; /* once it is */

/* Whole pages behind what the program's file has of its last writable segment; empty: there are
 * none. Of statically linked programs there is no telling, but they do not load us. */
static struct range bss_find(void)
{
    const Elf64_Phdr *p = (const Elf64_Phdr *)getauxval(AT_PHDR);
    size_t n = getauxval(AT_PHNUM);
    uint64_t bias = 0;
    bool known = false;
    struct range r = {0, 0};
    for (size_t i = 0; p && i < n && !known; i++) {
        known = p[i].p_type == PT_PHDR;
        bias = (uint64_t)p - p[i].p_vaddr;
    }
    for (size_t i = 0; known && i < n; i++) {
        if (p[i].p_type != PT_LOAD || !(p[i].p_flags & PF_W) || p[i].p_memsz <= p[i].p_filesz)
            continue;
        r.start = PAGE_UP(bias + p[i].p_vaddr + p[i].p_filesz);
        r.end = PAGE_UP(bias + p[i].p_vaddr + p[i].p_memsz);
    }
    return r.start < r.end ? r : (struct range){0, 0};
}

AT_LOAD void bss_manage(void)
{
    if (!(shim_config.settings.manage & EDM_MANAGE_BSS))
        return;
    struct range r = bss_find();
    uint64_t len = r.end - r.start;
    if (!len || len < shim_config.threshold)
        return;
    nursery_close();
    if (!managed_open())
        return;
    managed_grow(len);
    if (!managed_attached())
        return;
    long ret = managed_adopt(r.start, len);
    if (ret)
        edm_warn("the program's zeroed data stays unmanaged: %s", strerror((int)-ret));
    else
        managed = r;
}

bool bss_overlaps(uint64_t *start, uint64_t *end)
{
    if (*start >= managed.end || *end <= managed.start)
        return false;
    *start = *start < managed.start ? managed.start : *start;
    *end = *end > managed.end ? managed.end : *end;
    return true;
}
