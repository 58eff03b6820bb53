/* Terms of a run file over taps: which layers of which models they pair, what they say, and what they
 * refuse; and that the effective configuration makes the same terms. */
#include "loss/loss.h"
#include "support/support.h"

static const int64_t narrow[] = { 8, 8, 8, 8, 8 }, wide[] = { 12, 12, 12, 12, 12, 12, 12 };

static const kd_offer student = { .label = "student",
                                  .architecture = "LlamaForCausalLM",
                                  .layers = 4,
                                  .widths = narrow,
                                  .heads = 2 };
static const kd_offer teacher = {
    .label = "teacher", .architecture = "GPT2LMHeadModel", .layers = 6, .widths = wide, .heads = 2
};
static const kd_offer headless = {
    .label = "teacher", .architecture = "MLP", .layers = 2, .widths = narrow, .samples = true
};

static kd_status make(kd_term **terms, int *count, kd_logit_view *logits, kd_arena *arena,
                      const char *loss, const kd_offer *by)
{
    static const int students[] = { 1 }, teachers[] = { 0 };
    const kd_offer offers[] = { *by, student };
    kd_node *node;
    KD_TRY(kd_yaml_parse(&node, arena, "loss", loss, strlen(loss)));
    KD_TRY(kd_terms_parse(terms, count, logits, arena, node, students, 1, teachers, 1));
    return kd_terms_bind(*terms, *count, arena, offers);
}

static const struct {
    const char *loss, *said;
} said[] = {
    { "{kl: {temperature: 2}, top_k: {k: 64}}",
      "1 kl = forward_kl, T 2, T^2 on  (the teacher's 64 largest classes, the others tail)" },
    { "{kl: {}, r: {type: reverse_kl, temperature: 3}, top_k: {k: 5, others: restricted}}",
      "1 kl = forward_kl, T 1, T^2 on  +  1 r = reverse_kl, T 3, T^2 on  (the teacher's 5 largest "
      "classes, the others restricted)" },
    { "{hidden_mse: {projector: linear}}",
      "1 hidden_mse = hidden_mse over hidden 4-6, projector, "
      "type linear, width 0, activation gelu, output none, bias true, "
      "normalise none, shared false, trainable true" },
    { "{h: {type: cosine, layers: uniform, projector: {type: mlp, width: 5, activation: relu}, "
      "weight: 0.5}}",
      "0.5 h = cosine over hidden 0-0 1-1 2-3 3-4 4-6, projector, type mlp, width 5, activation "
      "relu, output none, bias true, "
      "normalise none, shared false, trainable true" },
    /* Block i is mapped as its output, hidden i + 1; and terms over logits come first. */
    { "{a: {type: attention_kl, layers: uniform}, kl: {}}",
      "1 kl = forward_kl, T 1, T^2 on  +  1 a = attention_kl over attention 0-0 1-2 2-3 3-5, "
      "temperature 1, t_squared false, causal true, window 0, softcap 0, teacher_softcap 0, "
      "relation_heads 0" },
    { "{v: {type: minilm_relation, of: key, layers: [[3, 1], [0, 5]], relation_heads: 2}}",
      "1 v = minilm_relation over key 3-1 0-5, temperature 1, t_squared false, causal true, window "
      "0, relation_heads 2" },
};

