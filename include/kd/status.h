/* kd/status.h - the one way a kd function says that it failed. */
#ifndef KD_STATUS_H
#define KD_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define KD_MUST_CHECK        __attribute__((warn_unused_result))
#define KD_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define KD_MUST_CHECK
#define KD_PRINTF(fmt, args)
#endif

/* One row per status: name, value, exit code of the command, text.
 * Values are part of the ABI: append only. */
#define KD_STATUS_LIST(X)                                                                          \
    X(OK, 0, 0, "success")                                                                         \
    X(EINTERNAL, 1, 1, "internal error")                                                           \
    X(EINVAL, 2, 2, "invalid argument, shape or configuration")                                    \
    X(ENOTSUP, 3, 2, "not supported")                                                              \
    X(EFORMAT, 4, 3, "input refused")                                                              \
    X(EIO, 5, 4, "input/output error")                                                             \
    X(ENOMEM, 6, 4, "out of memory")                                                               \
    X(EDEVICE, 7, 4, "device or vendor library error")                                             \
    X(ENONFINITE, 8, 5, "loss or gradient is not finite")                                          \
    X(EPEER, 9, 6, "another rank failed")                                                          \
    X(ESTOPPED, 10, 75, "stopped by a signal; what was done is saved")

typedef enum kd_status {
#define X(name, value, exit_code, text) KD_##name = (value),
    KD_STATUS_LIST(X)
#undef X
} kd_status;

/* Text of a status code.  Never NULL, never freed. */
const char *kd_status_text(kd_status status);

/* What the command's process returns for a status. */
int kd_status_exit_code(kd_status status);

/* Message of the last failure on this thread; "" when there was none. */
const char *kd_last_error(void);

/* Records a message for this thread and returns `status`, so that a failure is one line:
 *     return kd_fail(KD_EINVAL, "rank %d, expected 2", rank);
 * Arguments may point into kd_last_error(), so a caller can add what it knows:
 *     return kd_fail(status, "%s: %s", path, kd_last_error()); */
void kd_record_failure(const char *fmt, ...) KD_PRINTF(1, 2);

/* A macro, so that the compiler sees which status comes back and that it is no success. */
#define kd_fail(status, ...) (kd_record_failure(__VA_ARGS__), (status))

/* Used by KD_TRY: one line of back trace at log level debug; returns `status`. */
kd_status kd_trace(kd_status status, const char *file, int line, const char *call);

/* Hands a failure up unchanged. */
#define KD_TRY(call)                                                                               \
    do {                                                                                           \
        const kd_status kd_try_ = (call);                                                          \
        if (kd_try_ != KD_OK) return kd_trace(kd_try_, __FILE__, __LINE__, #call);                 \
    } while (0)

/* The same where something must be released first: sets `status`, goes to `label`. */
#define KD_TRY_GOTO(call, status, label)                                                           \
    do {                                                                                           \
        (status) = (call);                                                                         \
        if ((status) != KD_OK) {                                                                   \
            (void)kd_trace((status), __FILE__, __LINE__, #call);                                   \
            goto label;                                                                            \
        }                                                                                          \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
