/* clang-format off: the rows are a table */
/*
 * op_list.h - every op, once.  Included several times with other meanings of KD_OP and of the four
 * parts of a row; from a row come the argument struct kd_<op>_args, the table slot, the CPU and
 * CUDA prototypes, the name of every operand for messages, NaN-poisoning of outputs, the copy-in,
 * copy-out thunk of KD_ON_CPU, and the bench and parity rows.
 *
 *   OUT    written whole, never read          IN     read only; absent where the text says "or absent"
 *   INOUT  read and written                   ARG    a host value
 *
 * Letters: N rows, D width, V classes, H heads, G key/value heads, d head size.  Element types are
 * f32 or bf16 ("any") unless said; every op accumulates in f32 or better.  Unless said, operands do
 * not overlap.  The mathematics stands at the head of the file that is named at the right.
 */

/* y[M,N] = a[M,K] b[K,N] + bias[N]; transposes are strides.  bias or absent.        matmul.c */
KD_OP(matmul, OUT(y) IN(a) IN(b) IN(bias))
/* y += a b; y f32 or the type of a. */
KD_OP(matmul_add, INOUT(y) IN(a) IN(b))
/* y[B,M,N] = a[B,M,K] b[B,K,N], sample by sample; all f32, y by rows, transposes are strides. */
KD_OP(matmul_batched, OUT(y) IN(a) IN(b))
/* pre = a b + bias, y = gelu(pre) in its tanh form; y and pre of one type, by rows.  bias or absent.
 * A device may take the GELU before it rounds pre. */
KD_OP(matmul_gelu, OUT(y) OUT(pre) IN(a) IN(b) IN(bias))

/* y [N,D] e4m3 = x / scale, rounded to the nearest, ties to even, and kept within 448; scale [N] f32 =
 * a row's largest finite |x| / 448, or 1 where that is no normal number.  What is not finite becomes
 * NaN.  The division is a product with 1 / scale in f32.                           quantise.c */
KD_OP(quantise, OUT(y) OUT(scale) IN(x))
/* y[M,N] = a_scale[M] b_scale[N] (a[M,K] b[K,N]) + bias[N]; a and b e4m3 with stride 1 along K, so b is
 * a transposed weight; y by rows; scales f32; bias bf16 or absent.  A device may round a b to y's type
 * before it scales. */
KD_OP(matmul_scaled, OUT(y) IN(a) IN(b) IN(a_scale) IN(b_scale) IN(bias))
/* y[N,D] = row[N] (column[D] y[N,D]) + bias[D]; row and column f32; bias bf16 or absent. */
KD_OP(rescale, INOUT(y) IN(row) IN(column) IN(bias))

/* Over the last dimension of [N,D] or [N,H,d] (any outer strides).  With `residual`, normalises
 * sum = x + residual and writes `sum` (may be x or residual); both or neither absent.
 * rstd: f32, one per row.                                                              norm.c */
KD_OP(rms_norm, OUT(y) OUT(rstd) OUT(sum) IN(x) IN(residual) IN(weight) ARG(float, eps))
/* dx = d rms_norm + add; add or absent, and may be dx.  dweight f32, accumulated; or absent. */
KD_OP(rms_norm_backward, OUT(dx) INOUT(dweight) IN(dy) IN(x) IN(rstd) IN(weight) IN(add))
KD_OP(layer_norm,
      OUT(y) OUT(mean) OUT(rstd) OUT(sum) IN(x) IN(residual) IN(weight) IN(bias) ARG(float, eps))
KD_OP(layer_norm_backward,
      OUT(dx) INOUT(dweight) INOUT(dbias) IN(dy) IN(x) IN(mean) IN(rstd) IN(weight) IN(add))

