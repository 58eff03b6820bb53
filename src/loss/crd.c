/*
 * crd - contrastive representation distillation: the student's embedding of a sample is to be told from those of
 * other samples by the teacher's, and the teacher's by the student's (Tian, Krishnan and Isola, Contrastive
 * Representation Distillation, ICLR 2020; noise-contrastive estimation after Wu et al., CVPR 2018).
 *
 *     v = x / |x|,  p_k = exp(M[i_k] v / T) / Z,  i_0 the sample itself, i_1 ... i_K its negatives,  c = K / n
 *     side              =  -log(p_0 / (p_0 + c + eps))  -  sum_k log(c / (p_k + c + eps))
 *     value of sample   =  side of the student over the teacher's bank  +  of the teacher over the student's
 *     d side / d v      =  (1 / T) (-(c + eps) / (p_0 + c + eps) M[i_0]  +  sum_k p_k / (p_k + c + eps) M[i_k])
 *     afterwards        M[sample] = m M[sample] + (1 - m) v, made as long as 1, each side's v in its own bank
 *
 * Reads     student [B, D] and teacher [B, D], both behind linear projectors that are trained, so that both have a
 *           gradient; samples [B] and negatives [B, K], numbers in [0, n); student_bank and teacher_bank [n, D],
 *           which begin as rows of random directions (of zeros they teach nothing); partition [2], Z of the
 *           student's and the teacher's side.
 * State     The banks and Z, which checkpoints have.  A Z of 0 is not known yet: n times the mean of this batch's
 *           exp(M v / T), then kept.  Scores are taken before banks are renewed.  Ranks keep the same banks: each
 *           scores the rows of all.  A step whose update is left out has renewed them all the same.
 * Unit      sample: the term is the mean over the batch.
 * Defaults  temperature 0.07, momentum 0.5, eps 1e-7; D 128, K 16384, weight 0.8 in the paper's code.
 * Equal     A student like its teacher has no value of 0.  Both sides may be scaled, row by row, and turned together
 *           with both banks.
 * Odd cases A row no longer than 1e-12 has v = 0 and no gradient.  Of a sample that a batch has twice, each is scored,
 *           and the last of weight other than 0 renews the bank.  What is not finite renews neither bank nor Z.
 *           A sample of weight 0 is not read: not its ids, not for Z.  Splitting a batch renews the banks in between, and
 *           makes Z of the first part.
 * Numbers   f32: exp(1 / T) is 1.6e6.  Each term is a sigmoid of M v / T - log Z - log(c + eps), which no score overflows.
 * Cost      A gather of K + 1 rows of D numbers for each sample and side, once, and as many again for an unknown Z.
 * Negatives are drawn outside (kd_crd_negatives): from other classes where labels are known, with replacement.
 * Elsewhere RepDistiller, the authors' code, is this; it draws without replacement, has no lower bound of |x|, of
 *           equal samples any one renews, and neither Z nor the banks are in what it saves.  torchdistill and
 *           mdistiller follow it; torchdistill's own sampler of negatives does not run (`prob` for `probs`).  AberHu's
 *           begins with banks of zeros, where all scores are equal and no row of either side gets a gradient.
 */
#include "loss/loss.h"

typedef struct options {
    double temperature, momentum, eps;
} options;

static const kd_option rows[] = {
    { "temperature", KD_FLOAT, offsetof(options, temperature), "0.07", 0.02, 100, "",
      "cosines are divided by it" },
    { "momentum", KD_FLOAT, offsetof(options, momentum), "0.5", 0, 1, "",
      "how much of a bank's row stays" },
    { "eps", KD_FLOAT, offsetof(options, eps), "1e-7", 0, 1, "", "added to p + c" },
    { 0 },
};

static kd_status check(const kd_feature_args *args)
{
    const int64_t batch = args->student.shape[0], width = args->student.shape[1];
    const int64_t n = args->student_bank.shape[0];
    KD_TRY(kd_tensor_expect(&args->teacher, "teacher", -1, KD_SHAPE(batch, width)));
    KD_TRY(kd_tensor_expect(&args->samples, "samples", -1, KD_SHAPE(batch)));
    KD_TRY(kd_tensor_expect(&args->negatives, "negatives", -1, KD_SHAPE(batch, -1)));
    KD_TRY(kd_tensor_expect(&args->student_bank, "student_bank", -1, KD_SHAPE(n, width)));
    KD_TRY(kd_tensor_expect(&args->teacher_bank, "teacher_bank", -1, KD_SHAPE(n, width)));
    return kd_tensor_expect(&args->partition, "partition", -1, KD_SHAPE(2));
}

/* x against the other side's bank. */
static kd_status score(kd_exec *exec, const kd_feature_args *args, const kd_tensor *x,
                       const kd_tensor *dx, const kd_tensor *bank, int64_t side)
{
    const options *o = args->options;
    const float temperature = (float)o->temperature;
    KD_TRY(KD_RUN(exec, contrast_partition, .partition = &args->partition, .x = x, .bank = bank,
                  .samples = &args->samples, .negatives = &args->negatives, .weight = &args->weight,
                  .temperature = temperature, .side = side));
    return KD_RUN(exec, contrast, .dx = dx, .loss = &args->loss, .x = x, .bank = bank,
                  .samples = &args->samples, .negatives = &args->negatives,
                  .partition = &args->partition, .weight = &args->weight, .scale = &args->scale,
                  .temperature = temperature, .eps = (float)o->eps, .side = side);
}

static kd_status renew(kd_exec *exec, const kd_feature_args *args, const kd_tensor *bank,
                       const kd_tensor *x)
{
    return KD_RUN(exec, renew_rows, .bank = bank, .x = x, .samples = &args->samples,
                  .weight = &args->weight,
                  .momentum = (float)((const options *)args->options)->momentum);
}

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    KD_TRY(check(args));
    KD_TRY(KD_RUN(exec, fill, .y = &args->loss, .value = 0));
    KD_TRY(score(exec, args, &args->student, &args->d_student, &args->teacher_bank, 0));
    KD_TRY(score(exec, args, &args->teacher, &args->d_teacher, &args->student_bank, 1));
    KD_TRY(renew(exec, args, &args->student_bank, &args->student));
    return renew(exec, args, &args->teacher_bank, &args->teacher);
}

const kd_feature_type kd_feature_crd = {
    .name = "crd",
    .help = "CRD: embeddings told from those of other samples",
    .unit = KD_UNIT_SAMPLE,
    .reads = { { "student", "[B, D]", KD_READ_GRADIENT },
               { "teacher", "[B, D]", KD_READ_GRADIENT },
               { "samples", "[B]", KD_READ_INTEGER },
               { "negatives", "[B, K]", KD_READ_INTEGER },
               { "student_bank", "[n, D]", KD_READ_STATE },
               { "teacher_bank", "[n, D]", KD_READ_STATE },
               { "partition", "[2]", KD_READ_STATE } },
    .options = rows,
    .relates = true,
    .run = run,
};
