/* SPDX-License-Identifier: BSD-3-Clause */
/* Users and groups on the command line: by name or by number. */
#include "serve.h"
#include "tools.h"

#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>

#define ID_MAX 0xfffffffell /* (uid_t)-1 is no user */

int serve_parse_user(const char *who, const char *name, uid_t *uid, gid_t *gid)
{
    const struct passwd *user;
    long long number;

    if (parse_number(name, 10, 0, ID_MAX, &number)) {
        user = getpwuid((uid_t)number);
        *uid = (uid_t)number;
    } else {
        user = getpwnam(name);
        if (!user)
            return fail_usage(who, "there is no user '%s'", name);
        *uid = user->pw_uid;
    }
    if (gid)
        *gid = user ? user->pw_gid : SERVE_NO_ID;
    return 0;
}

static int parse_group(const char *who, const char *name, gid_t *gid)
{
    const struct group *group;
    long long number;

    if (parse_number(name, 10, 0, ID_MAX, &number)) {
        *gid = (gid_t)number;
        return 0;
    }
    group = getgrnam(name);
    if (!group)
        return fail_usage(who, "there is no group '%s'", name);
    *gid = group->gr_gid;
    return 0;
}

int serve_parse_owner(const char *who, const char *text, struct serve_owner *out)
{
    char user[64];
    size_t len = strcspn(text, ":");
    int status = 0;

    if (len >= sizeof(user))
        return fail_usage(who, "there is no user '%.*s'", (int)len, text);
    snprintf(user, sizeof(user), "%.*s", (int)len, text);
    *out = (struct serve_owner){ SERVE_NO_ID, SERVE_NO_ID };
    if (len > 0)
        status = serve_parse_user(who, user, &out->uid, &out->gid);
    if (!status && text[len] == ':')
        status = parse_group(who, text + len + 1, &out->gid);
    return status;
}
