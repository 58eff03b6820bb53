/* stream.c - a stream into memory that says when something was lost, which open_memstream does not. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

struct kd_stream {
    FILE *file;
    const char *what;
    char *text;
    size_t bytes, room;
    bool lost;
};

static ssize_t append(void *context, const char *bytes, size_t count)
{
    kd_stream *s = context;
    if (s->lost) return 0;
    if (s->room - s->bytes <= count) { /* a NUL follows */
        const size_t room = 2 * (s->bytes + count) + 256;
        char *larger = realloc(s->text, room);
        s->lost = !larger;
        if (s->lost) return 0;
        s->text = larger;
        s->room = room;
    }
    memcpy(s->text + s->bytes, bytes, count);
    s->bytes += count;
    s->text[s->bytes] = '\0';
    return (ssize_t)count;
}

kd_status kd_stream_open(kd_stream **out, FILE **file, const char *what)
{
    kd_stream *s = calloc(1, sizeof *s);
    if (s) s->file = fopencookie(s, "w", (cookie_io_functions_t){ .write = append });
    if (!s || !s->file) {
        free(s);
        return kd_fail(KD_ENOMEM, "%s: no memory to write it", what);
    }
    s->what = what;
    *file = s->file;
    *out = s;
    return KD_OK;
}

kd_status kd_stream_close(char **text, size_t *bytes, kd_stream *stream, kd_status written)
{
    const bool closed = fclose(stream->file) == 0; /* which writes the rest */
    kd_status status = written;
    if (status == KD_OK && (stream->lost || !closed || !stream->text))
        status = kd_fail(KD_ENOMEM, "%s: no memory to write it", stream->what);
    *text = stream->text;
    *bytes = stream->bytes;
    if (status != KD_OK) {
        free(*text);
        *text = NULL;
    }
    free(stream);
    return status;
}
