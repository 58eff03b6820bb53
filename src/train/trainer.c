/* The training run: the loop around the step, and what happens between steps. */
#include "train/metrics.h"
#include "train/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct interval {
    int64_t steps;
    double seconds, last;
} interval;

/* A logged step until history takes it: a step allocates nothing. */
typedef struct logged {
    int64_t step;
    double loss, norm, lr;
} logged;

enum { LOGGED = 1 << 16 };

typedef struct trainer {
    kd_session session;
    kd_metrics metrics;
    kd_progress progress;
    kd_scores scores[KD_MAX_MODELS];
    interval save_every, evaluate_every;
    const char *config; /* JSON text */
    const char *out;
    json_t *history; /* for trainer_state.json */
    logged *logged;  /* [room], its next records */
    int64_t logged_count, room;
    kd_model *students[KD_MAX_MODELS];
    int student_count;
    unsigned student_bits;
    int64_t reported;    /* steps whose result has been read */
    kd_cursor before[2]; /* where the data of the last two steps begin */
    int64_t started_at;  /* step at which this process began */
    double start, waited;
    int64_t evaluated; /* step of the last evaluation; -1: none */
    int64_t saved;     /* step of the newest checkpoint; -1: none */
    bool stopping;
    int lock;
    double answer;       /* of what rank 0 does for all */
    const char *resumed; /* checkpoint that this rank found; NULL: none */
} trainer;

/* ---- ranks ------------------------------------------------------------------------------------ */

/* Rank 0 alone writes, and says what is written. */
static bool first(const trainer *t) { return t->session.comm->rank == 0; }

/* A rank that is gone is missed between steps too. */
static kd_status at_step(const trainer *t, kd_status status)
{
    if (status != KD_EPEER) return status;
    return kd_fail(status, "step %lld: %s", (long long)t->progress.step, kd_last_error());
}

/* Bytes per second that the others grant rank 0's disk. */
static const double slow_disk = 20e6;

/* Rank 0 works for all, who then know its answer.  They wait as long as the work may take. */
static kd_status by_first(trainer *t, kd_status (*work)(trainer *t))
{
    kd_comm *comm = t->session.comm;
    const double usual = comm->timeout;
    double bytes = 0.0;
    t->answer = 0.0;
    if (first(t)) KD_TRY(work(t));
    for (int i = 0; i < t->student_count; i++) bytes += (double)kd_model_bytes(t->students[i]);
    comm->timeout += bytes / slow_disk;
    KD_TRY(at_step(t, comm->type->all_reduce_host(comm, &t->answer, 1)));
    comm->timeout = usual;
    return KD_OK;
}

/* ---- opening ---------------------------------------------------------------------------------- */

/* Passes over the data after `steps` updates. */
static double epoch_of(const trainer *t, int64_t steps)
{
    const kd_session *s = &t->session;
    const double taken = (double)steps * (double)(s->step_samples * s->run->data.sequence);
    return s->train_tokens > 0 ? taken / (double)s->train_tokens : 0.0;
}

static kd_checkpoint checkpoint_of(const trainer *t)
{
    const kd_session *s = &t->session;
    const char *tokenizer = NULL;
    for (int m = 0; m < s->count && s->tokenizer.present; m++)
        if (s->models[m]->slab.trainable && !tokenizer) tokenizer = s->run->models[m].model;
    return (kd_checkpoint){ .students = t->students,
                            .student_count = t->student_count,
                            .tokenizer_dir = tokenizer,
                            .config = t->config,
                            .contract = s->contract,
                            .history = t->history,
                            .steps = s->steps,
                            .epoch = epoch_of(t, t->progress.step),
                            .progress = t->progress };
}

/* What was logged so far, so that the next trainer_state.json has it too. */
static kd_status load_history(trainer *t, const char *dir)
{
    const char *path;
    json_t *state;
    KD_TRY(kd_path_join(&path, t->session.run->arena, dir, "trainer_state.json"));
    KD_TRY(kd_json_read(&state, path));
    json_t *history = json_object_get(state, "log_history");
    for (size_t i = 0; i < json_array_size(history); i++) {
        const json_t *record = json_array_get(history, i);
        if (json_object_get(record, "eval_loss"))
            t->evaluated = json_integer_value(json_object_get(record, "step"));
    }
    if (json_is_array(history) && json_array_extend(t->history, history) != 0) {
        json_decref(state);
        return kd_fail(KD_ENOMEM, "%s: no memory for log_history", path);
    }
    json_decref(state);
    return KD_OK;
}

