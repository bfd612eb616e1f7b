/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Results of the client. The server's errno is kept apart from ours by an offset: the kernel's
 * errnos end below 4096, so that -4096 - errno is none of them.
 */
#include "client/internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ERRNO_END 4096

int ob_peer_error(uint32_t error_no)
{
    return -ERRNO_END - (int)(error_no > 0 && error_no < ERRNO_END ? error_no : EINVAL);
}

enum ob_err_class ob_err_class(int rc)
{
    if (rc >= 0)
        return OB_ERR_NONE;
    if (rc <= -ERRNO_END)
        return OB_ERR_PEER;
    return rc == -ENOTCONN || rc == -ETIMEDOUT ? OB_ERR_TRANSPORT : OB_ERR_LOCAL;
}

int ob_peer_errno(int rc)
{
    return ob_err_class(rc) == OB_ERR_PEER ? -(rc + ERRNO_END) : 0;
}

bool ob_err_is_final(int rc)
{
    switch (ob_peer_errno(rc)) {
    case 0: /* no refusal */
    case EAGAIN:
    case EBUSY:
    case EINTR:
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
    case ENOSPC: /* a device may still use what the connection before had mapped */
        return false;
    default:
        return true;
    }
}

const char *ob_errno_text(int error)
{
    const char *text = strerrordesc_np(error);

    return text ? text : "unknown error";
}

const char *ob_strerror(int rc, char *buf, size_t size)
{
    if (ob_err_class(rc) == OB_ERR_PEER)
        snprintf(buf, size, "the server answered: %s", ob_errno_text(ob_peer_errno(rc)));
    else if (rc == -ENOTCONN)
        snprintf(buf, size, "the connection to the server is lost");
    else if (rc == -ETIMEDOUT)
        snprintf(buf, size, "the server did not answer in time");
    else if (rc >= 0)
        snprintf(buf, size, "no error");
    else
        snprintf(buf, size, "%s", ob_errno_text(-rc));
    return buf;
}
