/*
 * attention_mse - squared difference of attention scores before their softmax, as TinyBERT (Jiao et al.
 * 2020, eq. 7) matches attention; without the maps.
 *
 *     s[h,n,j]  =  cap(q_n k_j / sqrt(d)) / T, of the c_n keys j that query n sees in head h; t of the teacher
 *     value of token n  =  (1 / H) sum_h (1 / c_n) sum_j (s - t)^2
 *     d value / d s     =  2 (s - t) / (H c_n)
 *     floor < 0         s and t become 0 where <= floor; such an s has no gradient
 *     pairs > 0         takes the place of c_n in every row
 *
 * Reads     student_q [N, H, d], student_k [N, G, d], teacher_q [N, H, e], teacher_k [N, F, e] after QK-norm
 *           and position; G and F divide H.  documents [D]: rows of packed documents begin there, last
 *           their number of rows.
 * Heads     Both sides have H, or relation_heads makes it so (not with grouped keys).
 * Seen      Pairs of one document that `causal` and `window` let see: padding is nowhere.
 * Unit      token: the term is the mean over the query rows that count.  A row of weight 0 is no query, yet a
 *           key of others; one of no document has value 0.
 * Elsewhere TinyBERT's code clamps with floor -100 (its masked keys stand at -10000, so they count as 0 on
 *           both sides) and takes the mean over B H L L, padding among it.  Batches without padding are
 *           equal with causal false and floor -100.  With padding, pairs = L gives its sum over real
 *           pairs divided by H L N, N the real rows where it has B L; what it adds of padding's own queries
 *           has no place among packed documents.  TextBrewer divides by H sum L^2, so that long documents
 *           weigh more; without a mask it zeroes every score of at most -0.001.
 */
#include "loss/relate.h"

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    return kd_relate(exec, args, KD_RELATION_MSE, kd_relate_student(args), kd_relate_teacher(args));
}

static const kd_option options[] = {
    KD_RELATE_TEMPERATURE,
    KD_RELATE_SEEN,
    KD_RELATE_SOFTCAPS,
    KD_RELATE_HEADS,
    { "floor", KD_FLOAT, offsetof(kd_relate_options, floor), "0", -1e30, 0, "",
      "scores at or below it count as 0 (TinyBERT: -100); 0: none do" },
    { "pairs", KD_INT, offsetof(kd_relate_options, pairs), "0", 0, 1e12, "rows",
      "that a row's sum is divided by; 0: those that it sees" },
    { 0 },
};

const kd_feature_type kd_feature_attention_mse = {
    .name = "attention_mse",
    .help = "mean squared difference of attention scores",
    .unit = KD_UNIT_TOKEN,
    .reads = { { "student_q", "[N, H, d]", KD_READ_GRADIENT },
               { "student_k", "[N, G, d]", KD_READ_GRADIENT },
               { "teacher_q", "[N, H, e]", 0 },
               { "teacher_k", "[N, F, e]", 0 },
               { "documents", "[D]", KD_READ_INTEGER } },
    .options = options,
    .run = run,
};
