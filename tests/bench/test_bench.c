/* The bench: every op has a row that runs, the floors are the models', and a slower cell is found. */
#include "bench/bench.h"
#include "support/support.h"
#include "support/text_file.h"

#include <math.h>
#include <unistd.h>

static const bench_row *const lists[] = { kd_bench_rows_ops, kd_bench_rows_features,
                                          kd_bench_rows_losses, kd_bench_rows_train };

Test(bench, times_every_op)
{
    for (int op = 0; op < KD_OP_COUNT; op++) {
        int rows = 0;
        for (int l = 0; l < KD_COUNT(lists); l++)
            for (const bench_row *row = lists[l]; row->name; row++)
                rows += row->op == op && strcmp(row->name, kd_op_infos[op].name) == 0;
        cr_assert_eq(rows, 1, "op %s has %d bench rows", kd_op_infos[op].name, rows);
    }
    for (int l = 0; l < KD_COUNT(lists); l++)
        for (const bench_row *row = lists[l]; row->name; row++) {
            unsigned where = 0;
            for (int s = 0; s < row->shape_count; s++) {
                const bench_work work = row->work(&row->shapes[s]);
                where |= row->shapes[s].where;
                cr_assert(work.bytes > 0 && work.flops >= 0, "%s: no work", row->name);
            }
            cr_assert_eq(where, BENCH_GPU | BENCH_CPU | BENCH_QUICK, "%s: shapes for %u", row->name,
                         where);
        }
}

/* Each loss of loss_list.h once, asked for together by their first word. */
Test(bench, runs_every_loss_over_features)
{
    static const char *const rows[] = { "loss" };
    char path[] = "/tmp/kd-bench-XXXXXX", name[64];
    close(mkstemp(path));
    FILE *out = tmpfile();
    cr_assert_not_null(out);
    test_ok(kd_bench(
        out, &(const kd_bench_options){
                 .device = "cpu", .rows = rows, .row_count = 1, .quick = true, .json = path }));
    fclose(out);
    json_t *root;
    test_ok(kd_json_read(&root, path));
    const json_t *cells = json_object_get(root, "cells"), *cell;
    for (int i = 0; i < KD_FEATURE_COUNT; i++) {
        int found = 0;
        size_t c;
        const int length = snprintf(name, sizeof name, "loss %s ", kd_feature_types[i]->name);
        json_array_foreach(cells, c, cell)
        {
            const char *text = json_string_value(json_object_get(cell, "cell"));
            if (strncmp(text, name, (size_t)length) != 0) continue;
            found++;
            cr_expect(json_number_value(json_object_get(cell, "value")) > 0, "%s: no value", text);
        }
        cr_expect_eq(found, 1, "%sis in %d cells", name, found);
    }
    cr_expect_eq(json_array_size(cells), KD_FEATURE_COUNT);
    json_decref(root);
    unlink(path);
}

Test(bench, floors_are_traffic_and_products_over_measured_rates)
{
    const bench_rates rates = { 1e9, 1e10, 1e11, "measured" };
    const bench_shape kl = { BENCH_CPU, "kl", KD_BF16, { 10, 100 } };
    const bench_shape head = { BENCH_CPU, "kl", KD_BF16, { 10, 20, 30, 100 } };
    const bench_shape f32 = { BENCH_CPU, "", KD_F32, { 10, 20, 30 } };
    const bench_row *row_loss = NULL, *chunked = NULL, *matmul = NULL;
    for (const bench_row *row = kd_bench_rows_train; row->name; row++) {
        if (row->op == KD_OP_row_loss) row_loss = row;
        if (row->op < 0) chunked = row;
    }
    for (const bench_row *row = kd_bench_rows_ops; row->name; row++)
        if (row->op == KD_OP_matmul) matmul = row;
    /* 6 bytes of every bf16 pair; 2 NV (3 Hs + Ht) operations and the row terms after them. */
    cr_assert(fabs(kd_bench_floor(&rates, row_loss, &kl) - (6e3 / 1e9)) < 1e-15);
    cr_assert(fabs(kd_bench_floor(&rates, chunked, &head) - (6e3 / 1e9 + 2e3 * 90 / 1e11)) < 1e-15);
    cr_assert(fabs(kd_bench_floor(&rates, matmul, &f32) - (4 * (300 + 600 + 200) / 1e9)) < 1e-15);
}

