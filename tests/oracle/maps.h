/* maps.h - map_powers in double, over contiguous [samples, channels, places]; src/ops/maps.c. */
#ifndef KD_ORACLE_MAPS_H
#define KD_ORACLE_MAPS_H

#include <stdbool.h>
#include <stdint.h>

void oracle_map_powers(double *y, const double *x, int64_t samples, int64_t channels,
                       int64_t places, double power, bool by_channel);
void oracle_map_powers_backward(double *dx, const double *dy, const double *x, int64_t samples,
                                int64_t channels, int64_t places, double power, bool by_channel);

#endif
