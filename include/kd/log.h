/* kd/log.h - progress and notices, on stderr.  A command's answer goes to stdout, never here. */
#ifndef KD_LOG_H
#define KD_LOG_H

#include <kd/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum kd_log_level { KD_LOG_ERROR, KD_LOG_WARN, KD_LOG_INFO, KD_LOG_DEBUG } kd_log_level;

/* Messages above `level` are dropped.  Default: KD_LOG_INFO, or KD_LOG in the environment
 * ("error", "warn", "info", "debug"). */
void kd_log_set_level(kd_log_level level);
kd_log_level kd_log_get_level(void);

/* Writes one line; a newline is added.  Safe from any thread; one write(2) per line. */
void kd_log(kd_log_level level, const char *fmt, ...) KD_PRINTF(2, 3);

/* A line that the next one rewrites, on a terminal; elsewhere it is not written at all, so what must
 * be seen in a file goes through kd_log. */
void kd_log_live(const char *fmt, ...) KD_PRINTF(1, 2);

/* Receives every line in place of stderr (tests, embedding).  NULL restores stderr. */
void kd_log_redirect(void (*sink)(void *context, kd_log_level level, const char *line),
                     void *context);

#ifdef __cplusplus
}
#endif
#endif