/* Patterns are told apart by salt and repeat after 64 rows. */
Test(bench, sets_up_operands_that_a_peer_can_repeat)
{
    kd_device *device;
    bench_run run;
    const bench_row *row_loss = NULL;
    for (const bench_row *row = kd_bench_rows_train; row->name; row++)
        if (row->op == KD_OP_row_loss) row_loss = row;
    const bench_shape shape = { BENCH_CPU, "kl", KD_F32, { 130, 7 } };
    test_ok(kd_device_open(&device, "cpu"));
    test_ok(kd_bench_open(&run, device, row_loss, &shape));
    cr_assert_geq(run.sets, 3);
    const kd_tensor *student = &run.tensor[0][0], *teacher = &run.tensor[1][1];
    int equal = 0;
    for (int64_t i = 0; i < 130 * 7; i++) {
        const uint64_t mixed = ((uint64_t)(i % (64 * 7)) + 1) * 2654435761u + 40503u;
        const uint64_t folded = (mixed & 0xffffffffu) * 2246822519u;
        const double want = -4 + 8 * (double)(folded >> 8 & 0xffffffu) * 0x1p-24;
        cr_assert(fabs(test_get(student, i) - want) <= 1e-6, "element %lld", (long long)i);
        equal += test_get(student, i) == test_get(teacher, i);
    }
    cr_assert_lt(equal, 3);
    /* A run spoils the student's logits, a measurement leaves the loss of the unspoilt. */
    bench_time time;
    test_ok(kd_bench_measure(&time, &run, 0));
    cr_assert(time.low > 0 && time.low <= time.median && time.median <= time.high);
    kd_bench_close(&run);
    kd_device_close(device);
}

/* What a quick run over three rows writes beside its table; the caller's. */
static json_t *bench_three(const char *const rows[3], const char *peers, double limit)
{
    char path[] = "/tmp/kd-bench-XXXXXX";
    json_t *root;
    close(mkstemp(path));
    FILE *out = tmpfile();
    cr_assert_not_null(out);
    test_ok(kd_bench(out, &(const kd_bench_options){ .device = "cpu",
                                                     .rows = rows,
                                                     .row_count = 3,
                                                     .quick = true,
                                                     .limit = limit,
                                                     .peers = peers,
                                                     .json = path }));
    cr_assert_gt(ftell(out), 200);
    fclose(out);
    test_ok(kd_json_read(&root, path));
    unlink(path);
    return root;
}

Test(bench, asks_its_peers_and_writes_what_they_say)
{
    static const char *const rows[] = { "row_loss", "rms_norm", "head" };
    static const char answer[] =
        "while read -r line; do echo '{\"peers\": [{\"name\": \"stone\", \"low\": 9, \"median\": "
        "10, "
        "\"high\": 11, \"samples\": 3, \"bytes\": 5e6, \"value\": 0}, {\"name\": \"gone\", "
        "\"error\": \"is not here\"}]}'; done";
    json_t *root = bench_three(rows, answer, 0);
    const json_t *cells = json_object_get(root, "cells");
    cr_assert_eq(json_array_size(cells), 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *cell = json_array_get(cells, i);
        const json_t *peers = json_object_get(cell, "peers");
        cr_assert_eq(json_array_size(peers), 2);
        /* The stone's loss is 0 and the rows' is not; a norm has none to compare. */
        const bool valued = json_is_number(json_object_get(cell, "value"));
        cr_assert_eq(json_is_true(json_object_get(json_array_get(peers, 0), "differs")), valued);
        cr_assert_not_null(json_object_get(json_array_get(peers, 1), "error"));
    }
    json_decref(root);
}

