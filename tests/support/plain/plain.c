/* plain.c - main of the runner described in criterion/criterion.h. */
#include <criterion/criterion.h>

plain_test *plain_tests;

int main(void)
{
    int count = 0;
    for (const plain_test *t = plain_tests; t; t = t->next, count++) {
        fprintf(stderr, "%s\n", t->name);
        t->run();
    }
    fprintf(stderr, "%d tests passed\n", count);
    return count > 0 ? 0 : 1;
}
