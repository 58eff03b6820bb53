/*
 * row_list.h - every row-logit term, once: name, reads the teacher, reads the label, when its
 * gradient reads its sums (kd_row_need), what else of a row it reads (kd_row_extra), its two options
 * (name, default, min, max; NULL: none), what it is.  The value and the gradient of x are in rows/x.h.
 */
/* clang-format off */
KD_ROW(cross_entropy,      false, true,  KD_SUMS_OPTION, KD_EXTRA_NONE,   "label_smoothing", 0.0, 0.0, 0.999, NULL, 0.0, 0.0, 0.0, "-log q of the label, smoothed over the live classes")
KD_ROW(forward_kl,         true,  false, KD_SUMS_DEAD,   KD_EXTRA_NONE,   NULL,     0.0, 0.0, 0.0,   NULL,   0.0, 0.0, 0.0,    "KL(teacher || student)")
KD_ROW(reverse_kl,         true,  false, KD_SUMS_ALWAYS, KD_EXTRA_NONE,   NULL,     0.0, 0.0, 0.0,   NULL,   0.0, 0.0, 0.0,    "KL(student || teacher)")
KD_ROW(jsd,                true,  false, KD_SUMS_ALWAYS, KD_EXTRA_NONE,   "beta",   0.5, 0.0, 1.0,   NULL,   0.0, 0.0, 0.0,    "generalised JSD; beta weighs the teacher; 0 is forward KL, 1 reverse KL")
KD_ROW(skew_kl,            true,  false, KD_SUMS_ALWAYS, KD_EXTRA_NONE,   "lambda", 0.1, 0.0, 0.999, NULL,   0.0, 0.0, 0.0,    "KL(teacher || lambda teacher + (1 - lambda) student)")
KD_ROW(skew_reverse_kl,    true,  false, KD_SUMS_ALWAYS, KD_EXTRA_NONE,   "lambda", 0.1, 0.0, 0.999, NULL,   0.0, 0.0, 0.0,    "KL(student || lambda student + (1 - lambda) teacher)")
KD_ROW(total_variation,    true,  false, KD_SUMS_ALWAYS, KD_EXTRA_NONE,   NULL,     0.0, 0.0, 0.0,   NULL,   0.0, 0.0, 0.0,    "half the L1 distance of teacher and student")
KD_ROW(z_loss,             false, false, KD_SUMS_NEVER,  KD_EXTRA_NONE,   NULL,     0.0, 0.0, 0.0,   NULL,   0.0, 0.0, 0.0,    "square of the student's log-sum-exp")
KD_ROW(soft_cross_entropy, true,  false, KD_SUMS_DEAD,   KD_EXTRA_NONE,   NULL,     0.0, 0.0, 0.0,   NULL,   0.0, 0.0, 0.0,    "-sum of p log q: forward KL and the teacher's entropy")
KD_ROW(hard_distillation,  true,  false, KD_SUMS_DEAD,   KD_EXTRA_TOP,    NULL,     0.0, 0.0, 0.0,   NULL,   0.0, 0.0, 0.0,    "-log q of the teacher's first largest class")
KD_ROW(logit_mse,          true,  false, KD_SUMS_ALWAYS, KD_EXTRA_LOGITS, NULL,     0.0, 0.0, 0.0,   NULL,   0.0, 0.0, 0.0,    "mean over classes of the square of z / T - t / T")
KD_ROW(dkd,                true,  true,  KD_SUMS_DEAD,   KD_EXTRA_REST,   "alpha",  1.0, 0.0, 100.0, "beta", 8.0, 0.0, 100.0,   "decoupled: alpha KL over (label, the rest) + beta KL within the rest")
/* clang-format on */