/* Elementwise on [N,D] views.  Gradients may overwrite their operands.             activation.c */
KD_OP(swiglu, OUT(y) IN(gate) IN(up))
KD_OP(swiglu_backward, OUT(dgate) OUT(dup) IN(dy) IN(gate) IN(up))
KD_OP(gelu, OUT(y) IN(x) ARG(bool, tanh_form))
KD_OP(gelu_backward, OUT(dx) IN(dy) IN(x) ARG(bool, tanh_form))
KD_OP(relu, OUT(y) IN(x))
/* relu's result will do for its x. */
KD_OP(relu_backward, OUT(dx) IN(dy) IN(x))

/* x [N,H,d] in place: pairs (i, i + r/2) of the first r = 2 * len(frequencies) columns turn by
 * positions[n] * frequencies[i] (i32, f32), times `scale`; `backward` turns back.       rope.c */
KD_OP(rope, INOUT(x) IN(positions) IN(frequencies) ARG(float, scale) ARG(bool, backward))

/* y = rope(rms_norm(x)) over the heads of x [N,H+G,d], d at most 256: the first `heads` of a row with
 * q_weight [d], the others with k_weight [d].  rstd f32 [N,H+G].  frequencies and positions, or no
 * turning.                                                                          qk_norm.c */
KD_OP(qk_norm_rope, OUT(y) OUT(rstd) IN(x) IN(q_weight) IN(k_weight) IN(positions) IN(frequencies)
                        ARG(int64_t, heads) ARG(float, eps) ARG(float, scale))
/* dx may be dy.  dq_weight, dk_weight f32, accumulated; or absent. */
KD_OP(qk_norm_rope_backward,
      OUT(dx) INOUT(dq_weight) INOUT(dk_weight) IN(dy) IN(x) IN(rstd) IN(q_weight) IN(k_weight)
          IN(positions) IN(frequencies) ARG(int64_t, heads) ARG(float, scale))

/* Documents are rows [cu[i], cu[i+1]) of q and of k, v (i32 [documents + 1], non-decreasing, may
 * end in empty documents).  q, o [Nq,H,d]; k, v [Nk,G,d]; lse [H,Nq] f32.  Causal compares ends:
 * query i of t sees keys up to i + (tk - tq).  window 0: unlimited, else that many keys counting
 * the own; softcap 0: none.                                                       attention.c */
KD_OP(attention, OUT(o) OUT(lse) IN(q) IN(k) IN(v) IN(cu_q) IN(cu_k) ARG(float, scale)
                     ARG(bool, causal) ARG(int64_t, window) ARG(float, softcap))
KD_OP(attention_backward,
      OUT(dq) OUT(dk) OUT(dv) IN(dout) IN(o) IN(lse) IN(q) IN(k) IN(v) IN(cu_q) IN(cu_k)
          ARG(float, scale) ARG(bool, causal) ARG(int64_t, window) ARG(float, softcap))

/* How rows of one document relate in two models, by tiles: no [N, N] anywhere.  a [N,R,d] are queries,
 * b [N,Rb,d] keys (Rb divides R; b may be a); documents, causal and window as in attention.
 * lse[R,N] f32 of scores cap(scale a b') / temperature.                            relation.c */
KD_OP(relation_lse, OUT(lse) IN(a) IN(b) IN(cu) ARG(kd_scoring, scores) ARG(float, temperature)
                        ARG(bool, causal) ARG(int64_t, window))
/* loss[n] f32 = weight[n] times the mean over heads of row n's divergence from the teacher's;
 * da, db += scale[0] d sum(loss) / d a, b, of the type of a; each absent, or both one tensor.  The
 * teacher has R heads too, of any size and grouping, f32 or bf16 whatever the student has.  lse,
 * teacher_lse: of the KL alone.  weight f32 [N] or absent; scale f32 [1], absent with da and db. */
KD_OP(relation, OUT(loss) INOUT(da) INOUT(db) IN(a) IN(b) IN(teacher_a) IN(teacher_b) IN(lse)
                    IN(teacher_lse) IN(cu) IN(weight) IN(scale) ARG(kd_relation, relation))

