/* Event files byte by byte; tests/report/check_events.py reads them with the tensorboard package. */
#include "support/students.h"
#include "support/support.h"
#include "train/tensorboard.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* RFC 3720 appendix B.4, and the check value of the CRC catalogue. */
Test(tensorboard, crc_has_the_known_answers)
{
    unsigned char bytes[32];
    cr_expect_eq(kd_crc32c("", 0), 0u);
    cr_expect_eq(kd_crc32c("123456789", 9), 0xe3069283u);
    memset(bytes, 0, sizeof bytes);
    cr_expect_eq(kd_crc32c(bytes, sizeof bytes), 0x8a9136aau);
    memset(bytes, 0xff, sizeof bytes);
    cr_expect_eq(kd_crc32c(bytes, sizeof bytes), 0x62a8ab43u);
    for (int i = 0; i < 32; i++) bytes[i] = (unsigned char)i;
    cr_expect_eq(kd_crc32c(bytes, sizeof bytes), 0x46dd794eu);
}

static uint64_t little(const unsigned char *at, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)at[i] << (8 * i);
    return value;
}

static void expect_crc(const unsigned char *data, size_t bytes, const unsigned char *found)
{
    const uint32_t crc = kd_crc32c(data, bytes);
    cr_expect_eq((uint32_t)little(found, 4), (crc >> 15 | crc << 17) + 0xa282ead8u);
}

/* The event of the frame at `*at`, which moves past it; its time has been checked and left out. */
static size_t take(const unsigned char **event, const unsigned char **at, const unsigned char *end)
{
    const unsigned char *frame = *at;
    cr_assert(end - frame > 12);
    const size_t bytes = (size_t)little(frame, 8);
    cr_assert(bytes >= 9 && bytes <= (size_t)(end - frame) - 16);
    expect_crc(frame, 8, frame + 8);
    expect_crc(frame + 12, bytes, frame + 12 + bytes);
    const uint64_t bits = little(frame + 13, 8);
    double seconds;
    memcpy(&seconds, &bits, sizeof seconds);
    cr_expect(frame[12] == 0x09 && seconds > 1.7e9 && seconds < 4.2e9, "time %g", seconds);
    *event = frame + 21;
    *at = frame + 16 + bytes;
    return bytes - 9;
}

static void expect_event(const unsigned char **at, const unsigned char *end, const char *want,
                         size_t bytes, const char *what)
{
    const unsigned char *event;
    const size_t found = take(&event, at, end);
    cr_expect(found == bytes && memcmp(event, want, bytes) == 0, "%s: %zu bytes, expected %zu",
              what, found, bytes);
}

#define EXPECT_EVENT(at, end, want, what) expect_event(at, end, want, sizeof(want) - 1, what)

static void fill(kd_events *events)
{
    kd_event event = { .used = 0 };
    test_ok(kd_events_write(events, 6, &event));
    kd_event_add(&event, "train/ce", 1.5);
    kd_event_add(&event, "nothing", NAN);
    kd_event_add(&event, "nothing", -INFINITY);
    kd_event_add(&event, "nothing", 1e300);
    kd_event_add(&event, "lr", -2.0);
    test_ok(kd_events_write(events, 300, &event));
}

Test(tensorboard, events_are_framed_protobuf)
{
    kd_arena *arena;
    kd_events events;
    char *data;
    size_t bytes;
    test_ok(kd_arena_create(&arena));
    test_ok(kd_events_open(&events, arena, test_folder(), 5));
    fill(&events);
    const char *path = events.path;
    kd_events_close(&events);
    test_ok(kd_file_read(&data, &bytes, path, 1 << 20));
    const unsigned char *at = (const unsigned char *)data, *end = at + bytes;
    EXPECT_EVENT(&at, end,
                 "\x10\x00\x1a\x0d"
                 "brain.Event:2",
                 "version");
    EXPECT_EVENT(&at, end, "\x10\x05\x3a\x02\x08\x01", "start of session at step 5");
    EXPECT_EVENT(&at, end,
                 "\x10\xac\x02\x2a\x1c"
                 "\x0a\x0f\x0a\x08train/ce\x15\x00\x00\xc0\x3f"
                 "\x0a\x09\x0a\x02lr\x15\x00\x00\x00\xc0",
                 "scalars of step 300");
    cr_expect(at == end, "%td bytes more", end - at);
    free(data);
    kd_arena_destroy(arena);
}

/* What does not fit is left out whole. */
Test(tensorboard, an_event_has_room_for_whole_scalars)
{
    char tag[2 * KD_EVENT_TAG];
    kd_event event = { .used = 0 };
    memset(tag, 'a', sizeof tag - 1);
    tag[sizeof tag - 1] = '\0';
    for (int i = 0; i < 100; i++) kd_event_add(&event, tag, i);
    const size_t one = 2 + 1 + 2 + 1 + KD_EVENT_TAG + 4 + 1;
    cr_expect(event.used <= sizeof event.bytes && event.used % one == 0, "%zu", event.used);
    cr_expect(event.used > sizeof event.bytes - 2 * one, "%zu", event.used);
}

/* TensorBoard reads them by name: also within a second, and when the clock went back. */
Test(tensorboard, files_are_named_in_order)
{
    kd_arena *arena;
    kd_events events;
    const char *last = "", *out = test_folder(), *dir;
    test_ok(kd_arena_create(&arena));
    test_ok(kd_path_join(&dir, arena, out, "tensorboard"));
    test_ok(kd_dir_create(dir));
    for (int i = 0; i < 4; i++) {
        if (i == 2) {
            char later[256];
            snprintf(later, sizeof later, "%s/events.out.tfevents.4000000000.zz", dir);
            test_ok(kd_file_write_atomic(later, "", 0));
        }
        test_ok(kd_events_open(&events, arena, out, 0));
        cr_expect(strcmp(events.path, last) > 0, "%s after %s", events.path, last);
        cr_expect((strstr(events.path, "tfevents.400000000") != NULL) == (i >= 2), "%s",
                  events.path);
        last = events.path;
        kd_events_close(&events);
    }
    kd_arena_destroy(arena);
}
