/* Weight names of the Llama family: Llama, SmolLM2, Mistral, Qwen2 (bias on q, k, v), Qwen3 (norms on
 * q and k). */
#include "model/model.h"

static const kd_name_row names[] = {
    { "model.embed_tokens.weight", KD_PLACE_EMBEDDING, KD_PART_ALL, false, false },
    { "model.layers.%d.input_layernorm.weight", KD_PLACE_NORM1, KD_PART_ALL, false, false },
    { "model.layers.%d.self_attn.q_proj.weight", KD_PLACE_QKV, KD_PART_Q, false, false },
    { "model.layers.%d.self_attn.k_proj.weight", KD_PLACE_QKV, KD_PART_K, false, false },
    { "model.layers.%d.self_attn.v_proj.weight", KD_PLACE_QKV, KD_PART_V, false, false },
    { "model.layers.%d.self_attn.q_proj.bias", KD_PLACE_QKV, KD_PART_Q, true, false },
    { "model.layers.%d.self_attn.k_proj.bias", KD_PLACE_QKV, KD_PART_K, true, false },
    { "model.layers.%d.self_attn.v_proj.bias", KD_PLACE_QKV, KD_PART_V, true, false },
    { "model.layers.%d.self_attn.q_norm.weight", KD_PLACE_Q_NORM, KD_PART_ALL, false, false },
    { "model.layers.%d.self_attn.k_norm.weight", KD_PLACE_K_NORM, KD_PART_ALL, false, false },
    { "model.layers.%d.self_attn.o_proj.weight", KD_PLACE_OUT, KD_PART_ALL, false, false },
    { "model.layers.%d.self_attn.o_proj.bias", KD_PLACE_OUT, KD_PART_ALL, true, false },
    { "model.layers.%d.post_attention_layernorm.weight", KD_PLACE_NORM2, KD_PART_ALL, false,
      false },
    { "model.layers.%d.mlp.gate_proj.weight", KD_PLACE_MLP_UP, KD_PART_GATE, false, false },
    { "model.layers.%d.mlp.up_proj.weight", KD_PLACE_MLP_UP, KD_PART_UP, false, false },
    { "model.layers.%d.mlp.gate_proj.bias", KD_PLACE_MLP_UP, KD_PART_GATE, true, false },
    { "model.layers.%d.mlp.up_proj.bias", KD_PLACE_MLP_UP, KD_PART_UP, true, false },
    { "model.layers.%d.mlp.down_proj.weight", KD_PLACE_MLP_DOWN, KD_PART_ALL, false, false },
    { "model.layers.%d.mlp.down_proj.bias", KD_PLACE_MLP_DOWN, KD_PART_ALL, true, false },
    { "model.norm.weight", KD_PLACE_FINAL_NORM, KD_PART_ALL, false, false },
    { "lm_head.weight", KD_PLACE_HEAD, KD_PART_ALL, false, false },
    { 0 },
};

const kd_family kd_family_llama = { "llama", names, NULL, &kd_network_transformer };
const kd_family kd_family_mistral = { "mistral", names, NULL, &kd_network_transformer };
const kd_family kd_family_qwen2 = { "qwen2", names, NULL, &kd_network_transformer };
const kd_family kd_family_qwen3 = { "qwen3", names, NULL, &kd_network_transformer };
