/*
 * base.h - what every other folder stands on.  Knows no tensors.
 *
 * arena.c files.c stream.c json.c yaml.c nodes.c options.c args.c rng.c hash.c clock.c threads.c
 * signals.c library.c status.c log.c
 */
#ifndef KD_BASE_H
#define KD_BASE_H

#include <kd/log.h>
#include <kd/options.h>
#include <kd/print.h>
#include <kd/status.h>

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define KD_COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

/* A text out of a file, fit for a terminal: control bytes become \xNN.  Cut to `size`, with a NUL. */
void kd_escape(char *to, size_t size, const char *text);

/* ---- checked arithmetic: the one way a size from a file becomes a size in memory -------------- */

KD_MUST_CHECK bool kd_mul_i64(int64_t *product, int64_t a, int64_t b); /* false on overflow */
KD_MUST_CHECK bool kd_add_i64(int64_t *sum, int64_t a, int64_t b);

static inline int64_t kd_min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t kd_max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t kd_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline size_t kd_round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

/* ---- arena: host objects that die together ---------------------------------------------------- */

typedef struct kd_arena kd_arena;

KD_MUST_CHECK kd_status kd_arena_create(kd_arena **arena);
void kd_arena_destroy(kd_arena *arena); /* NULL is fine */

/* Zeroed, aligned to 16.  KD_ENOMEM names the bytes. */
KD_MUST_CHECK kd_status kd_arena_alloc(void **out, kd_arena *arena, size_t bytes);

/* count * size with the product checked; the usual call is
 *     KD_TRY(KD_ARENA_ARRAY(&blocks, arena, n));        (blocks is of type T *) */
KD_MUST_CHECK kd_status kd_arena_array(void **out, kd_arena *arena, int64_t count, size_t size);
#define KD_ARENA_ARRAY(out, arena, count)                                                          \
    kd_arena_array((void **)(void *)(out), (arena), (count), sizeof(**(out)))

/* A copy of `text`, and a formatted string. */
KD_MUST_CHECK kd_status kd_arena_string(const char **out, kd_arena *arena, const char *text);
KD_MUST_CHECK kd_status kd_arena_format(const char **out, kd_arena *arena, const char *fmt, ...)
    KD_PRINTF(3, 4);

/* ---- files: every read and write is checked, complete and named in its error ------------------ */

/* A missing, unreadable or irregular input is KD_EFORMAT, a failing or full disk KD_EIO.
 *
 * Opens a regular file for reading; never hangs on a FIFO.  Close with close(). */
KD_MUST_CHECK kd_status kd_file_open(int *fd, int64_t *bytes, const char *path);

/* Whole contents and a terminating NUL (not counted in `bytes`); `limit` refuses larger files with
 * KD_EFORMAT.  Refuses anything but a regular file.  Free with free(). */
KD_MUST_CHECK kd_status kd_file_read(char **data, size_t *bytes, const char *path, size_t limit);

/* Writes to a staging name beside `path`, fsyncs, renames, fsyncs the folder. */
KD_MUST_CHECK kd_status kd_file_write_atomic(const char *path, const void *data, size_t bytes);

KD_MUST_CHECK kd_status kd_file_copy(const char *to, const char *from); /* likewise */

/* The same in parts: a new file beside `path`, which nobody else has; then, when all is written, fsync,
 * close, rename onto `path` and fsync of the folder.  `fd` is closed and, on failure, the staging file
 * removed; who gives up before does both.  A process that dies leaves a name of this kind.  KD_EINVAL
 * where a device or a pipe would be replaced. */
KD_MUST_CHECK kd_status kd_file_stage(char staging[PATH_MAX], int *fd, const char *path);
KD_MUST_CHECK kd_status kd_file_publish(int fd, const char *staging, const char *path);
bool kd_file_is_staging(const char *name);

KD_MUST_CHECK kd_status kd_file_fsync(const char *path); /* a file or a folder */
KD_MUST_CHECK kd_status kd_file_size(int64_t *bytes, const char *path);
bool kd_file_exists(const char *path);

/* Of a file that need not be there: false where nothing has that name, KD_EFORMAT where something
 * has that is no regular file (a folder, a FIFO, a link to nowhere). */
KD_MUST_CHECK kd_status kd_file_find(bool *there, const char *path);
bool kd_dir_exists(const char *path);
KD_MUST_CHECK kd_status kd_dir_create(const char *path); /* and its parents; fsynced */
KD_MUST_CHECK kd_status kd_dir_remove(const char *path); /* recursively; absent is fine */

/* Names in `path`, sorted by strcmp, without "." and "..". */
KD_MUST_CHECK kd_status kd_dir_list(const char *const **names, int *count, kd_arena *arena,
                                    const char *path);

