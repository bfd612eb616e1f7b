/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Finds a QEMU binary and reads its build-id: the number that the linker derived from all of its
 * contents, in an ELF note. The device uses QEMU's internals, so a plug-in fits one build only.
 */
#include "qemu_plugin.h"
#include "tools.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NOTES_MAX 65536u /* bytes of one note segment that we look at */
#define PHDRS_MAX 256u

static bool is_program(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

/* As execvp() searches. An empty part of PATH is the current directory. */
static bool search_path(const char *name, char found[PATH_MAX])
{
    const char *path = getenv("PATH");

    for (const char *dir = path ? path : "/usr/local/bin:/usr/bin:/bin"; dir;) {
        const char *end = strchrnul(dir, ':');
        int len = (int)(end - dir);

        if (snprintf(found, PATH_MAX, "%.*s/%s", len ? len : 1, len ? dir : ".", name) < PATH_MAX &&
            is_program(found))
            return true;
        dir = *end ? end + 1 : NULL;
    }
    return false;
}

static bool read_exactly(int fd, void *buf, size_t size, uint64_t offset)
{
    return offset <= INT64_MAX && pread(fd, buf, size, (off_t)offset) == (ssize_t)size;
}

static uint64_t align4(uint64_t n)
{
    return (n + 3) & ~(uint64_t)3;
}

/* Looks for the build-id among the notes. Returns its length, or 0. */
static size_t find_build_id(const uint8_t *notes, size_t size, uint8_t id[OB_BUILD_ID_MAX])
{
    Elf64_Nhdr note;

    for (uint64_t at = 0; at + sizeof(note) <= size;) {
        memcpy(&note, notes + at, sizeof(note));
        uint64_t name = at + sizeof(note);
        uint64_t desc = name + align4(note.n_namesz);

        if (desc + note.n_descsz > size)
            break;
        if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == sizeof(ELF_NOTE_GNU) &&
            memcmp(notes + name, ELF_NOTE_GNU, sizeof(ELF_NOTE_GNU)) == 0 && note.n_descsz > 0 &&
            note.n_descsz <= OB_BUILD_ID_MAX) {
            memcpy(id, notes + desc, note.n_descsz);
            return note.n_descsz;
        }
        at = desc + align4(note.n_descsz);
    }
    return 0;
}

static size_t build_id_of_segment(int fd, const Elf64_Phdr *phdr, uint8_t id[OB_BUILD_ID_MAX])
{
    size_t len = 0;

    if (phdr->p_type != PT_NOTE || phdr->p_filesz > NOTES_MAX)
        return 0;
    uint8_t *notes = malloc(phdr->p_filesz);
    if (notes && read_exactly(fd, notes, phdr->p_filesz, phdr->p_offset))
        len = find_build_id(notes, phdr->p_filesz, id);
    free(notes);
    return len;
}

/* Returns NULL and sets hex, or what is wrong with the file. */
static const char *read_build_id(int fd, char hex[2 * OB_BUILD_ID_MAX + 1])
{
    uint8_t id[OB_BUILD_ID_MAX];
    size_t len = 0;
    Elf64_Ehdr ehdr;
    Elf64_Phdr phdr;

    if (!read_exactly(fd, &ehdr, sizeof(ehdr), 0) || memcmp(ehdr.e_ident, ELFMAG, SELFMAG) != 0)
        return "is not a program file but perhaps a script: name the qemu-system-* that it runs";
    if (ehdr.e_ident[EI_CLASS] != ELFCLASS64 || ehdr.e_phentsize != sizeof(phdr))
        return "is not a 64-bit program";
    for (unsigned i = 0; i < ehdr.e_phnum && i < PHDRS_MAX && len == 0; i++)
        if (read_exactly(fd, &phdr, sizeof(phdr), ehdr.e_phoff + i * sizeof(phdr)))
            len = build_id_of_segment(fd, &phdr, id);
    if (len == 0)
        return "has no build-id, by which its plug-in is known: link it with -Wl,--build-id";
    for (size_t i = 0; i < len; i++)
        snprintf(hex + 2 * i, 3, "%02x", id[i]);
    return NULL;
}

int ob_qemu_find(const char *name, struct ob_qemu *qemu)
{
    char found[PATH_MAX];

    if (strchr(name, '/'))
        snprintf(found, sizeof(found), "%s", name);
    else if (!search_path(name, found))
        return fail("qemu",
                    "there is no '%s' in the PATH; on Debian: apt-get install "
                    "qemu-system-x86",
                    name);
    if (!realpath(found, qemu->path))
        return fail("qemu", "%s: %s", name, strerror(errno));
    if (!is_program(qemu->path))
        return fail("qemu", "%s is not a program", name);
    int fd = open(qemu->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail("qemu", "%s: %s", qemu->path, strerror(errno));
    const char *wrong = read_build_id(fd, qemu->build_id);
    close(fd);
    return wrong ? fail("qemu", "%s %s", qemu->path, wrong) : 0;
}
