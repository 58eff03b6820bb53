/*
 * attention_transfer - the student looks where the teacher looks (AT, Zagoruyko and Komodakis 2017, eq. 2).
 *
 *     q[s]              =  sum_c |f[c,s]|^power        `over: places`, one value per place of the map
 *     q[c]              =  sum_s |f[c,s]|^power        `over: channels`
 *     u, v              =  q / |q| of student and teacher, sample by sample
 *     value of sample   =  (1 / S) |u - v|^2           `form: code`; S values in a map
 *                          |u - v|                     `form: paper`
 *
 * Reads     student [B, C, H, W], teacher [B, C', H, W]; over channels C' = C.
 * Unit      sample: the term is the mean over the batch.
 * Defaults  power 2, over places, form code; RepDistiller weighs it with 1000, summed over stages.
 * Dead maps A sample whose features are all 0 has u = 0 and gets no gradient.
 * Elsewhere The authors' code, RepDistiller and torchdistill's `code` take the mean over channels, which u
 *           does not see, and the mean of squares; the paper and torchdistill's `paper` the length of the
 *           difference, whose gradient does not vanish at u = v: 0 here there.  RepDistiller raises without
 *           the absolute value, which is another function for odd powers.  AberHu divides by |q| + 1e-6.
 */
#include "loss/maps.h"

typedef struct options {
    double power;
    int over, form;
} options;

enum { OVER_PLACES, OVER_CHANNELS };
enum { FORM_CODE, FORM_PAPER };

static const kd_option rows[] = {
    { "power", KD_FLOAT, offsetof(options, power), "2", 1, 16, "",
      "of the features' absolute values" },
    { "over", KD_CHOICE, offsetof(options, over), "places", 0, 0, "places|channels",
      "what has one value each" },
    { "form", KD_CHOICE, offsetof(options, form), "code", 0, 0, "code|paper",
      "mean of squared differences, or their length" },
    { 0 },
};

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    const options *o = args->options;
    const bool channels = o->over == OVER_CHANNELS;
    const float power = (float)o->power;
    kd_tensor student, teacher, d_student, qs, qt, dq;
    KD_TRY(kd_maps_match(&args->student, &args->teacher));
    KD_TRY(kd_maps_flat(&student, &args->student, "student"));
    KD_TRY(kd_maps_flat(&teacher, &args->teacher, "teacher"));
    KD_TRY(kd_maps_flat(&d_student, &args->d_student, "d_student"));
    if (channels && student.shape[1] != teacher.shape[1])
        return kd_fail(KD_EINVAL, "over channels: student has %lld, teacher %lld",
                       (long long)student.shape[1], (long long)teacher.shape[1]);
    const kd_shape shape = KD_SHAPE(student.shape[0], student.shape[channels ? 1 : 2]);
    KD_TRY(kd_push(&qs, exec, "attention of student", KD_F32, shape));
    KD_TRY(kd_push(&qt, exec, "attention of teacher", KD_F32, shape));
    KD_TRY(kd_push(&dq, exec, "d attention", KD_F32, shape));
    KD_TRY(KD_RUN(exec, map_powers, .y = &qs, .x = &student, .power = power, .channels = channels));
    KD_TRY(KD_RUN(exec, map_powers, .y = &qt, .x = &teacher, .power = power, .channels = channels));
    KD_TRY(KD_RUN(exec, fill, .y = &dq, .value = 0.0f));
    const bool paper = o->form == FORM_PAPER;
    KD_TRY(KD_RUN(exec, row_distance, .d_student = &dq, .loss = &args->loss, .student = &qs,
                  .teacher = &qt, .weight = &args->weight, .scale = &args->scale,
                  .kind = paper ? KD_DISTANCE_NORMALISED_ROOT : KD_DISTANCE_NORMALISED,
                  .factor = paper ? 1.0f : 1.0f / (float)kd_max_i64(shape.dim[1], 1)));
    if (!kd_present(&d_student)) return KD_OK;
    return KD_RUN(exec, map_powers_backward, .dx = &d_student, .dy = &dq, .x = &student,
                  .power = power, .channels = channels);
}

const kd_feature_type kd_feature_attention_transfer = {
    .name = "attention_transfer",
    .help = "distance of normalised maps of activity (AT)",
    .unit = KD_UNIT_SAMPLE,
    .places = true,
    .reads = { { "student", "[B, C, H, W]", KD_READ_GRADIENT }, { "teacher", "[B, C', H, W]", 0 } },
    .options = rows,
    .run = run,
};