/* The peers of each row's only cell, and the cells' errors, in the order of `rows`. */
static void expect_cells(const char *peers, double limit, const char *peer, const char *error)
{
    static const char *const rows[] = { "rms_norm", "fill", "row_loss" };
    json_t *root = bench_three(rows, peers, limit);
    for (size_t i = 0; i < KD_COUNT(rows); i++) {
        const json_t *cell = json_array_get(json_object_get(root, "cells"), i);
        const char *name = json_string_value(json_object_get(cell, "cell"));
        const char *said = json_string_value(json_object_get(cell, "error"));
        const json_t *first = json_array_get(json_object_get(cell, "peers"), 0);
        const char *found = json_string_value(json_object_get(first, "name"));
        cr_assert(name && strncmp(name, rows[i], strlen(rows[i])) == 0, "%s: found %s", rows[i],
                  name ? name : "nothing");
        cr_assert(error ? said && strcmp(said, error) == 0 : !said, "%s: error %s", rows[i],
                  said ? said : "none");
        cr_assert(peer ? found && strcmp(found, peer) == 0 : !found, "%s: peer %s", rows[i],
                  found ? found : "none");
        cr_assert(!peer || strcmp(peer, "peers") != 0 || json_object_get(first, "error"),
                  "%s: no error", rows[i]);
    }
    json_decref(root);
}

/* One that ends with every answer is started again; one that never answers is said, and nothing else. */
Test(bench, goes_on_without_its_peers_and_stops_in_time)
{
    expect_cells("read -r line; echo '{\"peers\": [{\"name\": \"mayfly\", \"median\": 1}]}'", 0,
                 "mayfly", NULL);
    expect_cells("exit 3", 0, "peers", NULL);
    expect_cells("exec cat", 1e-9, NULL, "not reached");
}

/* Whole programs on a model of a few kilobytes, and a peer that took as long and a gigabyte. */
Test(bench, runs_programs_and_holds_their_memory_against_their_peers)
{
    static const char answer[] =
        "while read -r line; do case $line in *'\"student\":\"/'*) echo '{\"peers\": [{\"name\": "
        "\"eager\", \"low\": 9, \"median\": 10, \"high\": 11, \"samples\": 3, \"bytes\": 1e9}]}';; "
        "esac; done";
    static const char *const rows[] = { "step", "prefill", "decode" };
    int64_t tokens[400];
    char path[] = "/tmp/kd-bench-XXXXXX", text[4096];
    for (int i = 0; i < KD_COUNT(tokens); i++) tokens[i] = i * i % 101;
    const test_text data = { .dtype = "U16", .tokens = tokens, .count = KD_COUNT(tokens) };
    kd_bench_options options = { .device = "cpu",
                                 .rows = rows,
                                 .row_count = KD_COUNT(rows),
                                 .quick = true,
                                 .peers = answer,
                                 .json = path,
                                 .teacher = KD_GOLDEN "/models/llama_tied",
                                 .student = KD_GOLDEN "/models/llama_tied" };
    close(mkstemp(path));
    FILE *out = tmpfile();
    cr_assert_not_null(out);
    test_refused(kd_bench(out, &options), KD_EINVAL, "bench row \"step\" wants --teacher");
    options.data = test_text_write("bench", &data);
    test_ok(kd_bench(out, &options));
    rewind(out);
    text[fread(text, 1, sizeof text - 1, out)] = '\0';
    fclose(out);
    cr_expect(strstr(text, "tokens/s") && strstr(text, "0 of 3 targets missed"), "%s", text);
    json_t *root;
    test_ok(kd_json_read(&root, path));
    for (size_t i = 0; i < KD_COUNT(rows); i++) {
        const json_t *cell = json_array_get(json_object_get(root, "cells"), i);
        const json_t *samples = json_object_get(json_object_get(cell, "seconds"), "samples");
        const double taken = json_number_value(json_object_get(cell, "taken"));
        cr_expect_eq(json_integer_value(samples), 6, "%s", rows[i]);
        cr_expect(taken > 1e6 && taken < 2e9, "%s: %g bytes", rows[i], taken);
        cr_expect_gt(json_object_size(json_object_get(cell, "ops")), 5, "%s", rows[i]);
        cr_expect_eq(json_is_number(json_object_get(cell, "value")), i == 0, "%s", rows[i]);
    }
    json_decref(root);
    unlink(path);
    test_text_remove();
}

