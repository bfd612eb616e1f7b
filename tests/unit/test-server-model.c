/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Random commands against the server and the reference model (lib/model.h). A difference is shrunk
 * to the fewest commands that make it, which are printed. For hand use, in the environment:
 * SEED=NUMBER where to begin, TIME=SECONDS for how long, REPLAY=FILE commands as they are printed.
 */
#include "harness.h"
#include "model.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define LENGTH     120u /* commands of a sequence */
#define TIME_S     5
#define PATIENCE   20 /* seconds for a sequence */
#define ROUNDS_MAX 3u /* of shrinking */

struct sequence {
    struct model_command commands[LENGTH];
    unsigned count;
};

static uint64_t state;

static uint32_t rnd(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static uint64_t from_environment(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

/* ---- Running ------------------------------------------------------------------------------- */

/* In a process of its own: the server may crash. Its output goes to `said`, which may be -1. The
 * number of the command that went wrong, or -1. */
static int run(const struct sequence *s, int said)
{
    static volatile unsigned *at;
    int status, fds;
    pid_t pid;

    if (!at)
        at = mmap(NULL, sizeof(*at), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    test_tmpdir(); /* one for all */
    fflush(stdout);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        dup2(said, 2);
        alarm(PATIENCE);
        fds = test_count_fds();
        model_run(s->commands, s->count, at);
        CHECK_INT(test_settle_fds(fds), fds);
        _exit(0);
    }
    CHECK_INT(waitpid(pid, &status, 0), pid);
    if (WIFSIGNALED(status))
        dprintf(said, "%s\n", strsignal(WTERMSIG(status)));
    return status ? (int)*at : -1;
}

/* The same, without what it says. */
static int differs(const struct sequence *s)
{
    int nowhere = memfd_create("said", MFD_CLOEXEC), at;

    CHECK(nowhere >= 0);
    at = run(s, nowhere);
    close(nowhere);
    return at;
}

/* ---- Shrinking ----------------------------------------------------------------------------- */

/* Takes out what is not needed, from halves to single commands. */
static bool drop_commands(struct sequence *s)
{
    bool dropped = false;

    for (unsigned size = s->count / 2 ? s->count / 2 : 1; size > 0; size /= 2) {
        for (unsigned at = 0; at + size <= s->count;) {
            struct sequence less = *s;

            memmove(less.commands + at, less.commands + at + size,
                    (less.count - at - size) * sizeof(less.commands[0]));
            less.count -= size;
            if (differs(&less) >= 0) {
                *s = less;
                dropped = true;
            } else {
                at += size;
            }
        }
    }
    return dropped;
}

/* Makes numbers smaller. */
static bool lower_numbers(struct sequence *s)
{
    static const uint32_t below[] = { 1, 8, 1024 };
    bool lowered = false;

    for (unsigned i = 0; i < 4 * s->count; i++) {
        struct sequence less = *s;
        struct model_command *c = &less.commands[i / 4];
        uint32_t *number = i % 4 == 0 ? &c->a : i % 4 == 1 ? &c->b : i % 4 == 2 ? &c->c : &c->d;
        uint32_t before = *number;

        for (unsigned k = 0; k < 3; k++) {
            *number = before % below[k];
            if (*number < before && differs(&less) >= 0) {
                *s = less;
                lowered = true;
                break;
            }
        }
    }
    return lowered;
}

/* at: the number of the command that shows the difference. */
static void shrink(struct sequence *s, int at)
{
    s->count = (unsigned)at + 1;
    for (unsigned i = 0; i < ROUNDS_MAX; i++)
        if (!drop_commands(s) && !lower_numbers(s))
            break;
}

static _Noreturn void report(struct sequence *s, uint64_t seed, int at)
{
    shrink(s, at);
    fprintf(stderr, "SEED=%llu leads to a difference. The fewest commands that make it:\n",
            (unsigned long long)seed);
    for (unsigned i = 0; i < s->count; i++) {
        const struct model_command *c = &s->commands[i];

        fprintf(stderr, "    %s %u %u %u %u\n", model_op_name(c->op), c->a, c->b, c->c, c->d);
    }
    run(s, 2);
    test_fail(__FILE__, __LINE__, "the server is not what the model says");
}

/* ---- Sequences ----------------------------------------------------------------------------- */

/* What chance alone seldom finds the way to. Other commands come in between. */
static const struct model_command moves[] = {
    { OP_state, 2, 0, 0, 0 },    { OP_stream, 399, 0, 0, 0 }, { OP_stream, 399, 0, 0, 0 },
    { OP_state, 1, 0, 0, 0 },    { OP_state, 3, 0, 0, 0 },    { OP_stream, 399, 0, 0, 0 },
    { OP_stream, 399, 0, 0, 0 }, { OP_state, 1, 0, 0, 0 },
};
static const struct model_command outlives[] = {
    { OP_map, 3, 3, 7, 0 }, { OP_hold, 3, 0, 0, 2 }, { OP_leave, 0, 0, 0, 0 },
    { OP_log, 1, 3, 0, 0 }, { OP_put, 0, 0, 0, 0 },  { OP_report, 0, 22, 0, 0 },
};
/* Put into the ring as late as can be (15, model_regions.c). */
static const struct model_command late[] = {
    { OP_post, 1, 8, 3, 15 },  { OP_leave, 0, 0, 0, 0 },  { OP_write, 0, 8, 3, 15 },
    { OP_reset, 0, 0, 0, 0 },  { OP_write, 0, 8, 3, 79 }, { OP_state, 2, 0, 0, 0 },
    { OP_post, 0, 16, 3, 15 }, { OP_reset, 0, 0, 0, 0 },
};
static const struct {
    const struct model_command *commands;
    unsigned count;
} scripts[] = { { moves, 8 }, { outlives, 6 }, { late, 8 } };

/* Each sequence has favourites among the commands, and does without others: what takes many of a
 * few kinds is so much likelier. */
static void generate(struct sequence *s, uint64_t seed)
{
    /* How often each is wanted, in the order of the commands. */
    static const uint8_t wanted[MODEL_OP_COUNT] = { 16, 7, 1, 12, 6, 6, 5, 5, 4, 3, 8, 1,
                                                    8,  4, 8, 4,  8, 8, 2, 4, 7, 2, 6 };
    unsigned weights[MODEL_OP_COUNT], total = 1, script, next = 0;

    state = seed;
    script = rnd() % 3;
    for (unsigned i = 0; i < MODEL_OP_COUNT; i++) {
        weights[i] = wanted[i] * (rnd() % 4) * (rnd() % 2 + 1) + (i == 0);
        total += weights[i] - (i == 0);
    }
    s->count = LENGTH;
    for (unsigned i = 0; i < s->count; i++) {
        unsigned op = 0, pick = rnd() % total;

        while (pick >= weights[op])
            pick -= weights[op++];
        s->commands[i] = (struct model_command){ op, rnd(), rnd(), rnd(), rnd() };
        if (rnd() % 4 == 0 && next < scripts[script].count)
            s->commands[i] = scripts[script].commands[next++];
    }
}

static bool load(struct sequence *s, const char *path)
{
    FILE *file = fopen(path, "r");
    struct model_command c;
    char name[16];

    s->count = 0;
    while (file && s->count < LENGTH &&
           /* NOLINTNEXTLINE(cert-err34-c): the numbers are those that this test printed */
           fscanf(file, "%15s %u %u %u %u", name, &c.a, &c.b, &c.c, &c.d) == 5) {
        c.op = 0;
        while (c.op < MODEL_OP_COUNT && strcmp(name, model_op_name(c.op)) != 0)
            c.op++;
        if (c.op == MODEL_OP_COUNT)
            test_fail(__FILE__, __LINE__, "%s: no command '%s'", path, name);
        s->commands[s->count++] = c;
    }
    if (file)
        fclose(file);
    return s->count > 0;
}

TEST_TIMEOUT(model, "random-commands-do-what-the-model-says", 7200)
{
    uint64_t seed = from_environment("SEED", (uint64_t)test_now_ms());
    int64_t end = test_now_ms() + 1000 * (int64_t)from_environment("TIME", TIME_S);
    const char *replay = getenv("REPLAY");
    static struct sequence s;
    unsigned rounds = 0;
    int at;

    if (replay && !load(&s, replay))
        test_fail(__FILE__, __LINE__, "%s has no commands", replay);
    printf("SEED=%llu\n", (unsigned long long)seed);
    do {
        if (!replay)
            generate(&s, seed + rounds);
        at = run(&s, 2);
        if (at >= 0)
            report(&s, seed + rounds, at);
        rounds++;
    } while (!replay && test_now_ms() < end);
    printf("%u sequences of %u commands\n", rounds, LENGTH);
}

TEST_TIMEOUT(shrunk, "a-difference-is-shrunk-to-the-commands-that-make-it", 120)
{
    static struct sequence s;
    unsigned seed = 0;
    int at;

    model_lies = true;
    do {
        generate(&s, ++seed);
        s.count = 40; /* will do, and takes less time */
        at = differs(&s);
    } while (at < 0);
    shrink(&s, at);
    CHECK_INT(s.count, 2);
    CHECK(s.commands[0].op == OP_write || s.commands[0].op == OP_post ||
          s.commands[0].op == OP_multi);
    CHECK_INT(s.commands[1].op, OP_reset);
    CHECK(s.commands[0].a < 64 && s.commands[1].a == 0);
}
