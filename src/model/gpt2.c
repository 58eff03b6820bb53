/* Weight names of GPT-2.  Its Conv1D stores [in, out]; old checkpoints have no "transformer.". */
#include "model/model.h"

static const kd_name_row names[] = {
    { "transformer.wte.weight", KD_PLACE_EMBEDDING, KD_PART_ALL, false, false },
    { "transformer.wpe.weight", KD_PLACE_POSITION, KD_PART_ALL, false, false },
    { "transformer.h.%d.ln_1.weight", KD_PLACE_NORM1, KD_PART_ALL, false, false },
    { "transformer.h.%d.ln_1.bias", KD_PLACE_NORM1, KD_PART_ALL, true, false },
    { "transformer.h.%d.attn.c_attn.weight", KD_PLACE_QKV, KD_PART_ALL, false, true },
    { "transformer.h.%d.attn.c_attn.bias", KD_PLACE_QKV, KD_PART_ALL, true, false },
    { "transformer.h.%d.attn.c_proj.weight", KD_PLACE_OUT, KD_PART_ALL, false, true },
    { "transformer.h.%d.attn.c_proj.bias", KD_PLACE_OUT, KD_PART_ALL, true, false },
    { "transformer.h.%d.ln_2.weight", KD_PLACE_NORM2, KD_PART_ALL, false, false },
    { "transformer.h.%d.ln_2.bias", KD_PLACE_NORM2, KD_PART_ALL, true, false },
    { "transformer.h.%d.mlp.c_fc.weight", KD_PLACE_MLP_UP, KD_PART_ALL, false, true },
    { "transformer.h.%d.mlp.c_fc.bias", KD_PLACE_MLP_UP, KD_PART_ALL, true, false },
    { "transformer.h.%d.mlp.c_proj.weight", KD_PLACE_MLP_DOWN, KD_PART_ALL, false, true },
    { "transformer.h.%d.mlp.c_proj.bias", KD_PLACE_MLP_DOWN, KD_PART_ALL, true, false },
    { "transformer.ln_f.weight", KD_PLACE_FINAL_NORM, KD_PART_ALL, false, false },
    { "transformer.ln_f.bias", KD_PLACE_FINAL_NORM, KD_PART_ALL, true, false },
    { "lm_head.weight", KD_PLACE_HEAD, KD_PART_ALL, false, false },
    { 0 },
};

const kd_family kd_family_gpt2 = { "gpt2", names, "transformer.", &kd_network_transformer };
