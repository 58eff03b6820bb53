/* tensorboard.h - event files that TensorBoard reads; private to train. */
#ifndef KD_TENSORBOARD_H
#define KD_TENSORBOARD_H

#include "train/train.h"

typedef struct kd_events {
    const char *path; /* NULL: none are written */
    int fd;
} kd_events;

/* The scalars of one step in the making: a fixed buffer, so that a step allocates nothing. */
enum { KD_EVENT_BYTES = 4096, KD_EVENT_TAG = 128 };
typedef struct kd_event {
    unsigned char bytes[KD_EVENT_BYTES]; /* a serialised Summary */
    size_t used;
} kd_event;

/* CRC-32C (Castagnoli, RFC 3720 appendix B.4), as TFRecord wants it before masking. */
uint32_t kd_crc32c(const void *data, size_t bytes);

/* A new file in out/tensorboard, after any that is there.  Whatever those say of `step` and later is
 * void: TensorBoard forgets it. */
KD_MUST_CHECK kd_status kd_events_open(kd_events *events, kd_arena *arena, const char *out,
                                       int64_t step);
void kd_events_close(kd_events *events); /* one that is all 0 is fine */

/* Adds `value`; what is not finite is no point of a curve and left out. */
void kd_event_add(kd_event *event, const char *tag, double value);

/* Appends in one write; an event without scalars is none. */
KD_MUST_CHECK kd_status kd_events_write(kd_events *events, int64_t step, const kd_event *event);

#endif
