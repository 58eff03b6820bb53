/*
 * scene.h - a folder with one good checkpoint, and a second state that is about to be saved there:
 * whatever happens to that, one of the two is found and comes back bit for bit.
 */
#ifndef KD_TEST_SCENE_H
#define KD_TEST_SCENE_H

#include "support/students.h"
#include "support/tracer.h"

/* runs[0] is saved whole, then runs[1] is being saved; `loaded` is what comes back. */
typedef struct test_scene {
    test_run runs[2], loaded;
    void *bits[2];
    char out[128];
    bool no_exchange; /* test_trace's */
} test_scene;

/* The two states at these steps; the second has taken 5 tokens. */
void test_scene_open(test_scene *scene, int64_t before, int64_t after);
void test_scene_close(test_scene *scene);

/* Only the first state is there. */
void test_scene_reset(test_scene *scene);

/* Which of the two a start finds, which also sweeps; fails when neither, or not with its bits, or when
 * something is left beside. */
int test_scene_found(test_scene *scene, const char *name);

/* Jobs of a child, with the scene as context: the second state is saved; all but the newest and the
 * one of step 1 are removed. */
int test_scene_save(const void *scene);
int test_scene_rotate(const void *scene);

/* What happens to the calls of a save, or of a run. */
typedef struct test_fault {
    const char *name;
    test_harm harm;
    int error;
    bool onwards; /* a disk that stays as it is, rather than one call that fails */
    long only;    /* test_trace's */
} test_fault;

enum { TEST_FAULTS = 8 };
extern const test_fault test_faults[TEST_FAULTS]; /* the first kills, the second is a full disk */

/* Saves the second state once for every `stride`th of the save's calls, which meets the fault there. */
void test_scene_fail(test_scene *scene, const test_fault *fault, int stride);

#endif
