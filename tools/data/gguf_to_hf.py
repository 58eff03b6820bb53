"""A Llama model in a GGUF file as the tensors and files of a Hugging Face directory.

What GGUF changes and this undoes:
  * weights are quantised: dequantised here by the `gguf` package, exactly, to float32;
  * the rows of Q and K of a Llama model are permuted, because llama.cpp rotates neighbouring
    columns and Hugging Face rotates column i with column i + head_size / 2;
  * names, configuration and tokenizer live in key-value pairs.
"""

import json

import gguf
import numpy as np


class Refused(Exception):
    """The input is not what it should be; the message says found and expected."""


def expect(what, found, expected):
    if found != expected:
        raise Refused(f"{what}: found {found!r}, expected {expected!r}")


class Metadata:
    """Key-value pairs of a GGUF file; a missing key is a refusal that names it."""

    def __init__(self, reader, path):
        self.reader, self.path = reader, path

    def __getitem__(self, key):
        field = self.reader.fields.get(key)
        if field is None:
            raise Refused(f"{self.path}: key {key}: found none, expected one")
        return field.contents()

    def get(self, key, default):
        return self[key] if key in self.reader.fields else default

    def real(self, key):
        """A float32 as the shortest decimal that gives it: 1e-05, not 9.99999974737875e-06."""
        return float(str(np.float32(self[key])))


def llama_config(metadata, tied, dtype):
    """config.json of LlamaForCausalLM."""
    expect(f"{metadata.path}: general.architecture", metadata["general.architecture"], "llama")
    for key in metadata.reader.fields:
        if key.startswith("llama.rope.scaling") or key.startswith("llama.expert"):
            raise Refused(f"{metadata.path}: key {key}: found one, expected a plain Llama model")
    width, heads = metadata["llama.embedding_length"], metadata["llama.attention.head_count"]
    head_size = metadata.get("llama.attention.key_length", width // heads)
    expect(f"{metadata.path}: llama.rope.dimension_count",
           metadata.get("llama.rope.dimension_count", head_size), head_size)
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "head_dim": head_size,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": metadata["llama.block_count"],
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id", None),
        "pretraining_tp": 1,
        "rms_norm_eps": metadata.real("llama.attention.layer_norm_rms_epsilon"),
        "rope_scaling": None,
        "rope_theta": metadata.real("llama.rope.freq_base"),
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
    }


def llama_names(config):
    """Hugging Face name -> (GGUF name, shape, heads whose rows are permuted or 0)."""
    width, ffn, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    names = {
        "model.embed_tokens.weight": ("token_embd.weight", (config["vocab_size"], width), 0),
        "model.norm.weight": ("output_norm.weight", (width,), 0),
    }
    if not config["tie_word_embeddings"]:
        names["lm_head.weight"] = ("output.weight", (config["vocab_size"], width), 0)
    block = {
        "input_layernorm": ("attn_norm", (width,), 0),
        "self_attn.q_proj": ("attn_q", (heads * size, width), heads),
        "self_attn.k_proj": ("attn_k", (kv_heads * size, width), kv_heads),
        "self_attn.v_proj": ("attn_v", (kv_heads * size, width), 0),
        "self_attn.o_proj": ("attn_output", (width, heads * size), 0),
        "post_attention_layernorm": ("ffn_norm", (width,), 0),
        "mlp.gate_proj": ("ffn_gate", (ffn, width), 0),
        "mlp.up_proj": ("ffn_up", (ffn, width), 0),
        "mlp.down_proj": ("ffn_down", (width, ffn), 0),
    }
    for layer in range(config["num_hidden_layers"]):
        for name, (short, shape, permuted) in block.items():
            names[f"model.layers.{layer}.{name}.weight"] = (
                f"blk.{layer}.{short}.weight", shape, permuted)
    return names


def unpermute(rows, heads):
    """Undoes llama.cpp's order of Q and K rows: within a head, pairs -> halves."""
    width = rows.shape[1]
    return rows.reshape(heads, -1, 2, width).swapaxes(1, 2).reshape(-1, width)


def llama_tensors(reader, config, path):
    """Yields (name, float32 array) in the order of the names; refuses a missing, misshaped, or
    left-over tensor."""
    stored = {tensor.name: tensor for tensor in reader.tensors}
    names = llama_names(config)
    wanted = {gguf_name for gguf_name, _, _ in names.values()}
    if stored.keys() != wanted:
        raise Refused(f"{path}: tensors: missing {sorted(wanted - stored.keys())[:4]}, "
                      f"not expected {sorted(stored.keys() - wanted)[:4]}")
    for name in sorted(names):
        gguf_name, shape, heads = names[name]
        tensor = stored[gguf_name]
        # GGUF writes the fastest dimension first.
        found = tuple(int(n) for n in reversed(tensor.shape))
        expect(f"{path}: shape of {gguf_name}", found, shape)
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        if not np.isfinite(values).all():
            raise Refused(f"{path}: {gguf_name}: found a value that is not finite")
        yield name, unpermute(values, heads) if heads else values


def tokenizer_files(metadata):
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json of a byte-level BPE
    tokenizer of the SmolLM kind.  GGUF stores only the *name* of the pre-tokenizer; its meaning
    ("smollm": digits one by one, then GPT-2's pattern) is llama.cpp's llama-vocab.cpp."""
    expect(f"{metadata.path}: tokenizer.ggml.model", metadata["tokenizer.ggml.model"], "gpt2")
    expect(f"{metadata.path}: tokenizer.ggml.pre", metadata["tokenizer.ggml.pre"], "smollm")
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        expect(f"{metadata.path}: tokenizer.ggml.{key}",
               metadata.get(f"tokenizer.ggml.{key}", False), False)
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    expect(f"{metadata.path}: number of token types", len(kinds), len(tokens))
    expect(f"{metadata.path}: number of different tokens", len(set(tokens)), len(tokens))
    control, ordinary = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    strange = sorted(set(kinds) - {control, ordinary})
    expect(f"{metadata.path}: token types other than normal and control", strange, [])

    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True}
             for i, (token, kind) in enumerate(zip(tokens, kinds)) if kind == control]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": dict(byte_level, add_prefix_space=True),
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)},
                  "merges": metadata["tokenizer.ggml.merges"]},
    }
    roles = {role: tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
             for role, key in (("bos_token", "bos"), ("eos_token", "eos"),
                               ("unk_token", "unknown"), ("pad_token", "padding"))}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"}
                                 for t in added},
        "additional_special_tokens": [roles["bos_token"], roles["eos_token"]],
        **roles,
        "chat_template": metadata["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        # Takes tokenizer.json as it is.  The original says GPT2Tokenizer, which transformers 5
        # builds anew without the step that parts digits: "  3" then comes out as other tokens.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": len(tokens),
    }
    return {"tokenizer.json": to_json(tokenizer), "tokenizer_config.json": to_json(config),
            "special_tokens_map.json": to_json(
                {"additional_special_tokens": config["additional_special_tokens"], **roles})}


def to_json(value):
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
