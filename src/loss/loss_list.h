/*
 * loss_list.h - every feature and relation loss, once: its name.  src/loss/<name>.c has its
 * mathematics at the head, what it reads and its options in kd_feature_<name>.  Losses over rows of
 * logits are in ops/row_list.h.
 */
/* clang-format off */
/* features */
KD_FEATURE(attention_transfer)
KD_FEATURE(cosine)
KD_FEATURE(hidden_mse)
KD_FEATURE(hint)
KD_FEATURE(normalised_mse)
KD_FEATURE(nst)
KD_FEATURE(vid)

/* relations: pairs */
KD_FEATURE(cc)
KD_FEATURE(pkt)
KD_FEATURE(rkd_angle)
KD_FEATURE(rkd_distance)
KD_FEATURE(sp)

/* contrast */
KD_FEATURE(crd)

/* transformers */
KD_FEATURE(attention_kl)
KD_FEATURE(attention_mse)
KD_FEATURE(minilm_relation)

/* clang-format on */
