/*
 * row_list.h - every row-logit term, once: name, reads the teacher, reads the label, when its
 * gradient reads its sums (kd_row_need), its option (name, default, min, max), what it is.  The value
 * and the gradient of x are in rows/x.h.
 */
/* clang-format off */
KD_ROW(cross_entropy,   false, true,  KD_SUMS_OPTION, "label_smoothing", 0.0, 0.0, 0.999, "-log q of the label, smoothed over the live classes")
KD_ROW(forward_kl,      true,  false, KD_SUMS_DEAD,   NULL,   0.0, 0.0, 0.0, "KL(teacher || student)")
KD_ROW(reverse_kl,      true,  false, KD_SUMS_ALWAYS, NULL,   0.0, 0.0, 0.0, "KL(student || teacher)")
KD_ROW(jsd,             true,  false, KD_SUMS_ALWAYS, "beta", 0.5, 0.0, 1.0, "generalised JSD; beta weighs the teacher; 0 is forward KL, 1 reverse KL")
KD_ROW(skew_kl,         true,  false, KD_SUMS_ALWAYS, "lambda", 0.1, 0.0, 0.999, "KL(teacher || lambda teacher + (1 - lambda) student)")
KD_ROW(skew_reverse_kl, true,  false, KD_SUMS_ALWAYS, "lambda", 0.1, 0.0, 0.999, "KL(student || lambda student + (1 - lambda) teacher)")
KD_ROW(total_variation, true,  false, KD_SUMS_ALWAYS, NULL,   0.0, 0.0, 0.0, "half the L1 distance of teacher and student")
KD_ROW(z_loss,          false, false, KD_SUMS_NEVER,  NULL,   0.0, 0.0, 0.0, "square of the student's log-sum-exp")
/* clang-format on */
