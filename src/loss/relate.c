/* Heads of both sides made one number, their log-sum-exp found where it is not given, and the op. */
#include "loss/relate.h"

#include <math.h>

kd_related kd_relate_student(const kd_feature_args *args)
{
    return (kd_related){ .a = args->student_q,
                         .b = args->student_k,
                         .da = args->d_student_q,
                         .db = args->d_student_k,
                         .lse = args->student_lse,
                         .name = "student_q" };
}

kd_related kd_relate_teacher(const kd_feature_args *args)
{
    return (kd_related){
        .a = args->teacher_q, .b = args->teacher_k, .lse = args->teacher_lse, .name = "teacher_q"
    };
}

/* [N, H, d] seen as [N, heads, H d / heads]; what is absent stays so. */
static kd_status cut(kd_tensor *t, const char *name, int64_t heads)
{
    const int64_t d = t->shape[2], width = t->shape[1] * d;
    if (!kd_present(t)) return KD_OK;
    if (width % heads != 0)
        return kd_fail(KD_EINVAL, "%s has %lld columns, which relation_heads %lld does not divide",
                       name, (long long)width, (long long)heads);
    if (t->shape[1] > 1 && t->stride[1] != d)
        return kd_fail(KD_EINVAL, "%s: its heads are apart, relation_heads wants them side by side",
                       name);
    t->shape[1] = heads, t->shape[2] = width / heads;
    t->stride[1] = t->shape[2];
    return KD_OK;
}

static kd_status cut_side(kd_related *side, int64_t heads)
{
    if (heads == side->a.shape[1]) return KD_OK;
    if (side->a.shape[1] != side->b.shape[1])
        return kd_fail(KD_EINVAL,
                       "%s has %lld heads over %lld of its keys: relation_heads cuts only as many",
                       side->name, (long long)side->a.shape[1], (long long)side->b.shape[1]);
    side->lse = (kd_tensor){ 0 }; /* of other heads */
    KD_TRY(cut(&side->a, side->name, heads));
    KD_TRY(cut(&side->b, side->name, heads));
    KD_TRY(cut(&side->da, side->name, heads));
    return cut(&side->db, side->name, heads);
}

static kd_scoring scoring(const kd_related *side, double softcap)
{
    return (kd_scoring){ .scale = 1.0f / sqrtf((float)side->a.shape[2]),
                         .softcap = (float)softcap };
}

/* What attention has saved is that of T = 1. */
static kd_status find_lse(kd_exec *exec, kd_related *side, const kd_tensor *cu,
                          const kd_relation *relation, kd_scoring scores)
{
    if (kd_present(&side->lse) && relation->temperature == 1.0f) return KD_OK;
    KD_TRY(kd_push(&side->lse, exec, "relation lse", KD_F32,
                   KD_SHAPE(side->a.shape[1], side->a.shape[0])));
    return KD_RUN(exec, relation_lse, .lse = &side->lse, .a = &side->a, .b = &side->b, .cu = cu,
                  .scores = scores, .temperature = relation->temperature,
                  .causal = relation->causal, .window = relation->window);
}

kd_status kd_relate(kd_exec *exec, const kd_feature_args *args, kd_relation_kind kind,
                    kd_related student, kd_related teacher)
{
    const kd_relate_options *o = args->options;
    const int64_t heads = o->relation_heads > 0 ? o->relation_heads : student.a.shape[1];
    if (o->relation_heads == 0 && teacher.a.shape[1] != heads)
        return kd_fail(KD_EINVAL,
                       "%s has %lld heads, %s %lld: set relation_heads to what divides the columns "
                       "of both",
                       student.name, (long long)heads, teacher.name, (long long)teacher.a.shape[1]);
    KD_TRY(cut_side(&student, heads));
    KD_TRY(cut_side(&teacher, heads));
    const kd_relation relation = { .kind = kind,
                                   .student = scoring(&student, o->softcap),
                                   .teacher = scoring(&teacher, o->teacher_softcap),
                                   .temperature = (float)o->temperature,
                                   .t_squared = o->t_squared,
                                   .causal = o->causal,
                                   .window = o->window,
                                   .floor = (float)o->floor,
                                   .pairs = o->pairs };
    if (kind == KD_RELATION_KL) {
        KD_TRY(find_lse(exec, &student, &args->documents, &relation, relation.student));
        KD_TRY(find_lse(exec, &teacher, &args->documents, &relation, relation.teacher));
    }
    return KD_RUN(exec, relation, .loss = &args->loss, .da = &student.da, .db = &student.db,
                  .a = &student.a, .b = &student.b, .teacher_a = &teacher.a,
                  .teacher_b = &teacher.b, .lse = &student.lse, .teacher_lse = &teacher.lse,
                  .cu = &args->documents, .weight = &args->weight, .scale = &args->scale,
                  .relation = relation);
}
