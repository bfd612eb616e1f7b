/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which server: the property `socket`, a path or a SocketAddress, and the flat socket.type= and
 * socket.path= that a key=value command line can spell; and connecting to it.
 */
#include "device.h"

#include "monitor/monitor.h"
#include "qapi/qapi-visit-sockets.h"
#include "qapi/visitor-impl.h"
#include "qapi/visitor.h"

/* Starts with a GenericAlternate, as visit_start_alternate() fills it. */
struct socket_form {
    QType type;
};

static SocketAddress *socket_from_path(const char *path)
{
    SocketAddress *addr = g_new0(SocketAddress, 1);

    addr->type = SOCKET_ADDRESS_TYPE_UNIX;
    addr->u.q_unix.path = g_strdup(path);
    return addr;
}

/* Asks the visitor what it holds before visiting it: a value can be visited only once. The visitor
 * of -global and of the human monitor's qom-set knows only strings, and cannot be asked. */
static SocketAddress *socket_visit_in(Visitor *v, const char *name, Error **errp)
{
    struct socket_form *form = NULL;
    SocketAddress *addr = NULL;
    char *path = NULL;
    bool structured = false;

    if (v->start_alternate) {
        if (!visit_start_alternate(v, name, (GenericAlternate **)&form, sizeof(*form), errp)) {
            return NULL;
        }
        structured = form->type == QTYPE_QDICT;
        visit_end_alternate(v, (void **)&form);
        g_free(form);
    }
    if (structured) {
        return visit_type_SocketAddress(v, name, &addr, errp) ? addr : NULL;
    }
    if (!visit_type_str(v, name, &path, errp)) {
        return NULL;
    }
    addr = socket_from_path(path);
    g_free(path);
    return addr;
}

static void socket_set(Object *obj, Visitor *v, const char *name, void *opaque, Error **errp)
{
    ObPci *d = OB_PCI(obj);
    SocketAddress *addr;

    if (DEVICE(obj)->realized) {
        error_setg(errp, "'socket' cannot be changed while the device is there: device_del it and "
                         "device_add it with the other socket");
        return;
    }
    addr = socket_visit_in(v, name, errp);
    if (addr) {
        qapi_free_SocketAddress(d->socket);
        d->socket = addr;
    }
}

static void socket_get(Object *obj, Visitor *v, const char *name, void *opaque, Error **errp)
{
    ObPci *d = OB_PCI(obj);

    if (!d->socket) {
        error_setg(errp, "'socket' is not set");
        return;
    }
    visit_type_SocketAddress(v, name, &d->socket, errp);
}

static void flat_set(char **field, const char *value)
{
    g_free(*field);
    *field = g_strdup(value);
}

static void type_set(Object *obj, const char *value, Error **errp)
{
    flat_set(&OB_PCI(obj)->socket_type, value);
}

static void path_set(Object *obj, const char *value, Error **errp)
{
    flat_set(&OB_PCI(obj)->socket_path, value);
}

void obq_socket_class_init(ObjectClass *klass)
{
    object_class_property_add(klass, "socket", "str or SocketAddress", socket_get, socket_set, NULL,
                              NULL);
    object_class_property_set_description(klass, "socket",
                                          "path of the server's UNIX socket, or a SocketAddress");
    object_class_property_add_str(klass, "socket.type", NULL, type_set);
    object_class_property_add_str(klass, "socket.path", NULL, path_set);
    object_class_property_set_description(klass, "socket.type", "unix");
    object_class_property_set_description(klass, "socket.path", "path of the server's UNIX socket");
}

/* One socket out of the forms it may have come in. */
bool obq_socket_settle(ObPci *d, Error **errp)
{
    if (d->socket && (d->socket_type || d->socket_path)) {
        error_setg(errp, "'socket' is given twice: as a whole, and as socket.type, socket.path");
        return false;
    }
    if (d->socket_type && strcmp(d->socket_type, "unix") != 0) {
        error_setg(errp, "socket.type=%s is not supported: use socket.type=unix", d->socket_type);
        return false;
    }
    if (d->socket_path) {
        d->socket = socket_from_path(d->socket_path);
    }
    if (!d->socket) {
        error_setg(errp, "'socket' is missing: socket=PATH says where the server listens (the "
                         "monitor of an older QEMU drops an object here: give it the path)");
        return false;
    }
    if (d->socket->type == SOCKET_ADDRESS_TYPE_UNIX) {
        UnixSocketAddress *un = &d->socket->u.q_unix;

        if (un->has_abstract && un->abstract) {
            error_setg(errp, "abstract sockets are not supported: use a path");
            return false;
        }
        if (!un->path[0]) {
            error_setg(errp, "'socket' is empty: it is the path where the server listens");
            return false;
        }
    } else if (d->socket->type != SOCKET_ADDRESS_TYPE_FD) {
        error_setg(errp, "'socket' of type %s is not supported: use unix (a path) or fd",
                   SocketAddressType_str(d->socket->type));
        return false;
    }
    return true;
}

char *obq_socket_name(const SocketAddress *addr)
{
    return addr->type == SOCKET_ADDRESS_TYPE_FD ? g_strdup_printf("fd %s", addr->u.fd.str)
                                                : g_strdup(addr->u.q_unix.path);
}

int obq_socket_connect(ObPci *d, const struct ob_client_options *opt, struct ob_client **out,
                       Error **errp)
{
    char why[512] = "";
    int fd, rc;

    if (d->socket->type == SOCKET_ADDRESS_TYPE_UNIX) {
        rc = ob_client_connect(d->socket->u.q_unix.path, opt, out, why, sizeof(why));
    } else {
        fd = monitor_fd_param(monitor_cur(), d->socket->u.fd.str, errp);
        if (fd < 0) {
            return -1;
        }
        rc = ob_client_connect_fd(fd, opt, out, why, sizeof(why));
    }
    if (rc < 0) {
        error_setg(errp, "%s", why);
        return -1;
    }
    return 0;
}
