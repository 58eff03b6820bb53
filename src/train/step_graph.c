/* Parts of a step that are recorded once and then run as one. */
#include "train/train.h"

#include <stdio.h>

/* The recording of `key`; NULL: there is no room for one more.  `*again` when it was seen before. */
static kd_recording *find(bool *again, kd_step *step, int64_t key)
{
    int i = 0;
    while (i < step->recording_count && step->recordings[i].key != key) i++;
    *again = i < step->recording_count;
    if (i == KD_MAX_RECORDINGS) return NULL;
    if (!*again) step->recordings[step->recording_count++] = (kd_recording){ .key = key };
    return &step->recordings[i];
}

static kd_status record(kd_step *step, kd_recording *recording, kd_step_part part, bool last)
{
    char message[512];
    KD_TRY(kd_capture_begin(&step->exec));
    const kd_status status = part(step, last);
    snprintf(message, sizeof message, "%s", kd_last_error());
    const kd_status ended = kd_capture_end(&recording->graph, &step->exec);
    if (status != KD_OK) return kd_fail(status, "%s", message);
    return ended;
}

kd_status kd_step_play(kd_step *step, int64_t key, kd_step_part part, bool last)
{
    bool again;
    if (kd_planning(&step->exec) || !step->device->graphs) return part(step, last);
    kd_recording *recording = find(&again, step, key);
    if (!recording || !again) return part(step, last);
    if (!recording->graph) KD_TRY(record(step, recording, part, last));
    return kd_graph_launch(&step->exec, recording->graph);
}

void kd_step_forget(kd_step *step)
{
    for (int i = 0; i < step->recording_count; i++)
        kd_graph_destroy(step->device, step->recordings[i].graph);
    step->recording_count = 0;
}
