/* Reading: what is refused and how it is said, what is accepted, and every number that comes out. */
#include "scratch.h"

#include "support/tracer.h"
#include "tensor/tensor.h"

#include <errno.h>
#include <sys/syscall.h>

#define T(name, dtype, shape, offsets)                                                             \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define A4 T("a", "F32", "[1]", "[0,4]")

typedef struct header_case {
    const char *what, *header;
    size_t data;
    const char *message; /* parts of it, beside the path; NULL: accepted */
} header_case;

static const header_case header_cases[] = {
    /* names */
    { "duplicate name", "{" A4 "," A4 "}", 4, "header:1:57: |duplicate object key|\"a\"" },
    { "duplicate name, other type", "{" A4 "," T("a", "U8", "[4]", "[0,4]") "}", 4,
      "header:1:57: |duplicate object key|\"a\"" },
    { "duplicate field",
      "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],"
      "\"data_offsets\":[0,4]}}",
      4, "header:1:27: |duplicate object key|\"dtype\"" },
    { "duplicate __metadata__", "{\"__metadata__\":{},\"__metadata__\":{}," A4 "}", 4,
      "header:1:33: |duplicate object key" },
    { "duplicate metadata key", "{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}," A4 "}", 4,
      "header:1:28: |duplicate object key|\"k\"" },
    { "NUL in a name", "{" T("a\\u0000b", "F32", "[1]", "[0,4]") "}", 4, "header:1:11: |NUL" },
    { "empty name", "{" T("", "F32", "[1]", "[0,4]") "}", 4, NULL },
    { "a name like a path", "{" T("../../x", "F32", "[1]", "[0,4]") "}", 4, NULL },
    { "a name like a format", "{" T("%s%n", "F32", "[2]", "[0,4]") "}", 4,
      "tensor \"%s%n\": data_offsets [0, 4] hold 4 bytes, shape and dtype F32 need 8" },
    { "a name with an escape code", "{" T("\\u001b[31m", "F32", "[2]", "[0,4]") "}", 4,
      "tensor \"\\x1b[31m\": data_offsets [0, 4] hold 4 bytes, shape and dtype F32 need 8" },
    { "a name with DEL and CSI", "{" T("\\u007f\\u009b2J", "F32", "[2]", "[0,4]") "}", 4,
      "tensor \"\\x7f\\xc2\\x9b2J\": data_offsets [0, 4] hold 4 bytes, shape and dtype F32 need "
      "8" },
    { "a long name",
      "{" T("0123456789012345678901234567890123456789012345678901234567890123456789"
            "0123456789012345678901234567890123456789012345678901234567890123456789",
            "F32", "[2]", "[0,4]") "}",
      4,
      "tensor "
      "\"012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"
      "012345678901234567890123456789\": data_offsets [0, 4] hold 4 bytes, shape and dtype F32 "
      "need 8" },
    { "invalid UTF-8", "{" T("\xff", "F32", "[1]", "[0,4]") "}", 4, "header:1:2: |0xff" },
    /* the object */
    { "white space first", " \t\n{" A4 "}", 4, NULL },
    { "white space last", "{" A4 "}  \n ", 4, NULL },
    { "byte order mark", "\xef\xbb\xbf{" A4 "}", 4, "header:1:1: |'{' expected" },
    { "garbage after", "{" A4 "}x", 4, "header:1:55: |end of file expected" },
    { "two objects", "{" A4 "}{}", 4, "header:1:55: |end of file expected" },
    { "cut off", "{" A4, 4, "header:1:53: |expected" },
    { "a comma too many", "{" A4 ",}", 4, "header:1:55: |expected" },
    { "an array", "[]", 0, "the header is [], expected an object" },
    { "a string", "\"a\"", 0, "header:1:3: |expected" },
    { "nothing", "", 0, "header:1:0: |expected" },
    { "no tensors", "{}", 0, NULL },
    { "no tensors, but data", "{}", 3, "3 bytes after the last tensor, from byte 10" },
    /* metadata */
    { "metadata null", "{\"__metadata__\":null," A4 "}", 4, NULL },
    { "metadata number", "{\"__metadata__\":{\"k\":1}," A4 "}", 4,
      "__metadata__.k is 1, expected a string" },
    { "metadata object", "{\"__metadata__\":{\"k\":{}}," A4 "}", 4,
      "__metadata__.k is {}, expected a string" },
    { "metadata list", "{\"__metadata__\":[]," A4 "}", 4,
      "__metadata__ is [], expected an object" },
    /* one tensor */
    { "array form", "{\"a\":[\"F32\",[1],[0,4]]}", 4,
      "tensor \"a\": its description is [\"F32\",[1],[0,4]], expected an object" },
    { "null", "{\"a\":null}", 0, "tensor \"a\": its description is null, expected an object" },
    { "no dtype", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
      "tensor \"a\": dtype is nothing, expected a string" },
    { "no shape", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4,
      "tensor \"a\": shape is nothing, expected an array" },
    { "no offsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4,
      "tensor \"a\": data_offsets is nothing, expected two decimal integers" },
    { "unknown field", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":-1}}",
      4, NULL },
    { "numbers in an unknown field",
      "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":[1e-05,-0.5,-0e1]}}", 4,
      NULL },
    { "unknown dtype", "{" T("a", "F7", "[1]", "[0,4]") "}", 4,
      "tensor \"a\": dtype \"F7\" is not one of the format's 22" },
    { "lower-case dtype", "{" T("a", "f32", "[1]", "[0,4]") "}", 4,
      "tensor \"a\": dtype \"f32\" is not one of the format's 22" },
    { "unknown dtype beside a good one", "{" A4 "," T("b", "I4", "[0]", "[4,4]") "}", 4,
      "tensor \"b\": dtype \"I4\" is not one of the format's 22" },
    { "dtype as a number", "{\"a\":{\"dtype\":32,\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
      "tensor \"a\": dtype is 32, expected a string" },
    /* dimensions */
    { "2.0", "{" T("a", "F32", "[2.0]", "[0,8]") "}", 8,
      "tensor \"a\": dimension 0 is 2.0, expected a decimal integer" },
    { "2e0", "{" T("a", "F32", "[1,2e0]", "[0,8]") "}", 8,
      "tensor \"a\": dimension 1 is 2.0, expected a decimal integer" },
    { "\"2\"", "{" T("a", "F32", "[\"2\"]", "[0,8]") "}", 8,
      "tensor \"a\": dimension 0 is \"2\", expected a decimal integer" },
    { "-2", "{" T("a", "F32", "[-2]", "[0,8]") "}", 8,
      "tensor \"a\": dimension 0 is -2, expected 0 to 2^48" },
    { "-0", "{" T("a", "F32", "[-0]", "[0,0]") "}", 0, "header:1:30: -0 is not a decimal integer" },
    { "-2 x -2", "{" T("a", "F32", "[-2,-2]", "[0,16]") "}", 16,
      "tensor \"a\": dimension 0 is -2, expected 0 to 2^48" },
    { "10^23", "{" T("a", "F32", "[100000000000000000000000]", "[0,8]") "}", 8,
      "header:1:53: |too big" },
    { "2^63", "{" T("a", "F32", "[9223372036854775808]", "[0,8]") "}", 8, "header:1:48: |too big" },
    { "1e3", "{" T("a", "F32", "[1e3]", "[0,4000]") "}", 4000,
      "tensor \"a\": dimension 0 is 1000.0, expected a decimal integer" },
    { "leading zero", "{" T("a", "F32", "[02]", "[0,8]") "}", 8,
      "header:1:30: |invalid token near '0'" },
    { "2^53+1", "{" T("a", "F32", "[9007199254740993]", "[0,8]") "}", 8,
      "tensor \"a\": dimension 0 is 9007199254740993, expected 0 to 2^48" },
    { "NaN", "{" T("a", "F32", "[NaN]", "[0,8]") "}", 8, "header:1:32: |near 'NaN'" },
    { "true", "{" T("a", "F32", "[true]", "[0,4]") "}", 4,
      "tensor \"a\": dimension 0 is true, expected a decimal integer" },
    { "[0, 2^64-1, 2]", "{" T("a", "F32", "[0,18446744073709551615,2]", "[0,0]") "}", 0,
      "header:1:51: |too big" },
    { "[0, 2^48+1]", "{" T("a", "F32", "[0,281474976710657]", "[0,0]") "}", 0,
      "tensor \"a\": dimension 1 is 281474976710657, expected 0 to 2^48" },
    { "[2^32, 2^32] wraps to none", "{" T("a", "F32", "[4294967296,4294967296]", "[0,0]") "}", 0,
      "tensor \"a\": the product of 2 dimensions overflows" },
    { "2^62 elements: bits wrap", "{" T("a", "F32", "[2147483648,2147483648]", "[0,0]") "}", 0,
      "tensor \"a\": the size of 4611686018427387904 elements overflows" },
    { "9 dimensions", "{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4,
      "tensor \"a\": 9 dimensions, expected at most 8" },
    { "8 dimensions", "{" T("a", "F32", "[1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, NULL },
    { "0 dimensions", "{" T("a", "F32", "[]", "[0,4]") "}", 4, NULL },
    { "a zero dimension", "{" T("a", "F32", "[3,0]", "[0,0]") "}", 0, NULL },
    { "shape as an object", "{" T("a", "F32", "{}", "[0,4]") "}", 4,
      "tensor \"a\": shape is {}, expected an array" },
    /* ranges */
    { "range too long", "{" T("a", "F32", "[1]", "[0,8]") "}", 8,
      "tensor \"a\": data_offsets [0, 8] hold 8 bytes, shape and dtype F32 need 4" },
    { "range too short", "{" T("a", "F32", "[2]", "[0,4]") "}", 4,
      "tensor \"a\": data_offsets [0, 4] hold 4 bytes, shape and dtype F32 need 8" },
    { "range past the end", "{" T("a", "F32", "[2]", "[0,8]") "}", 4,
      "tensor \"a\": data_offsets [0, 8], expected a range within the 4 bytes of data that start "
      "at byte 62" },
    { "range backwards", "{" T("a", "F32", "[1]", "[4,0]") "}", 4,
      "tensor \"a\": data_offsets [4, 0], expected a range within the 4 bytes of data that start "
      "at byte 62" },
    { "range negative", "{" T("a", "F32", "[1]", "[-4,0]") "}", 4,
      "tensor \"a\": data_offsets [-4, 0], expected a range within the 4 bytes of data that start "
      "at byte 63" },
    { "range near 2^63", "{" T("a", "U8", "[1]", "[9223372036854775806,9223372036854775807]") "}",
      1,
      "tensor \"a\": data_offsets [9223372036854775806, 9223372036854775807], expected a range "
      "within the 1 bytes of data that start at byte 97" },
    { "range at 2^53+1", "{" T("a", "U8", "[1]", "[9007199254740993,9007199254740994]") "}", 1,
      "tensor \"a\": data_offsets [9007199254740993, 9007199254740994], expected a range within "
      "the 1 bytes of data that start at byte 91" },
    { "an offset of -0", "{" T("a", "F32", "[0]", "[-0,0]") "}", 0,
      "header:1:49: -0 is not a decimal integer" },
    { "one offset", "{" T("a", "F32", "[1]", "[4]") "}", 4,
      "tensor \"a\": data_offsets is [4], expected two decimal integers" },
    { "three offsets", "{" T("a", "F32", "[1]", "[0,4,4]") "}", 4,
      "tensor \"a\": data_offsets is [0,4,4], expected two decimal integers" },
    { "real offsets", "{" T("a", "F32", "[1]", "[0.0,4]") "}", 4,
      "tensor \"a\": data_offsets is [0.0,4], expected two decimal integers" },
    { "a real end", "{" T("a", "F32", "[1]", "[0,4.0]") "}", 4,
      "tensor \"a\": data_offsets is [0,4.0], expected two decimal integers" },
    { "half a byte", "{" T("a", "F4", "[1]", "[0,1]") "}", 1,
      "tensor \"a\": 1 elements of 4 bits do not fill whole bytes" },
    { "two halves", "{" T("a", "F4", "[2]", "[0,1]") "}", 1, NULL },
    { "four times six bits", "{" T("a", "F6_E2M3", "[4]", "[0,3]") "}", 3, NULL },
    /* tiling */
    { "a hole first", "{" T("a", "F32", "[1]", "[4,8]") "}", 8,
      "tensor \"a\": starts at byte 66, expected 62: bytes that no tensor owns" },
    { "a hole between", "{" A4 "," T("b", "F32", "[1]", "[8,12]") "}", 12,
      "tensor \"b\": starts at byte 124, expected 120: bytes that no tensor owns" },
    { "a hole last", "{" A4 "}", 5, "1 bytes after the last tensor, from byte 66" },
    { "overlap", "{" A4 "," T("b", "F32", "[1]", "[2,6]") "}", 6,
      "tensor \"b\": starts at byte 117, expected 119: tensors overlap" },
    { "the same range twice", "{" A4 "," T("b", "F32", "[1]", "[0,4]") "}", 4,
      "tensor \"b\": starts at byte 115, expected 119: tensors overlap" },
    { "an empty one inside another", "{" A4 "," T("b", "F32", "[0]", "[2,2]") "}", 4,
      "tensor \"b\": starts at byte 117, expected 119: tensors overlap" },
    { "empty ones between",
      "{" T("b", "F32", "[0]", "[4,4]") "," A4 "," T("c", "F32", "[0]", "[0,0]") "}", 4, NULL },
    { "out of order, unaligned",
      "{" T("b", "F32", "[1]", "[1,5]") "," T("a", "U8", "[1]", "[0,1]") "}", 5, NULL },
};

Test(safetensors, headers)
{
    scratch_open();
    for (int i = 0; i < KD_COUNT(header_cases); i++) {
        const header_case *c = &header_cases[i];
        const char *path = scratch_st("case.safetensors", c->header, strlen(c->header), c->data);
        kd_st_file *file = NULL;
        const kd_status status = kd_st_open(&file, path);
        test_refusal(status, c->message ? KD_EFORMAT : KD_OK, c->message, c->what);
        test_refusal(status, status, path, c->what);
        cr_expect(status == KD_OK || !file, "%s: a file came back", c->what);
        kd_st_close(file);
    }
    cr_expect(strstr(scratch_log, "fields beyond"), "the unknown field was not mentioned");
    scratch_close();
}

static void refused(const char *what, const char *path, const char *message)
{
    kd_st_file *file = NULL;
    const kd_status status = kd_st_open(&file, path);
    test_refusal(status, KD_EFORMAT, message, what);
    test_refusal(status, KD_EFORMAT, path, what);
    kd_st_close(file);
}

Test(safetensors, containers, .timeout = 20)
{
    static const unsigned char huge[8] = { 0, 0, 0, 0, 0, 0, 0, 0x80 };
    static const unsigned char past[10] = { 3, 0, 0, 0, 0, 0, 0, 0, '{', '}' };
    static const unsigned char big[8] = { 0x01, 0xe1, 0xf5, 0x05 }; /* 100,000,001 */
    scratch_open();
    refused("no file", scratch_path("none"), "No such file");
    refused("a folder", scratch_dir, "not a regular file");
    cr_assert(mkfifo(scratch_path("fifo"), 0600) == 0);
    refused("a FIFO", scratch_path("fifo"), "not a regular file");
    refused("0 bytes", scratch_write("x", "", 0), "0 bytes, expected at least 8");
    refused("7 bytes", scratch_write("x", huge, 7), "7 bytes, expected at least 8");
    refused("n = 2^63", scratch_write("x", huge, 8), "9223372036854775808 bytes");
    refused("n past the end", scratch_write("x", past, 10), "header of 3 bytes in a file of 10");
    refused("NUL after the object", scratch_st("x", "{}\0\0", 4, 0), "end of file");

    const char *path = scratch_write("x", big, 8);
    cr_assert(truncate(path, 100000100) == 0);
    refused("n over the limit", path, "at most 100000000");

    char *deep = malloc(100001);
    memset(deep, '[', 100000);
    memcpy(deep, "{\"a\":", 5);
    refused("nested 100,000 deep", scratch_st("x", deep, 100000, 0), "nested deeper than 32");
    free(deep);
    scratch_close();
}

/* tests/golden/make_safetensors.py */
static unsigned char pattern(int64_t byte, int seed)
{
    return (unsigned char)((37 * byte + 11 * seed) % 251);
}

static void check_pattern(const kd_st_file *file, const kd_st_entry *entry, int seed)
{
    unsigned char data[512];
    memset(data, 0xee, sizeof data);
    cr_assert(entry->bytes < (int64_t)sizeof data);
    cr_assert(kd_st_read(data, (kd_dtype)entry->dtype, file, entry, 0, entry->elements) == KD_OK,
              "%s", kd_last_error());
    for (int64_t i = 0; i < entry->bytes; i++)
        cr_assert_eq(data[i], pattern(i, seed), "%s: byte %lld", entry->name, (long long)i);
    cr_assert_eq(data[entry->bytes], 0xee, "%s: written past its end", entry->name);
}

Test(safetensors, reads_what_the_reference_wrote)
{
    kd_st_file *file = NULL;
    cr_assert(kd_st_open(&file, KD_GOLDEN "/safetensors/kd_types.safetensors") == KD_OK, "%s",
              kd_last_error());
    cr_assert_eq(file->count, 14);
    cr_assert_str_eq(kd_st_metadata(file, "format"), "pt");
    cr_assert_null(kd_st_metadata(file, "other"));
    cr_assert_null(kd_st_find(file, "t"));
    for (int i = 0; i < KD_DTYPE_COUNT; i++) {
        char name[8];
        (void)snprintf(name, sizeof name, "t%d", i);
        const kd_st_entry *entry = kd_st_find(file, name);
        cr_assert(entry && entry->dtype == i && entry->rank == 2, "%s", name);
        cr_assert(entry->shape[0] == 3 && entry->shape[1] == i + 1, "%s", name);
        check_pattern(file, entry, i);
    }
    check_pattern(file, kd_st_find(file, "blocks.0.\xc3\xbc \"quoted\""), 11);
    check_pattern(file, kd_st_find(file, "scalar"), 12);
    cr_assert_eq(kd_st_find(file, "scalar")->rank, 0);
    cr_assert_eq(kd_st_find(file, "empty")->elements, 0);
    check_pattern(file, kd_st_find(file, "empty"), 13);

    kd_st_close(file);

    /* A type that kd only knows the size of is listed, and cannot be read. */
    cr_assert(kd_st_open(&file, KD_GOLDEN "/safetensors/all_types.safetensors") == KD_OK);
    const kd_st_entry *f64 = kd_st_find(file, "t2");
    double out[5];
    cr_assert_eq(f64->dtype, -1);
    cr_assert_str_eq(f64->dtype_name, "F64");
    cr_assert_eq(f64->bytes, 40);
    cr_assert_eq(kd_st_read(out, KD_F32, file, f64, 0, 5), KD_ENOTSUP);
    cr_assert(strstr(kd_last_error(), "F64") && strstr(kd_last_error(), "t2"));
    check_pattern(file, kd_st_find(file, "t5"), 5);
    check_pattern(file, kd_st_find(file, "t6"), 6);
    kd_st_close(file);
}

/* Every shorter file is refused; with any one byte changed there is an answer and no harm. */
Test(safetensors, torn_and_flipped, .timeout = 60)
{
    char *bytes;
    size_t size;
    scratch_open();
    cr_assert(kd_file_read(&bytes, &size, KD_GOLDEN "/safetensors/kd_types.safetensors", 1 << 20) ==
              KD_OK);
    const char *path = scratch_write("x", bytes, size);
    for (size_t n = size; n-- > 0;) {
        cr_assert(truncate(path, (off_t)n) == 0);
        kd_st_file *file = NULL;
        cr_assert_eq(kd_st_open(&file, path), KD_EFORMAT, "cut to %zu bytes", n);
    }
    (void)scratch_write("x", bytes, size);
    const int fd = open(scratch_path("x"), O_WRONLY);
    for (size_t i = 0; i < 8 + (size_t)(unsigned char)bytes[0] + 256u * (unsigned char)bytes[1];
         i++) {
        const char flipped = (char)(bytes[i] ^ (1 << i % 8));
        cr_assert(pwrite(fd, &flipped, 1, (off_t)i) == 1);
        kd_st_file *file = NULL;
        const kd_status status = kd_st_open(&file, scratch_path("x"));
        cr_assert(status == KD_OK || status == KD_EFORMAT, "byte %zu: status %d", i, status);
        kd_st_close(file);
        cr_assert(pwrite(fd, &bytes[i], 1, (off_t)i) == 1);
    }
    (void)close(fd);
    free(bytes);
    scratch_close();
}

/* ---- what a caller or a disk does wrong ------------------------------------------------------- */

Test(safetensors, ranges_outside_a_tensor_are_refused)
{
    static const int64_t ranges[][2] = { { -1, 1 }, { 0, -1 }, { 3, 0 }, { 0, 3 }, { 1, 2 } };
    uint8_t data[4] = { 7, 7, 7, 7 };
    kd_st_file *file;
    scratch_open();
    cr_assert(kd_st_open(&file, scratch_st("none", "{}", 2, 0)) == KD_OK);
    cr_expect_null(kd_st_find(file, "a"));
    kd_st_close(file);

    const char *header = "{" T("a", "U8", "[2]", "[0,2]") "}";
    cr_assert(kd_st_open(&file, scratch_st("two", header, strlen(header), 2)) == KD_OK);
    for (int i = 0; i < KD_COUNT(ranges); i++) {
        char message[64];
        (void)snprintf(message, sizeof message, "/two: tensor \"a\": %d elements from %d of 2",
                       (int)ranges[i][1], (int)ranges[i][0]);
        test_refusal(
            kd_st_read(data, KD_U8, file, kd_st_find(file, "a"), ranges[i][0], ranges[i][1]),
            KD_EINVAL, message, message);
    }
    cr_expect(data[0] == 7 && data[3] == 7, "something was read");
    kd_st_close(file);
    scratch_close();
}

static int open_and_widen(const void *path)
{
    kd_st_file *file;
    float values[2];
    KD_TRY(kd_st_open(&file, path));
    const kd_status status = kd_st_read(values, KD_F32, file, kd_st_find(file, "a"), 0, 2);
    kd_st_close(file);
    return (int)status;
}

Test(safetensors, on_a_failing_disk)
{
    static const char header[] = "{" T("a", "BF16", "[2]", "[0,4]") "}";
    test_trace t = { .harm = TEST_FAIL, .error = EIO, .only = SYS_pread64 };
    if (!test_can_trace()) return;
    scratch_open();
    const char *path = scratch_st("x", header, strlen(header), 4);
    t.below = scratch_dir;
    for (;; t.at++) {
        const test_child *child = test_traced(&t, open_and_widen, path);
        cr_assert(child->status == (t.hit ? KD_EIO : KD_OK), "read %d: %s", (int)t.at,
                  child->message);
        if (!t.hit) break;
        cr_expect(kd_status_exit_code(KD_EIO) == 4 &&
                      strstr(child->message, "/x: cannot read: Input/output error"),
                  "read %d: %s", (int)t.at, child->message);
    }
    cr_expect(t.at == 3, "%d reads, expected length, header and data", (int)t.at);
    scratch_close();
}

/* ---- conversion ------------------------------------------------------------------------------- */

enum { COUNT = 40001, LEAD = 3 };

static float widen(uint16_t bits, kd_dtype dtype)
{
    return dtype == KD_BF16 ? kd_bf16_to_f32(bits) : kd_f16_to_f32(bits);
}

/* Element `i` of `data` as the f32 it stands for. */
static float value_at(const void *data, kd_dtype dtype, int64_t i)
{
    float f;
    uint16_t h;
    if (dtype == KD_F32) {
        memcpy(&f, (const char *)data + 4 * i, 4);
        return f;
    }
    memcpy(&h, (const char *)data + 2 * i, 2);
    return widen(h, dtype);
}

static float rounded(float x, kd_dtype dtype)
{
    if (dtype == KD_BF16) return kd_bf16_to_f32(kd_f32_to_bf16(x));
    return dtype == KD_F16 ? kd_f16_to_f32(kd_f32_to_f16(x)) : x;
}

static void check_conversion(const kd_st_file *file, const void *source, kd_dtype from, kd_dtype to,
                             int64_t first, int64_t count)
{
    const size_t size = kd_dtype_size(to);
    unsigned char *out = malloc((size_t)(count + 2) * size);
    memset(out, 0xa5, (size_t)(count + 2) * size);
    cr_assert(kd_st_read(out + size, to, file, kd_st_find(file, "x"), first, count) == KD_OK, "%s",
              kd_last_error());
    for (int64_t i = 0; i < count; i++) {
        const float want = rounded(value_at(source, from, first + i), to);
        const float got = value_at(out + size, to, i);
        cr_assert(memcmp(&want, &got, 4) == 0 || (want != want && got != got),
                  "%s to %s, element %lld: %a, expected %a", kd_dtype_name(from), kd_dtype_name(to),
                  (long long)(first + i), (double)got, (double)want);
    }
    for (size_t i = 0; i < size; i++)
        cr_assert(out[i] == 0xa5 && out[(size_t)(count + 1) * size + i] == 0xa5, "sentinel");
    free(out);
}

Test(safetensors, converts)
{
    static const kd_dtype types[] = { KD_F32, KD_BF16, KD_F16 };
    scratch_open();
    for (int f = 0; f < 3; f++) {
        const size_t size = kd_dtype_size(types[f]), bytes = COUNT * size;
        char header[256];
        const int length =
            snprintf(header, sizeof header,
                     "{\"p\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[0,%d]},"
                     "\"x\":{\"dtype\":\"%s\",\"shape\":[%d],\"data_offsets\":[%d,%zu]}}",
                     LEAD, LEAD,
                     f == 0   ? "F32"
                     : f == 1 ? "BF16"
                              : "F16",
                     COUNT, LEAD, LEAD + bytes);
        const char *path = scratch_st("x", header, (size_t)length, LEAD + bytes);
        unsigned char *source = malloc(bytes);
        for (size_t i = 0; i < bytes; i++) source[i] = (unsigned char)(i * 2654435761u >> 13);
        const int fd = open(path, O_WRONLY);
        cr_assert(pwrite(fd, source, bytes, 8 + length + LEAD) == (ssize_t)bytes);
        (void)close(fd);

        kd_st_file *file = NULL;
        cr_assert(kd_st_open(&file, path) == KD_OK, "%s", kd_last_error());
        for (int t = 0; t < 3; t++) {
            check_conversion(file, source, types[f], types[t], 0, COUNT);
            check_conversion(file, source, types[f], types[t], 7, 16385);
            check_conversion(file, source, types[f], types[t], COUNT, 0);
        }
        const kd_st_entry *x = kd_st_find(file, "x");
        uint8_t out;
        cr_expect_eq(kd_st_read(&out, KD_U8, file, x, 0, 1), KD_ENOTSUP);
        cr_expect_eq(kd_st_read(&out, KD_F32, file, kd_st_find(file, "p"), 0, 1), KD_ENOTSUP);
        cr_expect_eq(kd_st_read(&out, types[f], file, x, COUNT, 1), KD_EINVAL);
        cr_expect_eq(kd_st_read(&out, types[f], file, x, -1, 1), KD_EINVAL);
        cr_expect_eq(kd_st_read(&out, types[f], file, x, 1, INT64_MAX), KD_EINVAL);

        /* Truncated under our feet: an error, not a signal. */
        cr_assert(truncate(path, 8 + length + LEAD + 100) == 0);
        float *rest = malloc(COUNT * sizeof *rest);
        test_refusal(kd_st_read(rest, KD_F32, file, x, 0, COUNT), KD_EFORMAT, "x: ends at byte",
                     "truncated");
        free(rest);
        kd_st_close(file);
        free(source);
    }
    scratch_close();
}

Test(safetensors, large, .timeout = 60)
{
    scratch_open();
    /* A tensor that lies past 4 GiB, in a sparse file. */
    const int64_t first = ((int64_t)9 << 29) + 4;
    char header[256];
    const int length =
        snprintf(header, sizeof header,
                 "{\"a\":{\"dtype\":\"U8\",\"shape\":[%lld],\"data_offsets\":[0,%lld]},"
                 "\"b\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[%lld,%lld]}}",
                 (long long)first, (long long)first, (long long)first, (long long)first + 8);
    const char *path = scratch_st("x", header, (size_t)length, 0);
    const int32_t want[2] = { 123456789, -5 };
    const int fd = open(path, O_WRONLY);
    cr_assert(pwrite(fd, want, sizeof want, 8 + length + first) == (ssize_t)sizeof want);
    (void)close(fd);
    kd_st_file *file = NULL;
    int32_t got[2];
    cr_assert(kd_st_open(&file, path) == KD_OK, "%s", kd_last_error());
    cr_assert(kd_st_read(got, KD_I32, file, kd_st_find(file, "b"), 0, 2) == KD_OK);
    cr_assert(memcmp(got, want, sizeof want) == 0);
    kd_st_close(file);

    /* 200,000 tensors in a header of 12 MB. */
    enum { TENSORS = 200000, ROOM = 80 };
    char *many = malloc((size_t)TENSORS * ROOM + 2), *p = many;
    *p++ = '{';
    for (int i = 0; i < TENSORS; i++)
        p += snprintf(p, ROOM,
                      "%s\"%06d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                      i ? "," : "", i, TENSORS - 1 - i, TENSORS - i);
    *p++ = '}';
    path = scratch_st("x", many, (size_t)(p - many), TENSORS);
    free(many);
    cr_assert(kd_st_open(&file, path) == KD_OK, "%s", kd_last_error());
    cr_assert_eq(file->count, TENSORS);
    cr_assert_str_eq(kd_st_find(file, "123456")->name, "123456");
    kd_st_close(file);
    scratch_close();
}
