/* What this build can do, from its registries. */
#include "loss/loss.h"
#include "model/model.h"
#include "optim/optim.h"

#include <kd/kd.h>

const char *kd_version(void) { return KD_VERSION; }

typedef struct listing {
    const char *name;
    /* Adds objects, whether they are whole is asked once; `whole`: with all that is known. */
    kd_status (*make)(json_t *all, bool whole);
    void (*print)(FILE *, json_t *); /* one of them, as a line */
} listing;

static const char *text_of(const json_t *row, const char *key)
{
    const char *text = json_string_value(json_object_get(row, key));
    return text ? text : "";
}

/* ---- losses ----------------------------------------------------------------------------------- */

static json_t *text_json(const char *name)
{
    json_t *lines = json_array();
    for (const char *const *line = kd_loss_text(name); line && *line; line++)
        (void)json_array_append_new(lines, json_string(*line));
    return lines;
}

static json_t *row_json(const kd_row_type *row)
{
    json_t *one =
        json_pack("{s:s, s:s, s:b, s:b, s:s}", "name", row->name, "unit", "token", "teacher",
                  (int)row->teacher, "label", (int)row->label, "help", row->help);
    if (row->option)
        (void)json_object_set_new(one, "option",
                                  json_pack("{s:s, s:f, s:f, s:f}", "name", row->option, "default",
                                            row->option_default, "min", row->option_min, "max",
                                            row->option_max));
    if (row->option2)
        (void)json_object_set_new(one, "option2",
                                  json_pack("{s:s, s:f, s:f, s:f}", "name", row->option2, "default",
                                            row->option2_default, "min", row->option2_min, "max",
                                            row->option2_max));
    return one;
}

static json_t *feature_json(const kd_feature_type *type)
{
    json_t *reads = json_array(), *options = json_array();
    for (const kd_read *r = type->reads; r->name; r++)
        (void)json_array_append_new(reads, json_pack("{s:s, s:s, s:b, s:b, s:b, s:b}", "name",
                                                     r->name, "shape", r->shape, "gradient",
                                                     !!(r->flags & KD_READ_GRADIENT), "parameter",
                                                     !!(r->flags & KD_READ_PARAMETER), "state",
                                                     !!(r->flags & KD_READ_STATE), "optional",
                                                     !!(r->flags & KD_READ_OPTIONAL)));
    for (const kd_option *o = type->options; o && o->name; o++)
        (void)json_array_append_new(options, json_pack("{s:s, s:s?, s:s}", "name", o->name,
                                                       "default", o->fallback, "help", o->help));
    return json_pack("{s:s, s:s, s:o, s:o, s:s}", "name", type->name, "unit",
                     type->unit == KD_UNIT_TOKEN ? "token" : "sample", "reads", reads, "options",
                     options, "help", type->help);
}

static kd_status make_losses(json_t *all, bool whole)
{
    for (int i = 0; i < KD_ROW_COUNT + KD_FEATURE_COUNT; i++) {
        json_t *one = i < KD_ROW_COUNT ? row_json(&kd_row_types[i])
                                       : feature_json(kd_feature_types[i - KD_ROW_COUNT]);
        if (whole) (void)json_object_set_new(one, "text", text_json(text_of(one, "name")));
        (void)json_array_append_new(all, one);
    }
    return KD_OK;
}

/* "student_q [N, H, d], ..." */
static void print_reads(FILE *out, const json_t *reads)
{
    const json_t *read;
    size_t i;
    json_array_foreach(reads, i, read)
        fprintf(out, "%s%s %s%s", i ? ", " : "", text_of(read, "name"), text_of(read, "shape"),
                json_is_true(json_object_get(read, "optional")) ? " or none" : "");
}

static void print_option(FILE *out, const json_t *option)
{
    if (option)
        fprintf(out, "; %s %g to %g, default %g", text_of(option, "name"),
                json_number_value(json_object_get(option, "min")),
                json_number_value(json_object_get(option, "max")),
                json_number_value(json_object_get(option, "default")));
}

