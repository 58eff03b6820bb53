/*
 * text_safetensors.c - `tokens` u16, u32 or i32 [n], `documents` i64 [d + 1], `loss_mask` u8 [n].
 *
 * The format does not align its tensors, so nothing here is read through a typed pointer.
 */
#include "data/formats.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>

/* The tensor `name` of one dimension and one of the three dtypes; absent when the file has none. */
static kd_status find_vector(kd_numbers *numbers, const kd_st_entry **entry, const kd_st_file *file,
                             const char *name, const int dtypes[3], const char *expected)
{
    *numbers = (kd_numbers){ .size = 0 };
    *entry = kd_st_find(file, name);
    if (!*entry) return KD_OK;
    const kd_st_entry *e = *entry;
    const bool known = e->dtype == dtypes[0] || e->dtype == dtypes[1] || e->dtype == dtypes[2];
    if (!known || e->rank != 1)
        return kd_fail(KD_EFORMAT,
                       "%s: tensor %s (byte %" PRId64
                       "): found %s with %d dimensions, expected %s with 1",
                       file->path, name, e->offset, e->dtype_name, (int)e->rank, expected);
    numbers->offset = e->offset;
    numbers->count = e->elements;
    numbers->size = (int)kd_dtype_size((kd_dtype)e->dtype);
    numbers->is_signed = e->dtype == KD_I32 || e->dtype == KD_I64;
    return KD_OK;
}

static kd_status check_documents(const kd_text_part *part, const kd_st_entry *entry)
{
    int64_t low = 0;
    for (int64_t i = 0; i <= part->document_count; i++) {
        const int64_t at = part->documents[i], count = part->tokens.count;
        const int64_t high = i == 0 ? 0 : count;
        if (i == part->document_count) low = count;
        if (at < low || at > high)
            return kd_fail(KD_EFORMAT,
                           "%s: documents[%" PRId64 "] (byte %" PRId64 "): found %" PRId64
                           ", expected %" PRId64 " to %" PRId64,
                           part->path, i, entry->offset + i * (int64_t)sizeof at, at, low, high);
        low = at;
    }
    return KD_OK;
}

static kd_status read_documents(kd_text_part *part, const kd_st_file *file,
                                const kd_st_entry *entry)
{
    if (entry->elements < 2)
        return kd_fail(KD_EFORMAT,
                       "%s: tensor documents (byte %" PRId64 "): found %" PRId64
                       " borders, expected 2 or more",
                       part->path, entry->offset, entry->elements);
    part->documents = malloc((size_t)entry->bytes);
    if (!part->documents)
        return kd_fail(KD_ENOMEM, "%s: no memory for %" PRId64 " documents", part->path,
                       entry->elements - 1);
    part->document_count = entry->elements - 1;
    KD_TRY(kd_st_read(part->documents, KD_I64, file, entry, 0, entry->elements));
    return check_documents(part, entry);
}

static kd_status read_tensors(kd_text_part *part, const kd_st_file *file)
{
    const kd_st_entry *tokens, *documents, *mask;
    kd_numbers borders;
    KD_TRY(find_vector(&part->tokens, &tokens, file, "tokens", (int[]){ KD_U16, KD_U32, KD_I32 },
                       "U16, U32 or I32"));
    if (!tokens)
        return kd_fail(KD_EFORMAT, "%s: found no tensor 'tokens', expected one with at least 1",
                       part->path);
    KD_TRY(find_vector(&borders, &documents, file, "documents", (int[]){ KD_I64, KD_I64, KD_I64 },
                       "I64"));
    KD_TRY(
        find_vector(&part->mask, &mask, file, "loss_mask", (int[]){ KD_U8, KD_U8, KD_U8 }, "U8"));
    if (mask && mask->elements != tokens->elements)
        return kd_fail(KD_EFORMAT,
                       "%s: tensor loss_mask (byte %" PRId64 "): found %" PRId64
                       " elements, expected %" PRId64 " as in tokens",
                       part->path, mask->offset, mask->elements, tokens->elements);
    if (documents) KD_TRY(read_documents(part, file, documents));
    const char *tokenizer = kd_st_metadata(file, "tokenizer");
    return tokenizer ? kd_arena_string(&part->tokenizer, part->arena, tokenizer) : KD_OK;
}

kd_status kd_part_safetensors(kd_text_part *part, kd_text_setup *setup)
{
    kd_st_file *file;
    KD_TRY(kd_arena_string(&part->path, part->arena, setup->path));
    KD_TRY(kd_st_open(&file, part->path));
    kd_status status = read_tensors(part, file);
    part->fd = fcntl(file->fd, F_DUPFD_CLOEXEC, 0); /* the very file whose header was checked */
    if (part->fd < 0 && status == KD_OK)
        status = kd_fail(KD_EIO, "%s: %s", part->path, strerror(errno));
    kd_st_close(file);
    return status;
}
