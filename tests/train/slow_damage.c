/* Every bit of every file of a checkpoint, and every length. */
#include "support/damage.h"

#include <stdio.h>

Test(damage, every_bit_and_every_length)
{
    test_damage d;
    int64_t bits = 0, lengths = 0;
    test_log();
    test_damage_open(&d, 1);
    for (int i = 0; i < TEST_DAMAGE_OF_ONE; i++) {
        bits += test_damage_flip(&d, test_damage_files[i], 0, 1);
        lengths += test_damage_cut(&d, test_damage_files[i], 0, 1);
    }
    fprintf(stderr, "%lld bits flipped, %lld lengths cut\n", (long long)bits, (long long)lengths);
    cr_assert(bits == 8 * lengths && lengths > 10000);
    test_ok(kd_checkpoint_verify(d.dir));
    test_damage_close(&d);
}
