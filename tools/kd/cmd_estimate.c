#include "cmd.h"

typedef struct options {
    const char *device;
    bool json;
} options;

static const kd_option rows[] = {
    { "device", KD_STRING, offsetof(options, device), "cpu", 0, 0, "",
      "cpu or cuda (of this machine), a size such as 80GB, or a card such as h100-80g" },
    { "json", KD_BOOL, offsetof(options, json), "false", 0, 0, "", "as one JSON object" },
    { 0 },
};

/* ---- as text ---------------------------------------------------------------------------------- */

enum { NUMBER = 32 };

static const char *bytes(char *buffer, double value)
{
    return kd_format_bytes(buffer, NUMBER, value);
}

static void print_models(const kd_estimate *e)
{
    char a[NUMBER], b[NUMBER], c[NUMBER];
    printf("student %s  %s", e->student, cmd_parameters(a, NUMBER, e->student_parameters));
    if (e->teacher_parameters)
        printf("    teacher %s  %s", e->teacher, cmd_parameters(b, NUMBER, e->teacher_parameters));
    printf("    %lld x %lld tokens per micro-batch\n", (long long)e->micro, (long long)e->sequence);
    const double own = e->student_bytes - e->bank_bytes;
    printf("  student        %s of weights, gradients and moments (%.0f B/parameter)\n",
           bytes(a, own), own / (double)e->student_parameters);
    if (e->bank_bytes > 0.0)
        printf("  banks          %s of samples' embeddings\n", bytes(a, e->bank_bytes));
    if (e->teacher_parameters)
        printf("  teacher        %s of weights\n", bytes(a, e->teacher_bytes));
    printf("  step           %s of activations, logits, scratch and batches",
           bytes(b, e->step_bytes));
    if (e->reserve_bytes > 0.0)
        printf("; libraries and context %s (allowance)", bytes(c, e->reserve_bytes));
    printf("\n");
}

static void print_peak(const kd_estimate *e)
{
    char a[NUMBER], b[NUMBER], c[NUMBER], rows_text[NUMBER], columns[NUMBER];
    printf("  peak           %s of %s (%s less a spare) at %s; the head takes %s rows x %s at a "
           "time\n",
           bytes(a, e->peak_bytes), bytes(b, e->usable_bytes), bytes(c, e->device_bytes),
           e->peak_phase, kd_format_count(rows_text, NUMBER, e->chunk),
           kd_format_count(columns, NUMBER, e->vocabulary));
    for (int i = 0; i < e->entry_count && i < 5; i++)
        printf("  %-14s %s %s\n", i ? "" : "of that", bytes(a, e->entries[i].bytes),
               e->entries[i].name);
    printf("  largest        micro: %lld  (whole [B*T, V] logits would take %s at micro %lld)\n",
           (long long)e->largest_micro, bytes(a, e->full_logits_bytes), (long long)e->micro);
}

static void print_work(const kd_estimate *e)
{
    char a[NUMBER], time[NUMBER];
    const double update =
        (double)e->micro * (double)e->accumulate * (double)e->sequence; /* tokens */
    printf("  work           %.3g GFLOP/token: teacher %.3g, student %.3g\n",
           e->flops_per_token / 1e9, e->teacher_flops / 1e9, e->student_flops / 1e9);
    if (e->predicted_tokens_per_s > 0.0)
        printf("  speed          %s tokens/s PREDICTED from half of the card's stated peak, "
               "not measured\n",
               kd_format_count(a, NUMBER, (int64_t)e->predicted_tokens_per_s));
    printf("  run            %lld updates of %lld x %lld micro-batches; %lld checkpoints of %s",
           (long long)e->updates, (long long)e->accumulate, (long long)e->micro,
           (long long)e->checkpoints, bytes(a, e->checkpoint_bytes));
    if (e->predicted_tokens_per_s > 0.0)
        printf("; %s at that speed",
               kd_format_duration(time, sizeof time,
                                  (double)e->updates * update / e->predicted_tokens_per_s));
    printf("\n");
}

static void print_text(const kd_estimate *e)
{
    print_models(e);
    print_peak(e);
    print_work(e);
    for (int i = 0; i < e->instead_count; i++) {
        char less[NUMBER];
        printf("  %-14s %-30s -%s\n", i ? "" : "instead", e->instead[i].name,
               bytes(less, e->instead[i].bytes));
    }
    printf("  verdict        %s\n", e->fits ? "fits" : "does not fit");
}