static void print_options(FILE *out, const json_t *row)
{
    const json_t *one;
    size_t i;
    print_option(out, json_object_get(row, "option"));
    print_option(out, json_object_get(row, "option2"));
    json_array_foreach(json_object_get(row, "options"), i, one)
        fprintf(out, "; %s, default %s", text_of(one, "name"), text_of(one, "default"));
}

static void print_loss(FILE *out, json_t *row)
{
    const json_t *reads = json_object_get(row, "reads"), *text = json_object_get(row, "text"),
                 *line;
    const bool teacher = json_is_true(json_object_get(row, "teacher"));
    const bool label = json_is_true(json_object_get(row, "label"));
    size_t i;
    fprintf(out, "  %-18s %-8s %s", text_of(row, "name"),
            reads              ? "taps"
            : teacher && label ? "both"
            : teacher          ? "teacher"
            : label            ? "label"
                               : "-",
            text_of(row, "help"));
    print_options(out, row);
    fputc('\n', out);
    if (!text) return;
    fprintf(out, "\n    mean over each %s of ", text_of(row, "unit"));
    if (reads)
        print_reads(out, reads);
    else
        fprintf(out, "student [N, V]%s%s", teacher ? ", teacher [N, V']" : "",
                label ? ", labels [N]" : "");
    fputs("\n\n", out);
    json_array_foreach(text, i, line) fprintf(out, "    %s\n", json_string_value(line));
    fputc('\n', out);
}

/* ---- devices and ops -------------------------------------------------------------------------- */

/* A device, or with "error" the reason why there is none. */
static kd_status make_device(json_t **one, const char *id)
{
    kd_device *device;
    kd_device_info info;
    const kd_status status = kd_device_open(&device, id);
    *one = NULL;
    if (status == KD_ENOMEM) return status;
    if (status != KD_OK) {
        *one = json_pack("{s:s, s:s}", "id", id, "error", kd_last_error());
        return KD_OK;
    }
    kd_device_describe(&info, device);
    kd_device_close(device);
    *one = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I}", "id", id, "name", info.name, "software",
                     info.software, "driver", info.driver, "memory", (json_int_t)info.total, "free",
                     (json_int_t)info.memory);
    return KD_OK;
}

static kd_status make_devices(json_t *all, bool whole)
{
    (void)whole;
    for (int t = 0; kd_device_types[t]; t++) {
        const kd_device_type *type = kd_device_types[t];
        const int count = type->count();
        json_t *found = json_array(), *one,
               *row = json_pack("{s:s, s:o}", "type", type->name, "found", found);
        (void)json_array_append_new(all, row);
        for (int i = 0; i < count; i++) {
            char id[32];
            snprintf(id, sizeof id, "%s:%d", type->name, i);
            KD_TRY(make_device(&one, id));
            (void)json_array_append_new(found, one);
        }
        if (count > 0) continue;
        KD_TRY(make_device(&one, type->name));
        (void)json_object_set_new(row, "none", one);
    }
    return KD_OK;
}

static void print_device(FILE *out, json_t *row)
{
    const json_t *found = json_object_get(row, "found"), *one;
    const json_t *none = json_object_get(row, "none");
    size_t i;
    if (none) fprintf(out, "  %-16s none: %s\n", text_of(none, "id"), text_of(none, "error"));
    json_array_foreach(found, i, one)
    {
        char bytes[32];
        const char *software = text_of(one, "software");
        const json_t *error = json_object_get(one, "error");
        fprintf(out, "  %-16s %s", text_of(one, "id"), text_of(one, error ? "error" : "name"));
        if (!error)
            fprintf(out, ", %s%s%s",
                    kd_format_bytes(bytes, sizeof bytes,
                                    json_number_value(json_object_get(one, "memory"))),
                    *software ? ", " : "", software);
        fputc('\n', out);
    }
}

