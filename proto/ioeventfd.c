/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What can be an ioeventfd. The rules are KVM's: what breaks them makes KVM refuse the eventfd,
 * and QEMU end itself.
 */
#include "outboard/proto.h"

bool ob_ioeventfd_valid(const struct ob_ioeventfd *e, uint64_t region_size)
{
    bool sized = e->size == 1 || e->size == 2 || e->size == 4 || e->size == 8;

    if (e->flags & ~(OB_IOEVENTFD_DATAMATCH | OB_IOEVENTFD_PIO))
        return false;
    if (!sized && (e->size != 0 || (e->flags & OB_IOEVENTFD_DATAMATCH)))
        return false;
    return e->offset < region_size && e->size <= region_size - e->offset;
}

bool ob_ioeventfds_clash(const struct ob_ioeventfd *a, const struct ob_ioeventfd *b)
{
    bool both_match = a->flags & b->flags & OB_IOEVENTFD_DATAMATCH;

    return a->offset == b->offset && (a->size == b->size || a->size == 0 || b->size == 0) &&
           (!both_match || a->datamatch == b->datamatch);
}
