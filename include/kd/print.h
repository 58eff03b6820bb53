/* kd/print.h - numbers as a person reads them.  Each writes into `buffer` and returns it. */
#ifndef KD_PRINT_H
#define KD_PRINT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

const char *kd_format_count(char *buffer, size_t size, int64_t count);     /* "1,234,567" */
const char *kd_format_bytes(char *buffer, size_t size, double bytes);      /* "26.8 GB": 10^9 */
const char *kd_format_duration(char *buffer, size_t size, double seconds); /* "11:07:32", "9:39" */

#ifdef __cplusplus
}
#endif
#endif