/* y[n] = table[ids[n]] (+ add[n]), ids i32 [N] in [0, V); or, with factor f32 [N,K] and ids [N,K],
 * y[n] = sum over k of factor[n,k] table[ids[n,k]] (+ add[n]).  add or absent, may be y.  embedding.c */
KD_OP(embedding, OUT(y) IN(table) IN(ids) IN(factor) IN(add))
/* dtable[ids[n]] += dy[n], or dtable[ids[n,k]] += factor[n,k] dy[n]; f32, same order of additions whatever
 * the threads. */
KD_OP(embedding_backward, INOUT(dtable) IN(dy) IN(ids) IN(factor))
/* y[n,k] = x[n] table[ids[n,k]] (+ bias[ids[n,k]]): a factor's gradient, and the logits of K classes a
 * row.  y f32 [N,K]; x [N,D] of table's type [V,D]; bias [V], f32 or bf16, or absent. */
KD_OP(embedding_products, OUT(y) IN(x) IN(table) IN(ids) IN(bias))

/* The K largest of the first `classes` of a row of logits [N,V], largest first, of equal ones the first:
 * ids i32 [N,K]; log_p f32 [N,K] of the softmax over all `classes` of logits / temperature.  A row
 * labelled -1 is not read: ids 0 to K - 1, log_p 0.  labels i32 [N] or absent; K at most `classes` and
 * KD_MAX_TOP.                                                                   top_classes.c */
KD_OP(top_classes,
      OUT(ids) OUT(log_p) IN(logits) IN(labels) ARG(int64_t, classes) ARG(float, temperature))

/*                                                                                elementwise.c */
KD_OP(fill, OUT(y) ARG(float, value))
KD_OP(copy, OUT(y) IN(x))      /* converts between f32, bf16 and f16; any strides of equal shapes */
KD_OP(add, OUT(y) IN(a) IN(b)) /* y may be a or b */
/* y[n] = x[rows[n]], zero where rows[n] is -1; and y[rows[n]] = x[n], nothing where -1. */
KD_OP(gather_rows, OUT(y) IN(x) IN(rows))
KD_OP(scatter_rows, INOUT(y) IN(x) IN(rows))

/* Sums of a fixed order, in double.                                                   reduce.c */
KD_OP(sum_columns, INOUT(y) IN(x)) /* y[D] += sum over rows of x[N,D]; y f32 */
KD_OP(sum_rows, INOUT(y) IN(x))    /* y[R] += sum over columns of x[R,N]; f32 */
KD_OP(sum_squares, OUT(y) IN(x))   /* y[1] = sum of x^2; y f32, x f32 */

/* Cross entropy and every divergence in one pass; the gradient overwrites `student` [n,V].
 * teacher [n,V'] or absent (V, V' >= classes); labels i32 [n], -1: ignored, or absent; weight f32
 * [n] or absent; loss f32 [terms, n]; same_top f32 [n] (1 where student and teacher have the same
 * first class) or absent.  Ignored rows are not read: loss 0, gradient 0.  Columns from `classes`
 * to V get gradient zero.  `scalars` holds scale, temperature and options per term.  row_loss.c */
KD_OP(row_loss, INOUT(student) OUT(loss) OUT(same_top) IN(teacher) IN(labels) IN(weight) IN(scalars)
                    ARG(const kd_row_terms *, terms) ARG(int64_t, classes))

/* The same where the teacher is known at K classes of a row: teacher_ids i32 [n,K] with -1 where there is
 * none, teacher_log_p [n,K] at temperature `capture`; teacher_sampling f32 [n,K], the probabilities that
 * ids were drawn with, in that mode; teacher_tail f32 [n], the teacher's mass elsewhere, or absent: what
 * is missing to 1.  K at most `classes`, but of draws.                          row_loss_topk.c */