Test(terms, pair_layers_and_say_so)
{
    for (int i = 0; i < KD_COUNT(said); i++) {
        kd_arena *arena;
        kd_term *terms;
        kd_logit_view logits, same_logits;
        const char *text, *seen;
        int count;
        test_ok(kd_arena_create(&arena));
        test_ok(make(&terms, &count, &logits, arena, said[i].loss, &teacher));
        test_ok(kd_terms_print(&text, arena, terms, count, 1));
        test_ok(kd_logit_view_print(&seen, arena, &logits));
        test_ok(kd_arena_format(&text, arena, "%s%s", text, seen));
        cr_expect_str_eq(text, said[i].said);

        json_t *root = json_object();
        char *again;
        kd_term *others;
        const char *same;
        test_ok(kd_terms_json(root, terms, count, &logits));
        test_ok(kd_json_dump(&again, "loss", json_object_get(root, "loss"), JSON_COMPACT));
        test_ok(make(&others, &count, &same_logits, arena, again, &teacher));
        test_ok(kd_terms_print(&same, arena, others, count, 1));
        test_ok(kd_logit_view_print(&seen, arena, &same_logits));
        test_ok(kd_arena_format(&same, arena, "%s%s", same, seen));
        cr_expect_str_eq(same, text, "%s", again);
        free(again);
        json_decref(root);
        kd_arena_destroy(arena);
    }
}

static const struct {
    const char *loss;
    const kd_offer *by;
    const char *message;
} refused[] = {
    { "{h: {type: hidden_mse}}", &teacher,
      "loss.h: hidden[4] of student is 8 wide, hidden[6] of teacher 12: `projector: linear` (or "
      "mlp) "
      "brings one to the other" },
    { "{h: {type: hidden_mse, layers: [[5, 6]]}}", &teacher,
      "loss.h.layers: found 5, but student (LlamaForCausalLM) offers logits, hidden[0..4], query, "
      "key "
      "and value[0..3]" },
    { "{h: {type: attention_mse, layers: [[1, 6]]}}", &teacher,
      "loss.h.layers: found 6, but teacher (GPT2LMHeadModel) offers logits, hidden[0..6], query, "
      "key "
      "and value[0..5]" },
    { "{h: {type: attention_mse}}", &headless,
      "loss.h: attention_mse needs queries, keys and values; teacher (MLP) offers logits, "
      "hidden[0..2] "
      "of samples" },
    { "{h: {type: pkt}}", &headless,
      "loss.h: pkt needs features of samples; student (LlamaForCausalLM) offers logits, "
      "hidden[0..4], "
      "query, key and value[0..3]" },
    { "{h: {type: nst}}", &headless,
      "loss.h: nst compares places of feature maps; student (LlamaForCausalLM) offers logits" },
    { "{h: {type: hint, projector: conv1x1}}", &headless,
      "loss.h.projector: conv1x1 reads feature maps [B, C, H, W]; student (LlamaForCausalLM) "
      "offers "
      "logits, hidden[0..4], query" },
    { "{h: {type: cosine, projector: {type: conv}}}", &teacher,
      "loss.h.projector: conv reads feature maps [B, C, H, W]; student (LlamaForCausalLM) offers "
      "logits, hidden[0..4], query" },
    { "{h: {type: hidden_mse, layers: []}}", &teacher,
      "loss:1: loss.h.layers: found \"\", expected last, uniform, or pairs [student's, "
      "teacher's]" },
    { "{h: {type: hidden_mse, layers: [[1]]}}", &teacher,
      "loss:1: loss.h.layers: expected last, uniform, or pairs [student's, teacher's]" },
    { "{h: {type: hidden_mse, layers: [[1, -1]]}}", &teacher,
      "loss:1: loss.h.layers: found \"-1\", expected the number of a layer" },
    { "{h: {type: minilm_relation, of: queries}}", &teacher, "loss:1: loss.h.of: " },
    { "{h: {type: crd}}", &headless,
      "loss.h: crd needs features of samples; student (LlamaForCausalLM) offers logits" },
    { "{h: {type: crd, negatives: 0}}", &headless, "loss:1: loss.h.negatives: " },
    { "{h: {type: pkt, dimension: 8}}", &headless, "loss:1: loss.h.dimension: " },
    { "{h: {type: [kl]}}", &teacher, "loss:1: loss.h: unknown loss \"\"" },
    { "{kl: {}, top_k: 64}", &teacher, "loss:1: loss.top_k: expected a map such as {k: 64" },
    { "{kl: {}, top_k: {}}", &teacher, "loss:1: loss.top_k.k: " },
    { "{kl: {}, top_k: {k: 0}}", &teacher,
      "loss:1: loss.top_k.k: expected int, 1 to 1024 classes" },
    { "{kl: {}, top_k: {k: 4, others: zero}}", &teacher,
      "loss:1: loss.top_k.others: expected choice, tail|renormalised|restricted" },
    { "{ce: {}, top_k: {k: 4}}", &teacher,
      "loss:1: loss.top_k: no term reads the teacher's logits" },
    { "{kl: {standardise: true}, top_k: {k: 4}}", &teacher,
      "loss:1: loss.top_k: loss.kl compares z-scores" },
    { "{d: {type: dkd}, top_k: {k: 4}}", &teacher,
      "loss:1: loss.top_k: loss.d needs every class of the teacher" },
    { "{kl: {}, r: {type: reverse_kl, temperature: 2}, top_k: {k: 4}}", &teacher,
      "loss:1: loss.top_k: loss.r has temperature 2, loss.kl 1: a tail's mass is of one" },
    { "{r: {type: reverse_kl}, top_k: {k: 4, others: renormalised}}", &teacher,
      "loss:1: loss.top_k: loss.r is infinite where the teacher's probability is 0" },
    { "{r: {type: jsd, beta: 1}, top_k: {k: 4, others: renormalised}}", &teacher,
      "loss:1: loss.top_k: loss.r is infinite" },
    { "{r: {type: skew_reverse_kl, lambda: 0}, top_k: {k: 4, others: renormalised}}", &teacher,
      "loss:1: loss.top_k: loss.r is infinite" },
    { "{kl: {}, top_k: {k: 1, others: restricted}}", &teacher,
      "loss:1: loss.top_k.k: 1, expected 2 or more" },
    { "{kl: {}, topk: {k: 4}}", &teacher,
      "loss:1: loss.topk: unknown loss \"topk\"; nearest: top_k" },
};