/* The op tables of this build.  A device type without a device here shows none. */
static kd_status make_ops(json_t *all, bool whole)
{
    (void)whole;
    for (int i = 0; i < KD_OP_COUNT; i++)
        (void)json_array_append_new(
            all, json_pack("{s:s, s:{}}", "name", kd_op_infos[i].name, "devices"));
    for (int t = 0; kd_device_types[t]; t++) {
        kd_device *device;
        if (kd_device_types[t]->count() < 1) continue;
        const kd_status status = kd_device_types[t]->open(&device, 0);
        if (status == KD_ENOMEM) return status;
        if (status != KD_OK) continue;
        for (int i = 0; i < KD_OP_COUNT; i++)
            (void)json_object_set_new(json_object_get(json_array_get(all, (size_t)i), "devices"),
                                      kd_device_types[t]->name,
                                      json_boolean(kd_op_infos[i].present(device->ops)));
        kd_device_close(device);
    }
    return KD_OK;
}

static void print_op(FILE *out, json_t *row)
{
    const char *type;
    json_t *present;
    fprintf(out, "  %-22s", text_of(row, "name"));
    json_object_foreach(json_object_get(row, "devices"), type, present)
        fprintf(out, " %s%s", type, json_is_true(present) ? "" : " MISSING");
    fputc('\n', out);
}

/* ---- models and optimizers -------------------------------------------------------------------- */

static kd_status make_models(json_t *all, bool whole)
{
    (void)whole;
    for (int i = 0; kd_families[i]; i++)
        (void)json_array_append_new(all, json_pack("{s:s}", "name", kd_families[i]->name));
    return KD_OK;
}

/* The choices are the optimizer's own option row. */
static kd_status make_optimizers(json_t *all, bool whole)
{
    (void)whole;
    for (const kd_option *row = kd_optim_rows; row->name; row++) {
        if (strcmp(row->name, "type") != 0) continue;
        for (const char *c = row->unit; *c; c += strspn(c, "|")) {
            const size_t length = strcspn(c, "|");
            (void)json_array_append_new(all, json_pack("{s:o}", "name", json_stringn(c, length)));
            c += length;
        }
    }
    return KD_OK;
}

static void print_named(FILE *out, json_t *row) { fprintf(out, "  %s\n", text_of(row, "name")); }

/* ---- all of it -------------------------------------------------------------------------------- */

static const listing listings[] = { { "losses", make_losses, print_loss },
                                    { "ops", make_ops, print_op },
                                    { "models", make_models, print_named },
                                    { "optimizers", make_optimizers, print_named },
                                    { "devices", make_devices, print_device } };

static kd_status check_name(const char *what)
{
    const char *names[KD_COUNT(listings) + 1] = { NULL };
    for (int i = 0; what && i < KD_COUNT(listings); i++) {
        names[i] = listings[i].name;
        if (strcmp(what, names[i]) == 0) return KD_OK;
    }
    if (!what) return KD_OK;
    const char *near = kd_nearest(what, names);
    return kd_fail(KD_EINVAL,
                   "no list of \"%s\"%s%s; expected losses, ops, models, optimizers or devices",
                   what, near ? "; nearest: " : "", near ? near : "");
}

static void print_listing(FILE *out, const listing *l, const json_t *rows)
{
    json_t *row;
    size_t i;
    fprintf(out, "%s\n", l->name);
    json_array_foreach(rows, i, row) l->print(out, row);
}

kd_status kd_list(FILE *out, const char *what, bool whole, bool json)
{
    KD_TRY(check_name(what));
    const int64_t before = kd_json_refused();
    json_t *all = json_object();
    kd_status status = KD_OK;
    for (int i = 0; i < KD_COUNT(listings) && status == KD_OK; i++) {
        json_t *rows = json_array();
        if (!what || strcmp(what, listings[i].name) == 0) {
            (void)json_object_set(all, listings[i].name, rows);
            status = listings[i].make(rows, whole);
        }
        json_decref(rows);
    }
    if (status == KD_OK) status = kd_json_made(&all, before, "list");
    if (status == KD_OK && json) status = kd_json_print(out, "list", all);
    for (int i = 0; i < KD_COUNT(listings) && status == KD_OK && !json; i++)
        if (json_object_get(all, listings[i].name))
            print_listing(out, &listings[i], json_object_get(all, listings[i].name));
    json_decref(all);
    return status;
}
