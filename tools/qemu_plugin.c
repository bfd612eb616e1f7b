/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Keeps the plug-ins. One that came with the installation is taken as it is:
 *     PREFIX/lib/outboard/qemu/BUILD-ID/vfio-user-pci.so
 * Else there is a cache, filled by qemu/build-plugin:
 *     CACHE/plugins/BUILD-ID/HASH/vfio-user-pci.so
 * HASH covers everything of ours that goes into a plug-in, so that no Outboard ever loads what
 * another one built.
 */
#include "qemu_plugin.h"
#include "tools.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PLUGIN_FILE "vfio-user-pci.so"

/* Where our own parts are: beside the executable in a build directory, or installed. */
struct places {
    char sources[PATH_MAX]; /* of the plug-in, with its builder */
    char include[PATH_MAX];
    char library[PATH_MAX];
    char ready[PATH_MAX]; /* directory of plug-ins that came with the installation, or empty */
};

static bool join(char out[PATH_MAX], const char *dir, const char *rest)
{
    return snprintf(out, PATH_MAX, "%s/%s", dir, rest) < PATH_MAX;
}

static bool strip_last(char *path)
{
    char *slash = strrchr(path, '/');

    if (!slash || slash == path)
        return false;
    *slash = '\0';
    return true;
}

/* First line of a small file. */
static bool read_line(const char *path, char line[PATH_MAX])
{
    FILE *file = fopen(path, "re");

    if (!file)
        return false;
    bool ok = fgets(line, PATH_MAX, file) != NULL;
    fclose(file);
    if (ok)
        line[strcspn(line, "\n")] = '\0';
    return ok;
}

/* A build directory has the file qemu/source-root, which meson wrote. */
static int find_places(struct places *places)
{
    char root[PATH_MAX] = "";
    char mark[PATH_MAX], source[PATH_MAX];

    if (readlink("/proc/self/exe", root, sizeof(root) - 1) < 0)
        return fail("qemu", "cannot find my own files: %s", strerror(errno));
    /* The file, then its directory. NOLINTNEXTLINE(misc-redundant-expression): each strips more */
    if (!strip_last(root) || !strip_last(root) || !join(mark, root, "qemu/source-root"))
        return fail("qemu", "cannot find my own files beside %s", root);
    places->ready[0] = '\0';
    bool fits;
    if (read_line(mark, source))
        fits = join(places->sources, source, "qemu") && join(places->include, source, "include") &&
               join(places->library, root, "liboutboard.a");
    else
        fits = join(places->sources, root, OUTBOARD_DATADIR "/outboard/qemu") &&
               join(places->include, root, OUTBOARD_INCLUDEDIR) &&
               join(places->library, root, OUTBOARD_LIBDIR "/liboutboard.a") &&
               join(places->ready, root, "lib/outboard/qemu");
    return fits ? 0 : fail("qemu", "the path %s is too long", root);
}

/* 64-bit FNV-1a: this tells versions apart, it does not defend against anybody. */
static int hash_file(const char *path, uint64_t *hash)
{
    unsigned char buf[65536];
    ssize_t n;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return fail("qemu", "%s: %s: the installation is not complete", path, strerror(errno));
    while ((n = read(fd, buf, sizeof(buf))) > 0)
        for (ssize_t i = 0; i < n; i++)
            *hash = (*hash ^ buf[i]) * UINT64_C(0x100000001b3);
    int rc = n < 0 ? fail("qemu", "%s: %s", path, strerror(errno)) : 0;
    close(fd);
    return rc;
}

static int is_source(const struct dirent *entry)
{
    const char *dot = strrchr(entry->d_name, '.');

    return (dot && (strcmp(dot, ".c") == 0 || strcmp(dot, ".h") == 0)) ||
           strcmp(entry->d_name, "build-plugin") == 0;
}

static int hash_dir(const char *dir, uint64_t *hash)
{
    struct dirent **entries;
    char path[PATH_MAX];
    int n = scandir(dir, &entries, is_source, alphasort);

    if (n < 0)
        return fail("qemu", "%s: %s: the installation is not complete", dir, strerror(errno));
    int rc = 0;
    for (int i = 0; i < n; i++) {
        if (rc == 0)
            rc = join(path, dir, entries[i]->d_name) ? hash_file(path, hash)
                                                     : fail("qemu", "the path %s is too long", dir);
        free(entries[i]);
    }
    free(entries);
    return rc;
}