/* Just met and just missed, each side of each bound, and only beside the peer that is meant. */
Test(bench, names_missed_targets_with_their_profile)
{
    static const struct {
        const char *row, *peer;
        double speed, memory; /* theirs over ours */
        const char *want;     /* NULL: nothing is missed */
    } cases[] = {
        { "step", "eager", 1.11, 2.01, NULL },
        { "step", "compile", 1.09, 2.01, "1.09 x as fast, target 1.1 x" },
        { "step", "eager", 1.11, 1.9, "takes 52.6 % of its memory, target 50 %" },
        { "step", "eager", 1.0, 2.01, "profile: matmul 75.0 %, add 25.0 % of the time in ops" },
        { "decode", "compile", 0.99, 9, "0.99 x as fast" },
        { "row_loss", "eager", 3.9, 1, "profile: " },
        { "row_loss", "compile", 3.9, 1, NULL },
        { "loss pkt", "eager", 3.9, 1, "3.90 x as fast, target 4.0 x" },
        { "loss pkt", "compile", 1.1, 1, NULL },
        { "loss cc", "compile", 0.99, 1, "0.99 x as fast, target 1.0 x" },
        { "loss rkd_angle", "eager", 21, 51, NULL },
        { "loss rkd_angle", "eager", 21, 49, "takes 2.0 % of its memory, target 2 %" },
    };
    double ops[KD_OP_COUNT] = { [KD_OP_matmul] = 3, [KD_OP_add] = 1 };
    for (int i = 0; i < KD_COUNT(cases); i++) {
        const bench_row *row = strcmp(cases[i].row, "row_loss") == 0    ? kd_bench_rows_train
                               : strncmp(cases[i].row, "loss ", 5) == 0 ? kd_bench_rows_losses
                                                                        : kd_bench_rows_programs;
        while (strcmp(row->name, cases[i].row) != 0) row++;
        bench_result result = { .row = row,
                                .shape = row->shapes,
                                .time = { 1, 1, 1, 6 },
                                .taken = 1e9,
                                .op_seconds = ops,
                                .peer_count = 1 };
        bench_peer *peer = &result.peers[0];
        *peer = (bench_peer){ .time = { 1, cases[i].speed, 1, 3 }, .bytes = 1e9 * cases[i].memory };
        snprintf(peer->name, sizeof peer->name, "%s", cases[i].peer);
        bench_report report = { .device = { .type = "cpu" },
                                .results = &result,
                                .count = 1,
                                .rates = { .copy = 1e9, .how = "measured" } };
        char text[2048];
        FILE *out = tmpfile();
        cr_assert_not_null(out);
        kd_bench_print_targets(out, &report);
        rewind(out);
        text[fread(text, 1, sizeof text - 1, out)] = '\0';
        fclose(out);
        cr_expect_eq(strstr(text, "missed\n  ") != NULL, cases[i].want != NULL, "case %d: %s", i,
                     text);
        cr_expect(!cases[i].want || strstr(text, cases[i].want), "case %d: %s", i, text);
    }
}

/* Slower by a tenth is found where both times are sharp, and is noise where one is not. */
Test(bench, finds_a_slower_cell)
{
    static const struct {
        bench_time before, now;
        kd_status want;
    } cases[] = {
        { { 0.99, 1.00, 1.01, 20 }, { 0.99, 1.00, 1.01, 20 }, KD_OK },
        { { 0.99, 1.00, 1.01, 20 }, { 1.09, 1.10, 1.11, 20 }, KD_EINTERNAL },
        { { 0.99, 1.00, 1.01, 20 }, { 1.00, 1.10, 1.20, 20 }, KD_OK },
        { { 0.90, 1.00, 1.10, 20 }, { 1.09, 1.10, 1.11, 20 }, KD_OK },
        { { 0.999, 1.00, 1.001, 20 }, { 1.019, 1.02, 1.021, 20 }, KD_OK }, /* within 3 % */
        { { 1.09, 1.10, 1.11, 20 }, { 0.99, 1.00, 1.01, 20 }, KD_OK },
    };
    char path[] = "/tmp/kd-bench-XXXXXX";
    close(mkstemp(path));
    FILE *out = tmpfile();
    cr_assert_not_null(out);
    for (int i = 0; i < KD_COUNT(cases); i++) {
        const bench_row *row = &kd_bench_rows_ops[0];
        bench_result result = { .row = row, .shape = row->shapes, .time = cases[i].before };
        bench_report report = { .results = &result, .count = 1, .rates = { .how = "measured" } };
        test_ok(kd_bench_write(path, &report));
        result.time = cases[i].now;
        test_refused(kd_bench_compare(out, path, &report), cases[i].want,
                     cases[i].want == KD_OK ? "" : "1 cells are slower");
    }
    fclose(out);
    unlink(path);
}
