/*
 * minilm_relation - divergence of how rows relate to each other: MiniLM's value relation (Wang et al. 2020)
 * and the Q-Q, K-K and V-V relations of MiniLMv2 (Wang et al. 2021); without the maps.
 *
 *     s[h,n,j]  =  x_n x_j / sqrt(d) / T, of the rows j that row n sees in head h; t of the teacher
 *     value of token n  =  (1 / R) sum_h sum_j p log(p / q)      p = softmax_j(t), q = softmax_j(s)
 *     d value / d x     =  (g + g') x / sqrt(d)                  g = d value / d s = (q - p) / R
 *
 * Reads     student [N, H, d], teacher [N, H', e]: queries, keys or values of a layer, after QK-norm and
 *           position where they have them.  documents [D]: rows of packed documents begin there, last their
 *           number of rows.
 * Heads     relation_heads R: the heads of each side are put side by side and cut into R, of H d / R and
 *           H' e / R columns, so neither counts nor sizes need match (MiniLMv2: 48 for 768 columns, 64
 *           for 1024); 0: H = H', as in MiniLM.
 * Seen      Pairs of one document that `causal` and `window` let see; the papers' models see both ways: causal
 *           false.
 * Unit      token: the term is the mean over the rows that count, so 1 / (R |x|) as in the papers.  A row of
 *           weight 0 relates to none, yet others relate to it; one of no document has value 0.
 * Elsewhere MiniLM adds attention_kl of the same layer, MiniLMv2 the three relations, all with weight 1, of
 *           the student's last layer and the teacher's last (base) or an upper one (large).  No training
 *           code was published.
 */
#include "loss/relate.h"

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    const kd_related student = { .a = args->student,
                                 .b = args->student,
                                 .da = args->d_student,
                                 .db = args->d_student,
                                 .name = "student" };
    const kd_related teacher = { .a = args->teacher, .b = args->teacher, .name = "teacher" };
    return kd_relate(exec, args, KD_RELATION_KL, student, teacher);
}

static const kd_option options[] = {
    KD_RELATE_TEMPERATURE, KD_RELATE_SEEN, KD_RELATE_HEADS, { 0 }
};

const kd_feature_type kd_feature_minilm_relation = {
    .name = "minilm_relation",
    .help = "KL(teacher || student) of how queries, keys or values relate to each other",
    .unit = KD_UNIT_TOKEN,
    .reads = { { "student", "[N, H, d]", KD_READ_GRADIENT },
               { "teacher", "[N, H', e]", 0 },
               { "documents", "[D]", KD_READ_INTEGER } },
    .options = options,
    .run = run,
};