static int hash_ours(const struct places *places, uint64_t *hash)
{
    char headers[PATH_MAX];
    int rc;

    if (!join(headers, places->include, "outboard"))
        return fail("qemu", "the path %s is too long", places->include);
    *hash = UINT64_C(0xcbf29ce484222325);
    if ((rc = hash_file(places->library, hash)) != 0 || (rc = hash_dir(headers, hash)) != 0)
        return rc;
    return hash_dir(places->sources, hash);
}

static int cache_dir(char out[PATH_MAX])
{
    const char *own = getenv("OUTBOARD_CACHE");
    const char *xdg = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    char given[PATH_MAX];
    bool fits;

    if (own && *own)
        fits = snprintf(given, sizeof(given), "%s", own) < PATH_MAX;
    else if (xdg && *xdg)
        fits = join(given, xdg, "outboard");
    else if (home && *home)
        fits = join(given, home, ".cache/outboard");
    else
        return fail("qemu", "where shall the plug-in be kept? Neither HOME nor OUTBOARD_CACHE "
                            "is set");
    /* Absolute, because the builder and QEMU work in other directories. */
    if (fits && given[0] != '/') {
        char cwd[PATH_MAX];
        fits = getcwd(cwd, sizeof(cwd)) && join(out, cwd, given);
    } else if (fits) {
        memcpy(out, given, strlen(given) + 1);
    }
    return fits ? 0 : fail("qemu", "the path of the cache directory is too long");
}

/* Only file descriptors 0 to 2 go to the builder, whose stdout is our stderr: stdout is ours. */
static int run_builder(char **argv)
{
    pid_t parent = getpid();
    pid_t child = fork();
    int status;

    if (child < 0)
        return fail("qemu", "cannot start the builder: %s", strerror(errno));
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM); /* it cleans up when we are killed */
        if (getppid() != parent)
            _exit(1);
        dup2(STDERR_FILENO, STDOUT_FILENO);
        execv(argv[0], argv);
        fail("qemu", "%s: %s", argv[0], strerror(errno));
        _exit(1);
    }
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return fail("qemu", "the builder got lost: %s", strerror(errno));
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : 1;
}

static int build(const struct places *places, const struct ob_qemu *qemu, const char *cache,
                 const struct ob_plugin_options *opt, const char *plugin)
{
    char builder[PATH_MAX];
    const char *argv[20];
    int n = 0;

    if (!join(builder, places->sources, "build-plugin"))
        return fail("qemu", "the path %s is too long", places->sources);
    argv[n++] = builder;
    argv[n++] = "--qemu";
    argv[n++] = qemu->path;
    argv[n++] = "--build-id";
    argv[n++] = qemu->build_id;
    argv[n++] = "--cache";
    argv[n++] = cache;
    argv[n++] = "--plugin";
    argv[n++] = plugin;
    argv[n++] = "--include";
    argv[n++] = places->include;
    argv[n++] = "--library";
    argv[n++] = places->library;
    if (opt->qemu_source) {
        argv[n++] = "--qemu-source";
        argv[n++] = opt->qemu_source;
    }
    if (opt->rebuild)
        argv[n++] = "--force";
    argv[n] = NULL;
    return run_builder((char **)argv);
}

int ob_plugin_get(const struct ob_qemu *qemu, const struct ob_plugin_options *opt,
                  char path[PATH_MAX])
{
    struct places places = { 0 };
    char cache[PATH_MAX], rest[PATH_MAX];
    uint64_t hash = 0;
    int rc = find_places(&places);

    if (rc != 0)
        return rc;
    snprintf(rest, sizeof(rest), "%s/" PLUGIN_FILE, qemu->build_id);
    if (!opt->rebuild && places.ready[0] && join(path, places.ready, rest) &&
        access(path, R_OK) == 0)
        return 0;
    if ((rc = hash_ours(&places, &hash)) != 0 || (rc = cache_dir(cache)) != 0)
        return rc;
    snprintf(rest, sizeof(rest), "plugins/%s/%016llx/" PLUGIN_FILE, qemu->build_id,
             (unsigned long long)hash);
    if (!join(path, cache, rest))
        return fail("qemu", "the path of the cache directory is too long");
    if (!opt->rebuild && access(path, R_OK) == 0)
        return 0;
    return build(&places, qemu, cache, opt, path);
}

int ob_plugin_argument(const char *path, char *arg, size_t size)
{
    size_t n = 0;

    for (; *path; path++) {
        if (n + 3 > size)
            return -ENAMETOOLONG;
        if (*path == ',')
            arg[n++] = ',';
        arg[n++] = *path;
    }
    arg[n] = '\0';
    return 0;
}