/* Takes the folder, since two runs in one would mix their checkpoints, and looks what is there.  Answers with the newest checkpoint's step + 1; 0: there
 * is none. */
static kd_status open_output(trainer *t)
{
    const char *wanted = t->session.run->run.resume, *finished;
    KD_TRY(kd_output_lock(&t->lock, t->out));
    KD_TRY(kd_output_sweep(t->out));
    KD_TRY(kd_path_join(&finished, t->session.run->arena, t->out, "config.json"));
    if (kd_file_exists(finished))
        return kd_fail(KD_EFORMAT, "%s: holds a finished model; give another run.out", t->out);
    if (strcmp(wanted, "never") != 0 && strcmp(wanted, "auto") != 0) return KD_OK;
    KD_TRY(kd_checkpoint_latest(&t->resumed, t->session.run->arena, t->out));
    if (!t->resumed) return KD_OK;
    if (strcmp(wanted, "never") == 0)
        return kd_fail(KD_EFORMAT, "%s: holds checkpoints of another run (run.resume is never)",
                       t->out);
    t->answer = 1.0 + (double)kd_checkpoint_step(t->resumed);
    return KD_OK;
}

static kd_status resume(trainer *t)
{
    const char *wanted = t->session.run->run.resume;
    KD_TRY(by_first(t, open_output));
    if (strcmp(wanted, "never") != 0 && strcmp(wanted, "auto") != 0)
        t->resumed = wanted;
    else if (!first(t) && t->answer > 0.0)
        KD_TRY(kd_arena_format(&t->resumed, t->session.run->arena, "%s/" KD_CHECKPOINT_NAME, t->out,
                               (long long)t->answer - 1));
    if (!t->resumed) return KD_OK;
    const char *dir = t->resumed;
    const kd_checkpoint expected = checkpoint_of(t);
    KD_TRY(kd_checkpoint_load(&t->progress, dir, &expected));
    KD_TRY(kd_step_load_guard(&t->session.step, &t->progress.guard));
    KD_TRY(load_history(t, dir));
    t->saved = t->progress.step;
    kd_log(KD_LOG_INFO, "resume    %s: goes on with step %lld", dir, (long long)t->progress.step);
    return kd_loader_seek(t->session.train, &t->progress.cursor);
}

static void collect_students(trainer *t)
{
    for (int m = 0; m < t->session.count; m++) {
        if (!t->session.models[m]->slab.trainable) continue;
        t->students[t->student_count++] = t->session.models[m];
        t->student_bits |= 1u << m;
    }
}

static kd_status open_scores(trainer *t)
{
    if (!t->session.valid) return KD_OK;
    for (int m = 0; m < t->session.count; m++)
        KD_TRY(kd_scores_create(&t->scores[m], t->session.arena, t->session.valid_documents, 0));
    return KD_OK;
}

static kd_status open_trainer(trainer *t, kd_run *run)
{
    KD_TRY(kd_session_open(&t->session, run));
    t->out = run->run.out;
    KD_TRY(kd_run_interval(&t->save_every.steps, &t->save_every.seconds, run->checkpoint.every,
                           "run.checkpoint.every"));
    KD_TRY(kd_run_interval(&t->evaluate_every.steps, &t->evaluate_every.seconds, run->eval.every,
                           "eval.every"));
    KD_TRY(kd_run_json(&t->config, run));
    collect_students(t);
    /* The others would say the same. */
    if (!first(t) && kd_log_get_level() == KD_LOG_INFO) kd_log_set_level(KD_LOG_WARN);
    KD_TRY(resume(t));
    KD_TRY(open_scores(t));
    t->room = kd_min_i64(t->session.steps / run->run.log_every + 2, LOGGED);
    KD_TRY(KD_ARENA_ARRAY(&t->logged, run->arena, t->room));
    kd_stop_reads(false); /* from here on the run writes */
    if (!first(t)) return KD_OK;
    return kd_metrics_open(&t->metrics, run->arena, t->out, t->progress.step, t->evaluated,
                           run->run.tensorboard);
}

