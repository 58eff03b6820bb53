/* JSON and numbers for the verbs. */
#include "cmd.h"

#include <math.h>

static void begin_value(cmd_json *json, const char *key)
{
    if (json->depth > 0)
        fprintf(json->out, "%s\n%*s", json->started ? "," : "", 2 * json->depth, "");
    json->started = true;
    if (!key) return;
    fprintf(json->out, "\"%s\": ", key);
}

void cmd_json_open(cmd_json *json, const char *key, char bracket)
{
    begin_value(json, key);
    fputc(bracket, json->out);
    json->closers[json->depth++] = bracket == '{' ? '}' : ']';
    json->started = false;
}

void cmd_json_close(cmd_json *json)
{
    json->depth--;
    if (json->started) fprintf(json->out, "\n%*s", 2 * json->depth, "");
    fputc(json->closers[json->depth], json->out);
    if (json->depth == 0) fputc('\n', json->out);
    json->started = true;
}

void cmd_json_text(cmd_json *json, const char *key, const char *text)
{
    begin_value(json, key);
    if (!text) {
        fputs("null", json->out);
        return;
    }
    fputc('"', json->out);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\')
            fprintf(json->out, "\\%c", *c);
        else if (*c < 0x20 || *c == 0x7f)
            fprintf(json->out, "\\u%04x", *c);
        else
            fputc(*c, json->out);
    }
    fputc('"', json->out);
}

void cmd_json_integer(cmd_json *json, const char *key, int64_t value)
{
    begin_value(json, key);
    fprintf(json->out, "%lld", (long long)value);
}

void cmd_json_number(cmd_json *json, const char *key, double value)
{
    begin_value(json, key);
    if (isfinite(value))
        fprintf(json->out, "%.17g", value);
    else
        fputs("null", json->out);
}

void cmd_json_bool(cmd_json *json, const char *key, bool value)
{
    begin_value(json, key);
    fputs(value ? "true" : "false", json->out);
}

const char *cmd_measure(char *buffer, size_t size, kd_measure measure, const char *unit)
{
    if (isnan(measure.mean)) {
        snprintf(buffer, size, "-");
    } else if (!(measure.error > 0.0) || isinf(measure.error)) {
        snprintf(buffer, size, "%.4g%s", measure.mean, unit);
    } else {
        int digits = 1 - (int)floor(log10(measure.error));
        digits = digits < 0 ? 0 : digits > 9 ? 9 : digits;
        snprintf(buffer, size, "%.*f +/- %.*f%s", digits, measure.mean, digits, measure.error,
                 unit);
    }
    return buffer;
}

const char *cmd_parameters(char *buffer, size_t size, int64_t count)
{
    if (count < 1000000) return kd_format_count(buffer, size, count);
    snprintf(buffer, size, "%.1f M", (double)count / 1e6);
    return buffer;
}