/* "dir/name" */
KD_MUST_CHECK kd_status kd_path_join(const char **out, kd_arena *arena, const char *dir,
                                     const char *name);

/* fsync, over EINTR; a kind of file that has none is fine. */
KD_MUST_CHECK kd_status kd_fsync(int fd, const char *path);

/* pread and pwrite until all `bytes` are done, over EINTR and short counts.  A read may be told to end
 * early: kd_stop_reads. */
KD_MUST_CHECK kd_status kd_read_at(int fd, const char *path, void *data, size_t bytes, int64_t at);
KD_MUST_CHECK kd_status kd_write_at(int fd, const char *path, const void *data, size_t bytes,
                                    int64_t at);

/* ---- a stream into memory --------------------------------------------------------------------- */

typedef struct kd_stream kd_stream;

/* What is written to `file`, something at least, is the text that kd_stream_close gives, with a NUL after
 * its `bytes`; free with free().  Every opened stream is closed so.  KD_ENOMEM, and no text, when any of
 * it was lost; `written` comes back where that is a failure already.  `what` is what messages call it,
 * and must live as long. */
KD_MUST_CHECK kd_status kd_stream_open(kd_stream **stream, FILE **file, const char *what);
KD_MUST_CHECK kd_status kd_stream_close(char **text, size_t *bytes, kd_stream *stream,
                                        kd_status written);

/* ---- JSON (jansson) --------------------------------------------------------------------------- */

/* Strict: duplicate keys, trailing bytes, the integer -0, nesting deeper than 32 and more than 2^24
 * values are refused with KD_EFORMAT naming `source`, line and column.  Integers are exact.  The
 * caller owns `*out` (json_decref). */
KD_MUST_CHECK kd_status kd_json_parse(json_t **out, const char *source, const char *text,
                                      size_t bytes);
KD_MUST_CHECK kd_status kd_json_read(json_t **out, const char *path);
KD_MUST_CHECK kd_status kd_json_write(const char *path, const json_t *value); /* atomic, indent 2 */

/* The same as a line or more of a stream; an error of the stream itself stays in it. */
KD_MUST_CHECK kd_status kd_json_print(FILE *out, const char *what, const json_t *value);

/* json_dumps; free with free(). */
KD_MUST_CHECK kd_status kd_json_dump(char **text, const char *what, const json_t *value,
                                     size_t flags);

/* What jansson was refused by the heap so far, on this thread.  It does not always say so: a number
 * loses digits, a string is called a syntax error, an item is not in its list. */
int64_t kd_json_refused(void);

/* Closes the making of a value, begun with `before` = kd_json_refused(), so that no item of it needs a
 * check: KD_ENOMEM when anything was refused, KD_EINVAL when it is NULL (a text that is not UTF-8); the
 * value is then released and NULL. */
KD_MUST_CHECK kd_status kd_json_made(json_t **value, int64_t before, const char *what);

/* The value as a file has it, for messages: `buffer`, "a long value", or "nothing" for NULL. */
const char *kd_json_show(char *buffer, size_t size, const json_t *value);

/* ---- options: rows (kd/options.h) against configuration files --------------------------------- */

/* A configuration file: maps, sequences and scalars with the line each came from. */
typedef enum kd_node_kind { KD_NODE_SCALAR, KD_NODE_MAP, KD_NODE_LIST } kd_node_kind;

typedef struct kd_node kd_node;
struct kd_node {
    kd_node_kind kind;
    const char *key;    /* within a map; NULL elsewhere */
    const char *text;   /* of a scalar, without quotes; "" for null */
    const char *source; /* "run.yaml", "--loss.kl.temperature" or "KD_..." */
    int line;           /* 1-based; 0 where there is none */
    kd_node *child, *next;
};

/* YAML (JSON is YAML).  Anchors, tags and several documents are refused; depth <= 32. */
KD_MUST_CHECK kd_status kd_yaml_read(kd_node **out, kd_arena *arena, const char *path);
KD_MUST_CHECK kd_status kd_yaml_parse(kd_node **out, kd_arena *arena, const char *source,
                                      const char *text, size_t bytes);

/* Maps merge key by key, anything else is replaced; `over` wins. */
KD_MUST_CHECK kd_status kd_node_merge(kd_node *base, const kd_node *over, kd_arena *arena);

/* Sets "loss.kl.temperature" to `text` (itself parsed as YAML), creating maps on the way. */
KD_MUST_CHECK kd_status kd_node_set(kd_node *root, kd_arena *arena, const char *source,
                                    const char *path, const char *text);

const kd_node *kd_node_find(const kd_node *map,
                            const char *key); /* NULL when absent or map is NULL */
