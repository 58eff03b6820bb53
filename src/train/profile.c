/* Where a model differs from its teacher, and how well it knows what it knows: means per bin. */
#include "train/train.h"

#include <math.h>

static int bin_of(double x, int bins) { return x > 0.0 ? (int)fmin(x, bins - 1) : 0; /* NaN too */ }

static void add(kd_eval_bin *bin, const kd_measured *m, int64_t i)
{
    bin->tokens++;
    bin->nll += m->nll[i];
    bin->kl += m->kl[i];
    bin->same_top += m->same[i];
}

void kd_profile_add(kd_eval_profile *p, const kd_micro_batch *micro, const kd_measured *m,
                    const kd_measured *teacher)
{
    for (int64_t i = 0; i < micro->valid_count; i++) {
        const double context = micro->positions[micro->valid[i]] + 1.0;
        add(&p->position[bin_of(log2(context), KD_EVAL_POSITIONS)], m, i);
        if (teacher) add(&p->entropy[bin_of(2.0 * teacher->entropy[i], KD_EVAL_ENTROPIES)], m, i);
        kd_eval_trust *trust =
            &p->trust[bin_of(KD_EVAL_CONFIDENCES * m->confidence[i], KD_EVAL_CONFIDENCES)];
        trust->tokens++;
        trust->confidence += m->confidence[i];
        trust->accuracy += m->correct[i];
        p->mean_entropy += m->entropy[i];
    }
    p->tokens += micro->valid_count;
}

static void finish(kd_eval_bin *bins, int count)
{
    for (int i = 0; i < count; i++) {
        const double n = (double)bins[i].tokens;
        bins[i].nll /= n; /* 0 of 0 is NaN */
        bins[i].kl /= n;
        bins[i].same_top /= n;
    }
}

void kd_profile_finish(kd_eval_profile *p)
{
    const double all = (double)p->tokens;
    finish(p->position, KD_EVAL_POSITIONS);
    finish(p->entropy, KD_EVAL_ENTROPIES);
    for (int i = 0; i < KD_EVAL_CONFIDENCES; i++) {
        kd_eval_trust *t = &p->trust[i];
        const double n = (double)t->tokens;
        p->ece += fabs(t->confidence - t->accuracy) / all;
        p->confidence += t->confidence / all;
        p->accuracy += t->accuracy / all;
        t->confidence /= n;
        t->accuracy /= n;
    }
    p->mean_entropy /= all;
}
