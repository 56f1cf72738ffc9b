/*
 * Runs when the shim is built: late_relocs_link LINKED OUT. Makes the relocations of jemalloc's
 * tables (section jem_tables) the last of .rela.dyn and takes them out of what the dynamic linker
 * is told to apply; where they are is written to the start of that section, for late_relocs.c.
 */
#include "late_relocs.h"
#include <elf.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *image;
static size_t image_size;

__attribute__((noreturn)) static void fail(const char *what, const char *name)
{
    fprintf(stderr, "late_relocs_link: %s: %s\n", name, what);
    exit(1);
}

static void image_read(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END))
        fail("cannot be read", path);
    image_size = (size_t)ftell(f);
    image = malloc(image_size);
    rewind(f);
    if (!image || fread(image, 1, image_size, f) != image_size)
        fail("cannot be read", path);
    fclose(f);
}

static void image_write(const char *path)
{
    unlink(path); /* programs may run with the old one */
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(image, 1, image_size, f) != image_size || fchmod(fileno(f), 0755) || fclose(f))
        fail("cannot be written", path);
}

static const Elf64_Shdr *section(const char *name)
{
    const Elf64_Ehdr *e = (const Elf64_Ehdr *)image;
    const Elf64_Shdr *s = (const Elf64_Shdr *)(image + e->e_shoff);
    const char *names = image + s[e->e_shstrndx].sh_offset;
    for (unsigned i = 0; i < e->e_shnum; i++)
        if (strcmp(names + s[i].sh_name, name) == 0)
            return &s[i];
    fail("no such section", name);
}

/* Those of the section go to the end; the others keep their order. Returns how many went. */
static size_t relocs_part(Elf64_Rela *r, size_t n, const Elf64_Shdr *tables)
{
    Elf64_Rela *late = calloc(n, sizeof(*late));
    size_t nlate = 0, kept = 0;
    if (!late)
        fail("no memory", "relocations");
    for (size_t i = 0; i < n; i++) {
        bool is_late = r[i].r_offset - tables->sh_addr < tables->sh_size;
        if (is_late && ELF64_R_TYPE(r[i].r_info) != R_X86_64_RELATIVE)
            fail("a relocation that needs a symbol", "jem_tables");
        if (is_late)
            late[nlate++] = r[i];
        else
            r[kept++] = r[i];
    }
    memcpy(r + kept, late, nlate * sizeof(*late));
    free(late);
    return nlate;
}

static void dynamic_shorten(size_t nlate)
{
    Elf64_Dyn *d = (Elf64_Dyn *)(image + section(".dynamic")->sh_offset);
    int found = 0;
    for (; d->d_tag != DT_NULL; d++) {
        if (d->d_tag == DT_RELASZ)
            d->d_un.d_val -= nlate * sizeof(Elf64_Rela);
        else if (d->d_tag == DT_RELACOUNT)
            d->d_un.d_val -= nlate;
        else
            continue;
        found++;
    }
    if (found != 2)
        fail("no DT_RELASZ and DT_RELACOUNT", ".dynamic");
}

int main(int argc, char **argv)
{
    if (argc != 3)
        fail("LINKED OUT", "arguments");
    image_read(argv[1]);
    const Elf64_Shdr *rela = section(".rela.dyn"), *tables = section("jem_tables");
    size_t n = rela->sh_size / sizeof(Elf64_Rela);
    size_t nlate = relocs_part((Elf64_Rela *)(image + rela->sh_offset), n, tables);
    if (!nlate)
        fail("has no relocations", "jem_tables");
    dynamic_shorten(nlate);
    static const struct late_relocs_place none;
    if (memcmp(image + tables->sh_offset, &none, sizeof(none)) != 0)
        fail("does not begin with the place of late_relocs.c", "jem_tables");
    *(struct late_relocs_place *)(image + tables->sh_offset) = (struct late_relocs_place){
        .offset = rela->sh_addr + (n - nlate) * sizeof(Elf64_Rela), .n = nlate};
    image_write(argv[2]);
    free(image);
    return 0;
}