int kd_node_count(const kd_node *node);       /* children */

/* KD_EINVAL with "run.yaml:14: <path>: <message>". */
kd_status kd_node_fail(const kd_node *node, const char *path, const char *fmt, ...) KD_PRINTF(3, 4);

/* Fills `target` from `map` by `rows`: defaults first, then what the map has.  `path` is the
 * section's name for messages ("loss.kl").  A key that no row knows is KD_EINVAL and names the
 * nearest row, unless it stands in `ignore` (NULL-terminated; may be NULL).  `map` may be NULL. */
KD_MUST_CHECK kd_status kd_options_parse(void *target, const kd_option *rows, kd_arena *arena,
                                         const kd_node *map, const char *path,
                                         const char *const *ignore);

/* One row's value as YAML text (a string is quoted where it must be) that parses back to it. */
KD_MUST_CHECK kd_status kd_option_print(char *text, size_t size, const void *target,
                                        const kd_option *row);

/* Every row's value under its name into `map`. */
KD_MUST_CHECK kd_status kd_options_json(json_t *map, const void *target, const kd_option *rows);

/* ---- random numbers: a function of (seed, stream, index), no state to forget ------------------ */

/* Philox4x32-10 (Salmon et al., 2011). */
void kd_philox(uint32_t out[4], uint64_t seed, uint64_t stream, uint64_t index);
double kd_random_uniform(uint64_t seed, uint64_t stream, uint64_t index); /* [0, 1) */
double kd_random_normal(uint64_t seed, uint64_t stream, uint64_t index);

/* The image of `index` under a permutation of [0, n) chosen by (seed, stream): every sample once
 * per epoch without a table. */
int64_t kd_permute(int64_t index, int64_t n, uint64_t seed, uint64_t stream);

/* ---- hashes (XXH3-128), as 32 hexadecimal digits ---------------------------------------------- */

typedef struct kd_hash {
    char hex[33];
} kd_hash;

kd_hash kd_hash_bytes(const void *data, size_t bytes);
uint64_t kd_hash_key(const void *data, size_t bytes); /* XXH3-64, for tables in memory */
KD_MUST_CHECK kd_status kd_hash_file(kd_hash *hash, const char *path);

/* The whole file and, in the same read, `count` pieces of it that lie side by side: the first begins
 * at byte 0, piece i ends before byte ends[i].  KD_EFORMAT when the file ends before the last. */
KD_MUST_CHECK kd_status kd_hash_pieces(kd_hash *whole, kd_hash *pieces, const int64_t *ends,
                                       int64_t count, const char *path);

/* ---- clock and memory ------------------------------------------------------------------------- */

double kd_clock(void); /* monotonic seconds */

/* Resident set size of this process in bytes, now and at its peak; 0 where unknown. */
size_t kd_resident_bytes(void);
size_t kd_resident_peak_bytes(void);

/* ---- libraries that are looked for when they are needed ---------------------------------------- */

typedef struct kd_library {
    const char *file; /* as the dynamic linker finds it: "libnccl.so.2" */
    const char *const *functions;
    int count;
    void *table; /* [count] function pointers, in the order of their names */
    bool loaded;
} kd_library;

/* Fills the table, once; KD_EDEVICE names the file and what is wrong with it. */
KD_MUST_CHECK kd_status kd_library_load(kd_library *library);

/* ---- a worker thread with one job at a time --------------------------------------------------- */

typedef struct kd_worker kd_worker;

/* `job` runs on the worker for each kd_worker_start; its status and message come back from
 * kd_worker_wait.  No allocation after kd_worker_create. */
KD_MUST_CHECK kd_status kd_worker_create(kd_worker **worker, kd_status (*job)(void *context),
                                         void *context);
void kd_worker_start(kd_worker *worker);
KD_MUST_CHECK kd_status kd_worker_wait(kd_worker *worker); /* KD_OK when nothing was started */
bool kd_worker_busy(kd_worker *worker);                    /* kd_worker_wait would wait */
void kd_worker_destroy(kd_worker *worker);                 /* waits first; NULL is fine */

/* ---- signals ---------------------------------------------------------------------------------- */

/* After kd_stop_install(), TERM, USR1 and the first INT set the flag; a second INT ends the process. */
void kd_stop_install(void);
bool kd_stop_requested(void);
void kd_stop_reset(void); /* tests */

/* While `fail`, kd_read_at ends in KD_ESTOPPED once the flag is set: for work that is all reading and
 * nobody misses.  kd_stop_read is its check. */
void kd_stop_reads(bool fail);
KD_MUST_CHECK kd_status kd_stop_read(const char *path);

#endif