KD_OP(row_loss_topk,
      INOUT(student) OUT(loss) OUT(same_top) IN(teacher_ids) IN(teacher_log_p) IN(teacher_sampling)
          IN(teacher_tail) IN(labels) IN(weight) IN(scalars) ARG(const kd_row_terms *, terms)
              ARG(int64_t, classes) ARG(kd_topk, mode) ARG(float, capture))

/* How far apart two rows are.  loss[n] = factor weight[n] value, d_student[n] += scale[0] times its
 * gradient; student, teacher [N,D]; d_student [N,D] of the student's type, or absent; weight f32 [N], 0:
 * the row is not read, or absent; loss f32 [N]; scale f32 [1].                    row_distance.c */
KD_OP(row_distance, INOUT(d_student) OUT(loss) IN(student) IN(teacher) IN(weight) IN(scale)
                        ARG(kd_distance, kind) ARG(float, factor))

/* Maps of |x|^power, power at least 1, of x [B,C,S]: y f32 [B,S] = its sums over C or, `channels`, [B,C] =
 * those over S.  Backward: dx += dy power |x|^(power - 1) sign(x); where dy is 0 x is not read.
 *                                                                                    maps.c */
KD_OP(map_powers, OUT(y) IN(x) ARG(float, power) ARG(bool, channels))
KD_OP(map_powers_backward, INOUT(dx) IN(dy) IN(x) ARG(float, power) ARG(bool, channels))

/* y = x / max(|x|, eps), or x / (|x| + eps) when `added`, over the last dimension; y f32 or bf16 of its
 * own; norm = |x|, f32, one per row.                                             normalise.c */
KD_OP(normalise, OUT(y) OUT(norm) IN(x) ARG(float, eps) ARG(bool, added))
KD_OP(normalise_backward,
      INOUT(dx) IN(dy) IN(x) IN(norm) ARG(float, eps) ARG(bool, added)) /* dx += */

/* y f32 = x, zeros in rows whose weight is 0, which are not read; share = weight / how many are not 0. */
KD_OP(keep_rows, OUT(y) OUT(share) IN(x) IN(weight))

/* Losses over all pairs of a batch of N.  y[N,N] f32 = |x_i - x_j|^2 of rows of x[N,D], exactly
 * symmetric with a diagonal of zeros; dx_i += 2 sum_j (dy_ij + dy_ji) (x_i - x_j).     pairs.c */
KD_OP(pair_distances, OUT(y) IN(x))
KD_OP(pair_distances_backward, INOUT(dx) IN(dy) IN(x))
/* loss f32 [N] of row i, times weight[i]; d [N,N] = scale[0] times the gradient of their sum with
 * respect to `student`; d or absent, with it scale may be; weight f32 [N] or absent, a row whose weight
 * is 0 counting in no other's loss; all f32.                                   pair_losses.c
 * student and teacher: squared distances; `whole`: a mean distance counts all N^2 pairs. */
KD_OP(rkd_distance, OUT(d) OUT(loss) IN(student) IN(teacher) IN(weight) IN(scale) ARG(bool, whole))
KD_OP(rkd_angle, OUT(d) OUT(loss) IN(student) IN(teacher) IN(weight) IN(scale))
/* student and teacher: products of normalised rows, symmetric; d_ij stands for ij and ji together. */
KD_OP(pkt, OUT(d) OUT(loss) IN(student) IN(teacher) IN(weight) IN(scale) ARG(float, eps))
/* Products of |student - teacher| of a row and the next; student, d_student and teacher [N,D]; d_student
 * is added to, or absent.                                                        correlation.c */
KD_OP(correlation, INOUT(d_student) OUT(loss) IN(student) IN(teacher) IN(weight) IN(scale))

