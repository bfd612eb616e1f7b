/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is said of clients. Each can make us say something as often as it likes (by coming and
 * going, if nothing else), and so fill the disk that a log is on: of each level there are a few
 * lines a second, and then one that says how many there were more. Who asked for OB_LOG_DEBUG
 * wants all of it.
 */
#include "server/internal.h"

#include <stdarg.h>
#include <stdio.h>

#define LINES_A_SECOND 8u

static bool may_say(struct ob_server *server, enum ob_log_level level)
{
    struct ob_lines *said = &server->lines[level];
    int64_t now_ns = ob_now_ns();
    char line[64];

    if (said->count == 0 || now_ns - said->since_ns >= 1000000000) {
        unsigned more = said->count > LINES_A_SECOND ? said->count - LINES_A_SECOND : 0;

        *said = (struct ob_lines){ .since_ns = now_ns };
        if (more) {
            snprintf(line, sizeof(line), "%u more lines like these were left out", more);
            server->ops.log(server->opaque, level, line);
        }
    }
    return ++said->count <= LINES_A_SECOND;
}

void ob_log(struct ob_server *server, enum ob_log_level level, const char *fmt, ...)
{
    char line[256];
    va_list ap;

    if (!server->ops.log || (level < OB_LOG_DEBUG && !may_say(server, level)))
        return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    server->ops.log(server->opaque, level, line);
}
