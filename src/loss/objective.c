/* What an objective says of one student: how many terms, their scalars at a step, and the chunk of its head. */
#include "loss/loss.h"

double kd_ramp_at(const kd_ramp *ramp, int64_t step)
{
    if (step >= ramp->steps) return ramp->to;
    return ramp->from + (ramp->to - ramp->from) * (double)step / (double)ramp->steps;
}

static int64_t clamp(int64_t x, int64_t low, int64_t high)
{
    return kd_min_i64(kd_max_i64(x, low), high);
}

int64_t kd_objective_chunk(int64_t rows, int64_t row_bytes, int64_t width,
                           const kd_device_info *device)
{
    const bool cpu = strcmp(device->type, "cpu") == 0;
    const int64_t step = cpu ? 64 : 128, memory = (int64_t)device->total;
    const int64_t budget = clamp(memory / (cpu ? 64 : 16), 64 << 20, 1 << 30);
    /* On a GPU d hidden has rows * width outputs in tiles of 128 x 256, of which 132 processors want
     * one each; and adding to an f32 d weight is bound by its memory below some 1100 rows. */
    const int64_t enough = cpu ? kd_cpu_rows(device) : kd_max_i64(132 * 128 * 256 / width, 2048);
    const int64_t fits = kd_min_i64(budget / row_bytes, enough) / step * step;
    return clamp(fits, step, kd_ceil_div(rows, step) * step);
}

/* ---- terms of one student --------------------------------------------------------------------- */

int kd_objective_terms(const kd_objective *objective, int student)
{
    int n = 0;
    for (int i = 0; i < objective->count; i++) n += objective->terms[i].student == student;
    return n;
}

int kd_objective_row_terms(const kd_objective *objective, int student)
{
    int n = 0;
    for (int i = 0; i < objective->count; i++)
        n += objective->terms[i].student == student && !objective->terms[i].tapped;
    return n;
}

void kd_objective_scalars(kd_step_scalars *scalars, const kd_objective *objective, int student,
                          int64_t step, double valid)
{
    int n = 0;
    for (int i = 0; i < objective->count; i++) {
        const kd_term *term = &objective->terms[i];
        if (term->student != student) continue;
        const double weight = kd_ramp_at(&term->weight, step);
        scalars->term[n++] = (kd_term_scalars){
            .scale = valid > 0 ? (float)(weight / valid) : 0.0f,
            .temperature = (float)term->temperature,
            .t_squared = term->t_squared ? (float)(term->temperature * term->temperature) : 1.0f,
            .option = (float)term->option,
            .option2 = (float)term->option2,
        };
    }
}