/* Rows against a bank of them: noise-contrastive, K + 1 rows of `bank` f32 [n,D] a row of x [B,D], D at most
 * KD_MAX_CONTRAST; the positive samples[b], i32 [B], then negatives[b], i32 [B,K].  partition f32: element
 * `side` is Z.  loss f32 [B] += weight[b] value, dx += scale[0] weight[b] times its gradient; dx, of x's
 * type, or absent; weight f32 [B], 0: the row is not read, nor its ids, or absent; scale f32 [1], absent
 * with dx.                                                                       contrast.c */
KD_OP(contrast, INOUT(dx) INOUT(loss) IN(x) IN(bank) IN(samples) IN(negatives) IN(partition)
                    IN(weight) IN(scale) ARG(float, temperature) ARG(float, eps) ARG(int64_t, side))
/* Z of a side that is 0 = n times the batch's mean of exp(score); else nothing is done. */
KD_OP(contrast_partition, INOUT(partition) IN(x) IN(bank) IN(samples) IN(negatives) IN(weight)
                              ARG(float, temperature) ARG(int64_t, side))
/* bank[samples[b]] = momentum of it and 1 - momentum of x[b] / |x[b]|, made as long as 1; of equal samples
 * the last stays.  A row of weight 0 or that is not finite renews nothing. */
KD_OP(renew_rows, INOUT(bank) IN(x) IN(samples) IN(weight) ARG(float, momentum))
/* What a sample's maps x, y (teacher) with rows of length one have in common (NST), from products of them:
 *   by places   student [B,S,S] = x'x, teacher [B,S,S] = y'y
 *   by channels student [B,C,C+C'] = x (x, y)', teacher [B,C',C'] = y y'
 * loss[B] = weight |x'x / C - y'y / C'|^2, and student becomes G, with x G or G (x, y) the gradient of
 * scale[0] times their sum; without scale it stays.  All f32.                  gram_distance.c */
KD_OP(gram_distance,
      INOUT(student) OUT(loss) IN(teacher) IN(weight) IN(scale) ARG(int64_t, channels)
          ARG(int64_t, teacher_channels) ARG(bool, by_channel))

/* Teacher's maps under normal distributions around the student's, a variance v = softplus(log_variance) + eps
 * for each channel (VID); student, teacher [B,C,S].  loss[B] f32 = weight mean ((x - t)^2 / v + log v) / 2;
 * d_student, of student's type, and d_log_variance f32 [C] += scale[0] times the gradient of their sum,
 * each or absent; log_variance f32 [C]; weight f32 [B], 0: the sample is not read, or absent.  vid.c */
KD_OP(vid, INOUT(d_student) INOUT(d_log_variance) OUT(loss) IN(student) IN(teacher) IN(log_variance)
               IN(weight) IN(scale) ARG(float, eps))

/* The update; every operand is a slab range [n].                                      update.c */
/* Global norm, clip factor, loss and verdict into `scalars`, from sum_squares[1] and losses [terms]. */
KD_OP(clip, INOUT(scalars) IN(sum_squares) IN(losses) ARG(float, max_norm))
/* Whether this step updates anything; for all students or for none.  scalars: theirs, one after the
 * other; guard: a kd_guard.  A step that is not finite stops the run, or is left out where `skip`; so
 * is one whose z exceeds `zscore` (0: none is).  More than `max_skips` in a row stop the run. */
KD_OP(guard, INOUT(guard) INOUT(scalars) ARG(bool, skip) ARG(float, zscore) ARG(int64_t, max_skips)
                 ARG(float, beta1) ARG(float, beta2))
/* param f32 masters; weights: their copy in the compute type, or absent.  Nothing moves while
 * scalars->verdict is not zero. */
KD_OP(adamw, INOUT(param) INOUT(m) INOUT(v) INOUT(weights) IN(gradient) IN(scalars)
                 ARG(float, beta1) ARG(float, beta2) ARG(float, eps) ARG(float, decay))
KD_OP(sgd, INOUT(param) INOUT(m) INOUT(weights) IN(gradient) IN(scalars) ARG(float, momentum)
               ARG(bool, nesterov) ARG(float, decay))
