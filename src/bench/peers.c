/*
 * The peers' process: other programs' answer to the same cells, on the same machine, in turn with ours.
 *
 * One JSON object per line.  To it
 *     {"row", "variant", "dtype", "dims": {"N": 8192, ...}, "device": "cuda", "seconds", "value",
 *      "teacher", "student", "data"}
 * and back
 *     {"peers": [{"name", "low", "median", "high", "samples", "bytes", "value"} or {"name", "error"}]}
 * with times in seconds.  `value` is the sum of the cell's losses, null where there is none; models and
 * data are null but for programs, whose `bytes` are a process's resident peak.
 */
#include "bench/bench.h"

#include <math.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

struct bench_peers {
    const char *command;
    pid_t process; /* 0: there is none */
    FILE *to, *from;
};

/* `command` with its ends of both pipes; the other two are closed there. */
static int start(pid_t *process, const char *command, const int down[2], const int up[2])
{
    extern char **environ;
    char *const words[] = { "sh", "-c", (char *)command, NULL };
    posix_spawn_file_actions_t actions;
    if (posix_spawn_file_actions_init(&actions) != 0) return -1;
    int failed = posix_spawn_file_actions_adddup2(&actions, down[0], STDIN_FILENO) ||
                 posix_spawn_file_actions_adddup2(&actions, up[1], STDOUT_FILENO) ||
                 posix_spawn_file_actions_addclose(&actions, down[1]) ||
                 posix_spawn_file_actions_addclose(&actions, up[0]);
    failed = failed || posix_spawn(process, "/bin/sh", &actions, NULL, words, environ);
    posix_spawn_file_actions_destroy(&actions);
    return failed ? -1 : 0;
}

static void close_pair(const int pair[2])
{
    close(pair[0]);
    close(pair[1]);
}

static void end_process(bench_peers *peers)
{
    if (peers->to) fclose(peers->to);
    if (peers->from) fclose(peers->from);
    if (peers->process > 0) waitpid(peers->process, NULL, 0);
    peers->to = peers->from = NULL;
    peers->process = 0;
}

static kd_status start_process(bench_peers *peers)
{
    int down[2], up[2];
    if (peers->process) return KD_OK;
    if (pipe(down) != 0) return kd_fail(KD_EIO, "peers: no pipe");
    if (pipe(up) != 0) {
        close_pair(down);
        return kd_fail(KD_EIO, "peers: no pipe");
    }
    const int started = start(&peers->process, peers->command, down, up);
    close(down[0]);
    close(up[1]);
    peers->to = fdopen(down[1], "w");
    peers->from = fdopen(up[0], "r");
    if (started == 0 && peers->to && peers->from) return KD_OK;
    end_process(peers);
    return kd_fail(KD_EIO, "peers: cannot start %s", peers->command);
}

kd_status kd_bench_peers_open(bench_peers **out, const char *command)
{
    bench_peers *peers = calloc(1, sizeof *peers);
    if (!peers) return kd_fail(KD_ENOMEM, "peers: no memory");
    signal(SIGPIPE, SIG_IGN); /* a peer that ended is an error of its own, not ours */
    peers->command = command;
    const kd_status status = start_process(peers);
    if (status == KD_OK)
        *out = peers;
    else
        free(peers);
    return status;
}

void kd_bench_peers_close(bench_peers *peers)
{
    if (!peers) return;
    end_process(peers);
    free(peers);
}

static kd_status send(bench_peers *peers, const bench_question *q)
{
    const bench_shape *s = q->shape;
    json_t *dims = json_object();
    for (int i = 0; q->row->letters[i]; i++) {
        const char letter[2] = { q->row->letters[i], '\0' };
        (void)json_object_set_new(dims, letter, json_integer(s->dim[i]));
    }
    json_t *question = json_pack(
        "{s:s, s:s, s:s, s:o, s:s, s:f, s:o, s:s?, s:s?, s:s?}", "row", q->row->name, "variant",
        s->variant, "dtype", kd_dtype_name(s->dtype), "dims", dims, "device", q->device, "seconds",
        q->seconds, "value", isfinite(q->value) ? json_real(q->value) : json_null(), "teacher",
        q->options->teacher, "student", q->options->student, "data", q->options->data);
    const bool sent = question && json_dumpf(question, peers->to, JSON_COMPACT) == 0 &&
                      fputc('\n', peers->to) != EOF && fflush(peers->to) == 0;
    json_decref(question);
    return sent ? KD_OK : kd_fail(KD_EIO, "peers: their process has ended");
}

static double number(const json_t *from, const char *key)
{
    const json_t *value = json_object_get(from, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static void read_peer(bench_peer *peer, const json_t *from, double value)
{
    const char *name = json_string_value(json_object_get(from, "name"));
    const char *error = json_string_value(json_object_get(from, "error"));
    const double theirs = number(from, "value");
    *peer = (bench_peer){ .bytes = number(from, "bytes") };
    snprintf(peer->name, sizeof peer->name, "%s", name ? name : "?");
    peer->time = (bench_time){ number(from, "low"), number(from, "median"), number(from, "high"),
                               (int)json_integer_value(json_object_get(from, "samples")) };
    if (!error && !(peer->time.median > 0)) error = "gave no time";
    if (error) snprintf(peer->error, sizeof peer->error, "%s", error);
    /* bf16 products differ in the order of their sums, and a step's first loss in what attention may
     * see across documents; a wrong loss differs in its first digits. */
    peer->differs = isfinite(value) && !(fabs(theirs - value) <= 1e-2 * fabs(value));
}

/* One line there, one back. */
static kd_status converse(json_t **answer, bench_peers *peers, const bench_question *question)
{
    char *line = NULL;
    size_t size = 0;
    KD_TRY(start_process(peers));
    kd_status status = send(peers, question);
    const ssize_t length = status == KD_OK ? getline(&line, &size, peers->from) : 0;
    if (length < 0) status = kd_fail(KD_EIO, "peers: their process ended without an answer");
    if (status == KD_OK) status = kd_json_parse(answer, "peers", line, (size_t)length);
    if (status != KD_OK) end_process(peers);
    free(line);
    return status;
}

kd_status kd_bench_peers_ask(bench_peer answers[BENCH_PEERS], int *count, bench_peers *peers,
                             const bench_question *question)
{
    json_t *answer;
    kd_status status = converse(&answer, peers, question);
    if (status != KD_OK) status = converse(&answer, peers, question);
    *count = 0;
    if (status != KD_OK) {
        bench_peer *peer = &answers[(*count)++];
        *peer = (bench_peer){ .name = "peers", .bytes = NAN };
        snprintf(peer->error, sizeof peer->error, "%s", kd_last_error());
        return status == KD_ENOMEM ? status : KD_OK;
    }
    const json_t *list = json_object_get(answer, "peers"), *one;
    size_t i;
    json_array_foreach(list, i, one)
    {
        if (*count == BENCH_PEERS) break;
        read_peer(&answers[(*count)++], one, question->value);
    }
    json_decref(answer);
    return KD_OK;
}
