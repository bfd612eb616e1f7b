/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Events of QMP. QEMU's schema has none for a device whose process went, and a plug-in cannot add
 * to the schema; but QMP leaves names that begin with two underscores to others, and sends whatever
 * it is given. The kind of event that goes with it only says how often it may be sent.
 */
#include "device.h"

#include "qapi/qapi-emit-events.h"
#include "qapi/qmp-event.h"

void obq_event_send(ObPci *d, const char *name, const char *reason)
{
    QDict *event = qmp_event_build_dict(name), *data = qdict_new();
    char *path = object_get_canonical_path(OBJECT(d));

    if (DEVICE(d)->id) {
        qdict_put_str(data, "device", DEVICE(d)->id);
    }
    qdict_put_str(data, "path", path);
    if (reason) {
        qdict_put_str(data, "reason", reason);
        qdict_put_bool(data, "reconnect", d->link.away);
    }
    qdict_put(event, "data", data);
    qapi_event_emit(QAPI_EVENT_DEVICE_DELETED, event);
    qobject_unref(event);
    g_free(path);
}
