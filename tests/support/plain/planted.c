/*
 * planted.c - tests that must fail, each for the one reason in its name: the witness that a green run
 * under a sanitizer means something.  must_fail.sh runs them one at a time.
 */
#include <criterion/criterion.h>
#include <limits.h>
#include <pthread.h>

static void *volatile kept;
static volatile int number = INT_MAX;

Test(planted, leak)
{
    kept = malloc(77);
    kept = NULL;
}

Test(planted, overrun)
{
    kept = calloc(7, 1);
    memset(kept, 1, (size_t)(number - INT_MAX + 8));
    free(kept);
}

Test(planted, overflow) { number = number + 1; }

static void *add(void *unused)
{
    number = number - 1;
    return unused;
}

Test(planted, race)
{
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, add, NULL), 0, "thread %d", i);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
}

Test(planted, assertion)
{
    cr_assert_eq(number, 1, "number is %d", number);
    abort();
}

/* The first is said, and the second after it. */
Test(planted, expectation)
{
    cr_expect(false, "first");
    cr_expect_str_eq("a", "b", "second");
}

Test(planted, crash) { abort(); }