Test(terms, refuse_what_the_models_cannot_feed)
{
    for (int i = 0; i < KD_COUNT(refused); i++) {
        kd_arena *arena;
        kd_term *terms;
        kd_logit_view logits;
        int count;
        test_ok(kd_arena_create(&arena));
        cr_expect_eq(make(&terms, &count, &logits, arena, refused[i].loss, refused[i].by),
                     KD_EINVAL);
        cr_expect(strncmp(kd_last_error(), refused[i].message, strlen(refused[i].message)) == 0,
                  "%s: %s", refused[i].loss, kd_last_error());
        kd_arena_destroy(arena);
    }
}

static bool sparse(const char *loss, const kd_term *extra)
{
    kd_arena *arena;
    kd_term *terms, all[8];
    kd_logit_view logits;
    int count;
    test_ok(kd_arena_create(&arena));
    test_ok(make(&terms, &count, &logits, arena, loss, &teacher));
    memcpy(all, terms, (size_t)count * sizeof *terms);
    if (extra) all[count++] = *extra;
    const bool is = kd_logit_view_is_sparse(&logits, all, count, 1);
    kd_arena_destroy(arena);
    return is;
}

Test(terms, leave_the_dense_head_out_where_nobody_reads_it)
{
    const kd_term taught = { .kind = KD_ROW_forward_kl, .student = 0, .teacher = 1 };
    const kd_term other = { .kind = KD_ROW_cross_entropy, .student = 0, .teacher = -1 };
    cr_expect(!sparse("{kl: {}}", NULL));
    cr_expect(!sparse("{kl: {}, top_k: {k: 4}}", NULL));
    cr_expect(sparse("{kl: {}, top_k: {k: 4, others: restricted}}", NULL));
    cr_expect(sparse("{kl: {}, top_k: {k: 4, others: restricted}}", &other));
    cr_expect(!sparse("{kl: {}, top_k: {k: 4, others: restricted}}", &taught));
    cr_expect(!sparse("{kl: {}, ce: {}, top_k: {k: 4, others: restricted}}", NULL));
}
