/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What QEMU's -plugin loads. QEMU's internals have no stable ABI, so the plug-in registers its
 * device only in the very binary whose headers it was compiled with: the one with the build-id that
 * the builder (build-plugin) passed as OB_QEMU_BUILD_ID.
 */
#include "device.h"

#include <elf.h>
#include <link.h>

#include "qapi/qapi-commands-control.h"

/* What QEMU looks for. The rest of the plug-in API is not used. */
QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

/* Finds the GNU build-id among an object's notes, as hex. */
static char *notes_build_id(const uint8_t *notes, size_t size)
{
    size_t pos = 0;

    while (size - pos >= sizeof(ElfW(Nhdr))) {
        const ElfW(Nhdr) *note = (const void *)(notes + pos);
        size_t name = pos + sizeof(*note), desc = name + ROUND_UP(note->n_namesz, 4);

        if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == 4 &&
            !memcmp(notes + name, "GNU", 4)) {
            GString *hex = g_string_new(NULL);

            for (size_t i = 0; i < note->n_descsz; i++) {
                g_string_append_printf(hex, "%02x", notes[desc + i]);
            }
            return g_string_free(hex, false);
        }
        pos = desc + ROUND_UP(note->n_descsz, 4);
    }
    return NULL;
}

/* The first object is the program itself. */
static int program_build_id_cb(struct dl_phdr_info *object, size_t size, void *opaque)
{
    char **id = opaque;

    for (unsigned i = 0; i < object->dlpi_phnum && !*id; i++) {
        const ElfW(Phdr) *ph = &object->dlpi_phdr[i];

        if (ph->p_type == PT_NOTE) {
            *id = notes_build_id((const uint8_t *)object->dlpi_addr + ph->p_vaddr, ph->p_memsz);
        }
    }
    return 1;
}

static void refuse_build(void)
{
    VersionInfo *v = qmp_query_version(NULL);

    error_report(TYPE_OB_PCI ": built for QEMU %s (%s), this is %" PRId64 ".%" PRId64 ".%" PRId64
                             " (%s): run it through `outboard qemu`",
                 QEMU_VERSION, OB_QEMU_PACKAGE, v->qemu->major, v->qemu->minor, v->qemu->micro,
                 v->package);
    qapi_free_VersionInfo(v);
}

/* A non-zero return ends QEMU. */
QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
                                           char **argv)
{
    char *build_id = NULL;
    bool same;

    dl_iterate_phdr(program_build_id_cb, &build_id);
    same = build_id && !strcmp(build_id, OB_QEMU_BUILD_ID);
    g_free(build_id);
    if (!same) {
        refuse_build();
        return -1;
    }
    if (argc > 0) {
        error_report(TYPE_OB_PCI ": the plug-in takes no arguments, but got '%s'", argv[0]);
        return -1;
    }
    obq_pci_register();
    return 0;
}