/* ---- as JSON ---------------------------------------------------------------------------------- */

static void print_json(const kd_estimate *e)
{
    cmd_json json = { .out = stdout };
    cmd_json_open(&json, NULL, '{');
    cmd_json_text(&json, "student", e->student);
    cmd_json_text(&json, "teacher", e->teacher_parameters ? e->teacher : NULL);
    cmd_json_integer(&json, "student_parameters", e->student_parameters);
    cmd_json_integer(&json, "teacher_parameters", e->teacher_parameters);
    cmd_json_integer(&json, "micro", e->micro);
    cmd_json_integer(&json, "sequence", e->sequence);
    cmd_json_integer(&json, "accumulate", e->accumulate);
    cmd_json_integer(&json, "updates", e->updates);
    cmd_json_integer(&json, "chunk", e->chunk);
    cmd_json_integer(&json, "vocabulary", e->vocabulary);
    cmd_json_number(&json, "student_bytes", e->student_bytes);
    cmd_json_number(&json, "bank_bytes", e->bank_bytes);
    cmd_json_number(&json, "teacher_bytes", e->teacher_bytes);
    cmd_json_number(&json, "step_bytes", e->step_bytes);
    cmd_json_number(&json, "reserve_bytes", e->reserve_bytes);
    cmd_json_number(&json, "peak_bytes", e->peak_bytes);
    cmd_json_text(&json, "peak_phase", e->peak_phase);
    cmd_json_number(&json, "device_bytes", e->device_bytes);
    cmd_json_number(&json, "usable_bytes", e->usable_bytes);
    cmd_json_open(&json, "at_peak", '[');
    for (int i = 0; i < e->entry_count; i++) {
        cmd_json_open(&json, NULL, '{');
        cmd_json_text(&json, "name", e->entries[i].name);
        cmd_json_number(&json, "bytes", e->entries[i].bytes);
        cmd_json_close(&json);
    }
    cmd_json_close(&json);
    cmd_json_integer(&json, "largest_micro", e->largest_micro);
    cmd_json_open(&json, "instead", '[');
    for (int i = 0; i < e->instead_count; i++) {
        cmd_json_open(&json, NULL, '{');
        cmd_json_text(&json, "name", e->instead[i].name);
        cmd_json_number(&json, "saves_bytes", e->instead[i].bytes);
        cmd_json_close(&json);
    }
    cmd_json_close(&json);
    cmd_json_number(&json, "full_logits_bytes", e->full_logits_bytes);
    cmd_json_number(&json, "flops_per_token", e->flops_per_token);
    cmd_json_number(&json, "teacher_flops", e->teacher_flops);
    cmd_json_number(&json, "student_flops", e->student_flops);
    cmd_json_number(&json, "predicted_tokens_per_s", e->predicted_tokens_per_s);
    cmd_json_integer(&json, "checkpoints", e->checkpoints);
    cmd_json_number(&json, "checkpoint_bytes", e->checkpoint_bytes);
    cmd_json_bool(&json, "fits", e->fits);
    cmd_json_close(&json);
}

/* ---- the verb --------------------------------------------------------------------------------- */

static kd_status refuse(const kd_estimate *e)
{
    char a[NUMBER], b[NUMBER];
    if (e->largest_micro > 0)
        return kd_fail(KD_ENOMEM, "the run does not fit: %s of %s; the largest batch.micro is %lld",
                       bytes(a, e->peak_bytes), bytes(b, e->usable_bytes),
                       (long long)e->largest_micro);
    return kd_fail(KD_ENOMEM,
                   "the run does not fit: %s of %s, with one sample neither; a shorter "
                   "data.sequence, dtype: bf16 or student.recompute: blocks take less",
                   bytes(a, e->peak_bytes), bytes(b, e->usable_bytes));
}

static kd_status estimate(const kd_args *args, const void *given)
{
    const options *o = given;
    kd_estimate e;
    kd_run *run;
    KD_TRY(cmd_open_run(&run, args));
    const kd_status status = kd_run_estimate(&e, run, o->device);
    kd_run_destroy(run);
    KD_TRY(status);
    if (o->json)
        print_json(&e);
    else
        print_text(&e);
    return e.fits ? KD_OK : refuse(&e);
}

kd_status cmd_estimate(int argc, char **argv)
{
    static const cmd_spec spec = { rows, 1, 64, "a run file", true, kd_run_help };
    options o;
    return cmd_run(&spec, &o, estimate, argc, argv);
}