static void close_trainer(trainer *t)
{
    kd_metrics_close(&t->metrics);
    json_decref(t->history);
    kd_session_close(&t->session);
    if (t->lock >= 0) close(t->lock);
}

/* ---- between steps ---------------------------------------------------------------------------- */

static bool due(interval *every, int64_t step)
{
    const double now = kd_clock();
    if (every->steps > 0) return step % every->steps == 0;
    if (every->seconds <= 0.0 || now - every->last < every->seconds) return false;
    every->last = now;
    return true;
}

/* Records of trainer_state.json, with the keys of transformers' Trainer, are of the first student and
 * numbered by the steps done. */
static kd_status add_history(trainer *t, int64_t step, json_t *record)
{
    if (record && json_object_set_new(record, "epoch", json_real(epoch_of(t, step))) == 0 &&
        json_object_set_new(record, "step", json_integer(step)) == 0 &&
        json_array_append(t->history, record) == 0) {
        json_decref(record);
        return KD_OK;
    }
    json_decref(record);
    return kd_fail(KD_ENOMEM, "history of the run: no memory");
}

static json_t *number(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static kd_status take_logged(trainer *t)
{
    for (int64_t i = 0; i < t->logged_count; i++) {
        const logged *l = &t->logged[i];
        KD_TRY(add_history(t, l->step,
                           json_pack("{s:o, s:o, s:o}", "loss", number(l->loss), "grad_norm",
                                     number(l->norm), "learning_rate", number(l->lr))));
    }
    t->logged_count = 0;
    return KD_OK;
}

static kd_status log_result(trainer *t, const kd_step_result *result)
{
    int m = 0;
    while (t->session.models[m] != t->students[0]) m++;
    const kd_student_result *s = &result->student[m];
    if (t->logged_count == t->room) KD_TRY(take_logged(t));
    t->logged[t->logged_count++] = (logged){ result->step + 1, s->loss, s->gradient_norm, s->lr };
    return KD_OK;
}

/* Why the run stops at `step`, whose update and all later ones were held back, and where it goes on. */
static kd_status stopped(trainer *t, int64_t step)
{
    const kd_step_batch *batch = NULL;
    kd_loader *loader = t->session.train;
    char message[1024], state[64] = "none was saved";
    snprintf(message, sizeof message, "%s", kd_last_error());
    /* Every rank is here, and has its part of the batch. */
    if (kd_loader_seek(loader, &t->before[step & 1]) == KD_OK &&
        kd_loader_next(&batch, loader, NULL) == KD_OK && batch) {
        kd_record_failure("%s", message);
        (void)kd_step_look(&t->session.step, batch, step);
        snprintf(message, sizeof message, "%s", kd_last_error());
    }
    if (t->saved >= 0) snprintf(state, sizeof state, KD_CHECKPOINT_NAME, (long long)t->saved);
    return kd_fail(KD_ENONFINITE, "%s; state before it: %s", message, state);
}

static kd_status read_result(const kd_step_result **result, trainer *t, int64_t step)
{
    const kd_status status = kd_step_result_of(result, &t->session.step, step);
    if (status == KD_ENONFINITE) return stopped(t, step);
    if (status == KD_OK && (*result)->in_row > 0 && first(t))
        kd_log(KD_LOG_WARN, "%6lld  %s; nothing was updated (%lld of at most %lld in a row)",
               (long long)step, (*result)->why, (long long)(*result)->in_row,
               (long long)t->session.run->optim.max_skips);
    return status;
}

/* Reads the results of the steps before `until`, in order. */
static kd_status report(trainer *t, int64_t until)
{
    const kd_session *s = &t->session;
    for (; t->reported < until; t->reported++) {
        const kd_step_result *result;
        const int64_t done = t->reported + 1;
        const double spent = kd_clock() - t->start;
        const double per_step = spent / (double)(done - t->started_at);
        const int64_t step_tokens = s->step_samples * s->run->data.sequence;
        const double rate = (double)step_tokens / per_step;
        KD_TRY(read_result(&result, t, t->reported));
        if (first(t))
            KD_TRY(kd_metrics_step(&t->metrics, &s->step, result, done * step_tokens,
                                   t->progress.seconds + spent, rate));
        const bool line = t->reported % s->run->run.log_every == 0 || done == s->steps;
        if (line) KD_TRY(log_result(t, result));
        kd_log_step(&s->step, result, rate, per_step * (double)(s->steps - done), !line);
    }
    return KD_OK;
}

/* Without a teacher there is no KL. */
static json_t *evaluation_record(const kd_measure *nll, const kd_measure *kl,
                                 const kd_measure *accuracy)
{
    return json_pack("{s:o, s:o, s:o*}", "eval_loss", number(nll->mean), "eval_kl",
                     number(kl->mean), "eval_accuracy",
                     isfinite(accuracy->mean) ? json_real(accuracy->mean) : NULL);
}

static void log_evaluation(const trainer *t, const char *model, const kd_measure *nll,
                           const kd_measure *kl, const kd_measure *same, const kd_measure *accuracy)
{
    const unsigned wanted = t->session.run->eval.metrics;
    const double ppl = exp(nll->mean);
    char text[4][64] = { "", "", "", "" };
    if (wanted & 1u) snprintf(text[0], sizeof text[0], "  kl %.4f +/- %.4f", kl->mean, kl->error);
    if (wanted & 2u)
        snprintf(text[1], sizeof text[1], "  ppl %.3f +/- %.3f", ppl, ppl * nll->error);
    if (wanted & 4u) snprintf(text[2], sizeof text[2], "  same top %.1f %%", 100.0 * same->mean);
    if (isfinite(accuracy->mean))
        snprintf(text[3], sizeof text[3], "  accuracy %.2f %% +/- %.2f %%", 100.0 * accuracy->mean,
                 100.0 * accuracy->error);
    kd_log(KD_LOG_INFO, "%6lld  %s valid%s%s%s%s", (long long)t->progress.step, model, text[0],
           text[1], text[2], text[3]);
}

static kd_status report_evaluation(trainer *t, int m)
{
    const kd_scores *scores = &t->scores[m];
    const kd_model *model = t->session.models[m];
    const kd_measure nll = kd_scores_mean(scores, scores->nll);
    const kd_measure kl = kd_scores_mean(scores, scores->kl);
    const kd_measure same = kd_scores_mean(scores, scores->same);
    const kd_measure accuracy = kd_scores_mean(scores, scores->correct);
    const double ppl = exp(nll.mean);
    log_evaluation(t, model->label, &nll, &kl, &same, &accuracy);
    if (first(t))
        KD_TRY(kd_metrics_evaluation(&t->metrics, model->label, t->progress.step, &nll, &kl, &same,
                                     &accuracy));
    if (model != t->students[0]) return KD_OK;
    KD_TRY(take_logged(t));
    KD_TRY(add_history(t, t->progress.step, evaluation_record(&nll, &kl, &accuracy)));
    const double values[] = { [KD_BEST_NONE] = NAN,
                              [KD_BEST_KL] = kl.mean,
                              [KD_BEST_PPL] = ppl,
                              [KD_BEST_ACCURACY] = accuracy.mean };
    const int best = t->session.run->checkpoint.keep_best;
    const double value = values[best], sign = best == KD_BEST_ACCURACY ? -1 : 1;
    if (!isfinite(value)) return KD_OK;
    if (t->progress.best_step >= 0 && sign * value >= sign * t->progress.best) return KD_OK;
    t->progress.best = value;
    t->progress.best_step = t->progress.step;
    return KD_OK;
}

static kd_status evaluate(trainer *t)
{
    if (!t->session.valid || t->evaluated == t->progress.step) return KD_OK;
    KD_TRY(at_step(
        t, kd_step_evaluate(&t->session.step, t->session.valid, t->student_bits, t->scores)));
    t->evaluated = t->progress.step;
    for (int m = 0; m < t->session.count; m++)
        if (t->student_bits >> m & 1u) KD_TRY(report_evaluation(t, m));
    return KD_OK;
}

static kd_status rotate(const trainer *t)
{
    const int keep = (int)t->session.run->checkpoint.keep;
    return kd_checkpoint_rotate(t->out, keep, t->progress.best_step);
}

static kd_status save(trainer *t)
{
    const double start = kd_clock();
    const char *path;
    kd_progress progress = t->progress;
    progress.seconds += start - t->start;
    KD_TRY(take_logged(t));
    KD_TRY(kd_step_save_guard(&progress.guard, &t->session.step));
    KD_TRY(kd_output_check(t->lock, t->out));
    KD_TRY(kd_metrics_sync(&t->metrics)); /* a run that goes on from here has the records before */
    kd_checkpoint checkpoint = checkpoint_of(t);
    checkpoint.progress = progress;
    KD_TRY(kd_checkpoint_save(&path, t->session.run->arena, t->out, &checkpoint));
    KD_TRY(rotate(t));
    kd_log(KD_LOG_INFO, "%6lld  %s%s written in %.1f s", (long long)t->progress.step,
           t->stopping ? "stopping: " : "", path, kd_clock() - start);
    return KD_OK;
}

static kd_status store(trainer *t)
{
    KD_TRY(by_first(t, save));
    t->saved = t->progress.step;
    return KD_OK;
}

/* A teacher that does not know the data is the commonest mistake. */
static kd_status check_teacher(trainer *t)
{
    const int teacher = kd_step_reference(&t->session.step);
    if (teacher < 0 || !t->session.valid) return KD_OK;
    kd_measured measured[KD_MAX_MODELS] = { { .nll = NULL } };
    const kd_step_batch *batch;
    const kd_cursor start = { 0 };
    kd_scores *scores = &t->scores[teacher];
    KD_TRY(kd_loader_seek(t->session.valid, &start));
    KD_TRY(kd_loader_next(&batch, t->session.valid, NULL));
    if (!batch) return KD_OK;
    measured[teacher] = kd_step_values(&t->session.step, teacher);
    KD_TRY(kd_step_measure(&t->session.step, &batch->micro[0], 1u << teacher, measured));
    kd_scores_add(scores, &batch->micro[0], &measured[teacher]);
    if (t->session.inputs)
        kd_log(KD_LOG_INFO, "check     teacher on %lld valid samples: accuracy %.2f %%",
               (long long)scores->tokens, 100.0 * kd_scores_mean(scores, scores->correct).mean);
    else
        kd_log(KD_LOG_INFO, "check     teacher on %lld valid tokens: ppl %.2f",
               (long long)scores->tokens, exp(kd_scores_mean(scores, scores->nll).mean));
    return KD_OK;
}

/* ---- the loop --------------------------------------------------------------------------------- */

static kd_status one_step(trainer *t)
{
    const kd_step_batch *batch;
    kd_session *s = &t->session;
    double wait = 0.0;
    t->before[t->progress.step & 1] = t->progress.cursor;
    KD_TRY(kd_loader_next(&batch, s->train, &wait));
    if (!batch)
        return kd_fail(KD_EINVAL,
                       "data.train ends after %lld updates; with data.shuffle off a run "
                       "is one pass",
                       (long long)t->progress.step);
    t->waited += wait;
    KD_TRY(kd_step_run(&s->step, batch, t->progress.step));
    KD_TRY(report(t, t->progress.step));
    t->progress.step++;
    t->progress.tokens += s->step_samples * s->run->data.sequence;
    kd_loader_cursor(&t->progress.cursor, s->train);
    return KD_OK;
}

/* What follows a step; time is rank 0's. */
typedef struct turn {
    bool measure, store;
} turn;

static kd_status take_turn(turn *next, trainer *t)
{
    enum { MEASURE, STORE, WISHES };
    const int64_t done = t->progress.step;
    const bool last = done == t->session.steps;
    kd_comm *comm = t->session.comm;
    double wishes[WISHES] = { 0.0 };
    if (first(t)) wishes[MEASURE] = due(&t->evaluate_every, done);
    if (first(t)) wishes[STORE] = due(&t->save_every, done);
    KD_TRY(at_step(t, comm->type->all_reduce_host(comm, wishes, WISHES)));
    comm->timeout = t->session.run->dist.timeout; /* the first update is done */
    next->measure = last || wishes[MEASURE] > 0.0;
    next->store = last || wishes[STORE] > 0.0;
    return KD_OK;
}

/* An evaluation that was broken off by a stop is left to who resumes, and at the last step the
 * checkpoint that knows of it. */
static kd_status catch_up(trainer *t)
{
    const int64_t every = t->evaluate_every.steps, begun = t->progress.step;
    const bool last = begun == t->session.steps;
    const bool wanted = last || (every > 0 && begun % every == 0);
    if (begun == 0 || !wanted || t->evaluated == begun || !t->session.valid) return KD_OK;
    KD_TRY(evaluate(t));
    return last ? store(t) : KD_OK;
}

static kd_status train(trainer *t)
{
    kd_log_header(&t->session.step);
    KD_TRY(catch_up(t));
    while (t->progress.step < t->session.steps) {
        turn next = { .measure = false };
        KD_TRY(one_step(t));
        KD_TRY(take_turn(&next, t));
        if (next.measure || next.store) KD_TRY(report(t, t->progress.step));
        if (next.measure) KD_TRY(evaluate(t));
        if (next.store) KD_TRY(store(t));
    }
    return KD_OK;
}

/* ---- stopping --------------------------------------------------------------------------------- */

static const char *how_to_go_on(const trainer *t)
{
    const bool same = strcmp(t->session.run->run.resume, "auto") == 0;
    return same ? "the same command goes on from here" : "run.resume: auto goes on from here";
}

/* A rank that was asked to stop while the run was opened leaves at once; one that is asked too may
 * learn of it as of a failure. */
static kd_status stop_opening(kd_status status)
{
    if (status != KD_ESTOPPED && !(status == KD_EPEER && kd_stop_requested())) return status;
    return kd_fail(KD_ESTOPPED, "stopped before the first update (%s); nothing is lost (exit 75)",
                   kd_last_error());
}

/* All ranks are here: of a step, or an evaluation, that was broken off nothing is kept. */
static kd_status stop(trainer *t)
{
    const int64_t done = t->progress.step;
    t->stopping = true;
    KD_TRY(report(t, done));
    if (done > 0 && t->saved < done) KD_TRY(store(t));
    t->session.agreed = true;
    if (done == 0) return stop_opening(KD_ESTOPPED);
    return kd_fail(KD_ESTOPPED, "stopped at step %lld of %lld; %s (exit 75)", (long long)done,
                   (long long)t->session.steps, how_to_go_on(t));
}

/* The finished student is the folder itself: what from_pretrained opens. */
static kd_status finish(trainer *t)
{
    const kd_checkpoint checkpoint = checkpoint_of(t);
    KD_TRY(kd_output_check(t->lock, t->out));
    KD_TRY(rotate(t)); /* who died between a save and its rotation left that to us */
    for (int i = t->student_count - 1; i >= 0; i--) {
        const char *dir = t->out;
        if (i > 0) KD_TRY(kd_arena_format(&dir, t->session.arena, "%s/students/%d", t->out, i));
        KD_TRY(kd_dir_create(dir));
        if (checkpoint.tokenizer_dir) KD_TRY(kd_tokenizer_copy(dir, checkpoint.tokenizer_dir));
        KD_TRY(kd_model_save(t->students[i], dir, t->students[i]->dtype));
    }
    kd_log(KD_LOG_INFO, "finished  %s; waited %.1f s for data", t->out, t->waited);
    return KD_OK;
}

kd_status kd_run_train(kd_run *run)
{
    trainer t = { .lock = -1, .evaluated = -1, .saved = -1 };
    kd_status status;
    t.progress.best_step = -1;
    t.history = json_array();
    kd_stop_install();
    kd_stop_reads(true);
    status = stop_opening(open_trainer(&t, run));
    kd_stop_reads(false);
    if (status != KD_OK) goto done;
    KD_TRY_GOTO(kd_session_log(&t.session, t.out), status, done);
    if (first(&t)) KD_TRY_GOTO(check_teacher(&t), status, done);
    t.reported = t.started_at = t.progress.step;
    t.start = t.save_every.last = t.evaluate_every.last = kd_clock();
    status = train(&t);
    if (status == KD_ESTOPPED) status = stop(&t);
    if (status == KD_ENOMEM) status = kd_session_short(&t.session);
    if (status != KD_OK) goto done;
    KD_TRY_GOTO(by_first(&t, finish), status, done);
done:
    status = kd_session_leave(&t.session, status);
    close_trainer(&t);
    return status;
}

kd_status kd_run_validate(kd_run *run)
{
    kd_session session = { 0 };
    kd_status status;
    KD_TRY_GOTO(kd_session_open(&session, run), status, done);
    kd_log(KD_LOG_INFO, "the run can start: %.2f GB of %.2f GB, %lld updates",
           (double)kd_session_bytes(&session) / 1e9, (double)session.memory / 1e9,
           (long long)session.steps);
done:
    status = kd_session_leave(&session, status);
    kd_session_close(&session);
    return status;
}
