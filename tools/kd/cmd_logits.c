#include "cmd.h"

static const kd_option rows[] = {
    { "model", KD_STRING, offsetof(kd_logits_options, model), NULL, 0, 0, "",
      "Hugging Face directory" },
    { "tokens", KD_STRING, offsetof(kd_logits_options, tokens), NULL, 0, 0, "",
      "safetensors file with integers `tokens` [n], one document" },
    { "out", KD_STRING, offsetof(kd_logits_options, out), NULL, 0, 0, "",
      "safetensors file that is written: f32 `logits` [n, V]" },
    { "device", KD_STRING, offsetof(kd_logits_options, device), "auto", 0, 0, "",
      "auto, cpu, cuda, cuda:1" },
    { "dtype", KD_STRING, offsetof(kd_logits_options, dtype), "f32", 0, 0, "",
      "f32 or bf16, of weights and activations; f8_e4m3: of the matrices in all blocks but the "
      "first "
      "and the last, bf16 elsewhere" },
    { 0 },
};

static kd_status logits(const kd_args *args, const void *given)
{
    (void)args;
    return kd_logits_write(given);
}

kd_status cmd_logits(int argc, char **argv)
{
    static const cmd_spec spec = { rows, 0, 0, "", false, NULL };
    kd_logits_options o;
    return cmd_run(&spec, &o, logits, argc, argv);
}
