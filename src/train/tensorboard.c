/*
 * Event files for TensorBoard, written by hand: five fields of three protobuf messages in TFRecord
 * frames.
 *
 *   frame    u64 length, u32 masked CRC-32C of those 8 bytes, the event, u32 masked CRC-32C of it;
 *            little-endian.  mask(c) = rotate_right(c, 15) + 0xa282ead8 (tensorflow/lib/io/record_writer)
 *   Event    1 wall_time double, 2 step int64, 3 file_version string, 5 summary, 7 session_log
 *   Summary  1 value, repeated: { 1 tag string, 2 simple_value float }
 *   SessionLog { 1 status: START = 1 }: events of earlier files at its step and later are void
 *                                             (tensorflow/core/util/event.proto, framework/summary.proto)
 */
#include "train/tensorboard.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static const char name_start[] = "events.out.tfevents.";

/* ---- frames ----------------------------------------------------------------------------------- */

/* Bit by bit: a step has under a kilobyte. */
uint32_t kd_crc32c(const void *data, size_t bytes)
{
    const unsigned char *at = data;
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= at[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0x82f63b78u & (0u - (crc & 1u)));
    }
    return ~crc;
}

static uint32_t masked_crc(const void *data, size_t bytes)
{
    const uint32_t crc = kd_crc32c(data, bytes);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

/* ---- protobuf --------------------------------------------------------------------------------- */

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

static unsigned char *put_little(unsigned char *to, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) *to++ = (unsigned char)(value >> (8 * i));
    return to;
}

static unsigned char *put_varint(unsigned char *to, uint64_t value)
{
    for (; value >= 0x80; value >>= 7) *to++ = (unsigned char)(value | 0x80);
    *to++ = (unsigned char)value;
    return to;
}

static unsigned char *put_key(unsigned char *to, int field, int type)
{
    return put_varint(to, (uint64_t)(field << 3 | type));
}

static unsigned char *put_bytes(unsigned char *to, int field, const void *data, size_t bytes)
{
    to = put_varint(put_key(to, field, BYTES), bytes);
    memcpy(to, data, bytes);
    return to + bytes;
}

void kd_event_add(kd_event *event, const char *tag, double value)
{
    const float narrow = (float)value;
    unsigned char one[KD_EVENT_TAG + 16], *end;
    uint32_t bits;
    const size_t length = strnlen(tag, KD_EVENT_TAG);
    if (!isfinite(narrow) || event->used + sizeof one + 4 > sizeof event->bytes) return;
    memcpy(&bits, &narrow, sizeof bits);
    end = put_bytes(one, 1, tag, length);
    end = put_little(put_key(end, 2, FIXED32), bits, 4);
    end = put_bytes(event->bytes + event->used, 1, one, (size_t)(end - one));
    event->used = (size_t)(end - event->bytes);
}

/* ---- events ----------------------------------------------------------------------------------- */

/* One field of type bytes beside the time and the step. */
static kd_status write_event(kd_events *events, int64_t step, int field, const void *data,
                             size_t bytes)
{
    enum { HEAD = 12, REST = 48 };
    unsigned char frame[KD_EVENT_BYTES + HEAD + REST], *const event = frame + HEAD, *at;
    struct timespec now;
    uint64_t bits;
    clock_gettime(CLOCK_REALTIME, &now);
    const double seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    memcpy(&bits, &seconds, sizeof bits);
    at = put_little(put_key(event, 1, FIXED64), bits, 8);
    at = put_varint(put_key(at, 2, VARINT), (uint64_t)step);
    at = put_bytes(at, field, data, bytes);
    put_little(frame, (uint64_t)(at - event), 8);
    put_little(frame + 8, masked_crc(frame, 8), 4);
    at = put_little(at, masked_crc(event, (size_t)(at - event)), 4);
    for (const unsigned char *from = frame; from < at;) {
        const ssize_t n = write(events->fd, from, (size_t)(at - from));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return kd_fail(KD_EIO, "%s: %s", events->path, strerror(errno));
        from += n;
    }
    return KD_OK;
}

kd_status kd_events_write(kd_events *events, int64_t step, const kd_event *event)
{
    if (!events->path || event->used == 0) return KD_OK;
    return write_event(events, step, 5, event->bytes, event->used);
}

/* ---- files ------------------------------------------------------------------------------------ */

/* TensorBoard reads a folder's files in the order of their names, so that a new one must come after
 * all others also when the clock has gone back or a run lasted less than a second. */
static kd_status next_second(long long *second, kd_arena *arena, const char *dir)
{
    const char *const *names;
    int count;
    *second = (long long)time(NULL);
    KD_TRY(kd_dir_list(&names, &count, arena, dir));
    for (int i = 0; i < count; i++) {
        const size_t start = sizeof name_start - 1;
        if (strncmp(names[i], name_start, start) != 0) continue;
        const long long taken = strtoll(names[i] + start, NULL, 10);
        if (taken >= *second && taken < 9999999999) *second = taken + 1;
    }
    return KD_OK;
}

static kd_status create(kd_events *events, kd_arena *arena, const char *dir)
{
    const char *path;
    char host[64] = "";
    long long second;
    (void)gethostname(host, sizeof host - 1);
    KD_TRY(kd_dir_create(dir));
    KD_TRY(next_second(&second, arena, dir));
    KD_TRY(kd_arena_format(&path, arena, "%s/%s%010lld.%s", dir, name_start, second,
                           host[0] ? host : "localhost"));
    events->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
    if (events->fd < 0) return kd_fail(KD_EIO, "%s: %s", path, strerror(errno));
    events->path = path;
    return kd_file_fsync(dir);
}

kd_status kd_events_open(kd_events *events, kd_arena *arena, const char *out, int64_t step)
{
    static const char version[] = "brain.Event:2";
    static const unsigned char start[] = { 1 << 3 | VARINT, 1 };
    const char *dir;
    *events = (kd_events){ .path = NULL };
    KD_TRY(kd_path_join(&dir, arena, out, "tensorboard"));
    KD_TRY(create(events, arena, dir));
    KD_TRY(write_event(events, 0, 3, version, sizeof version - 1));
    return write_event(events, step, 7, start, sizeof start);
}

void kd_events_close(kd_events *events)
{
    if (events->path) close(events->fd);
    *events = (kd_events){ .path = NULL };
}
