/*
 * attention_kl - divergence of the student's attention maps from the teacher's, without the maps: the
 * attention transfer of MiniLM (Wang et al. 2020), of any layer.
 *
 *     s[h,n,j]  =  cap(q_n k_j / sqrt(d)) / T, of the keys j that query n sees in head h; t of the teacher
 *     value of token n  =  (1 / H) sum_h sum_j p log(p / q)      p = softmax_j(t), q = softmax_j(s)
 *     d value / d s     =  (q - p) / H
 *
 * Reads     student_q [N, H, d], student_k [N, G, d], teacher_q [N, H, e], teacher_k [N, F, e] after QK-norm
 *           and position; G and F divide H.  documents [D]: rows of packed documents begin there, last
 *           their number of rows.  student_lse, teacher_lse [H, N], where attention has saved them.
 * Heads     Both sides have H, or relation_heads makes it so (not with grouped keys).
 * Seen      Pairs of one document that `causal` and `window` let see, on both sides: padding is nowhere.  A
 *           saved log-sum-exp must be of the same pairs and softcap; it is not read with T other than 1 or
 *           with heads cut anew.
 * Unit      token: the term is the mean over the query rows that count, so 1 / (H |x|) as in the paper.  A
 *           row of weight 0 is no query, yet a key of others; one of no document has value 0.
 * Memory    [H, N] numbers besides gradients; no [N, N].
 * Elsewhere TextBrewer's attention_ce is sum -p log q, the entropy of p more, with padding inside both softmaxes;
 *           without a mask it leaves out keys whose teacher's score is at most -0.001.  Of MiniLM no
 *           training code was published.
 */
#include "loss/relate.h"

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    return kd_relate(exec, args, KD_RELATION_KL, kd_relate_student(args), kd_relate_teacher(args));
}

static const kd_option options[] = {
    KD_RELATE_TEMPERATURE, KD_RELATE_SEEN, KD_RELATE_SOFTCAPS, KD_RELATE_HEADS, { 0 }
};

const kd_feature_type kd_feature_attention_kl = {
    .name = "attention_kl",
    .help = "KL(teacher || student) of attention maps",
    .unit = KD_UNIT_TOKEN,
    .reads = { { "student_q", "[N, H, d]", KD_READ_GRADIENT },
               { "student_k", "[N, G, d]", KD_READ_GRADIENT },
               { "teacher_q", "[N, H, e]", 0 },
               { "teacher_k", "[N, F, e]", 0 },
               { "documents", "[D]", KD_READ_INTEGER },
               { "student_lse", "[H, N]", KD_READ_F32 | KD_READ_OPTIONAL },
               { "teacher_lse", "[H, N]", KD_READ_F32 | KD_READ_OPTIONAL } },
    .options = options,
    .run = run,
};
