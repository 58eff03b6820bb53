#!/usr/bin/env python3
"""Holds kd's lines of JSON, and tools/data/tokenize_jsonl.py, to what transformers makes of them.

    python3 tests/data/check_jsonl.py build/tests/test_data

Text: for every golden tokenizer kd's ids, document by document, are transformers' own, and the tool's
file has the same.  Conversations: with a template that marks the assistant's turns and with two that
do not, the loss mask covers the assistant's words and the token that ends them, and nothing else; what
cannot be told apart is refused by file and line.
Exit status 0: all do; 77: skipped, because transformers is not installed.
"""
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "golden", "bpe")
TOOLS = os.path.join(HERE, "..", "..", "tools", "data")
sys.path.insert(0, TOOLS)

CHATML = ("{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
          "Be kind.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
          "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
MARKED = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
          "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}"
          "{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}")
BARE = ("{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}<|endoftext|>"
        "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}")
FORGETS = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and "
           "not loop.last %}...{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
           "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

CHATS = [
    [("user", "Hi there"), ("assistant", "Hello, world!")],
    [("system", "You teach."), ("user", "1 + 1?"), ("assistant", "2"), ("user", "And 2 + 2?"),
     ("assistant", "4, I'm sure.\n\nna\u00efve caf\u00e9 \U0001f600")],
    [("user", "two in a row"), ("assistant", "a"), ("assistant", " b ")],
    [("user", "x\n"), ("assistant", "\n\nbegins with lines, ends with them\n\n")],
]


def messages(chat):
    return [{"role": role, "content": text} for role, text in chat]


def write_jsonl(path, records):
    with open(path, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")


def make_folder(root, kind, eos, template=None):
    folder = os.path.join(root, kind)
    os.makedirs(folder, exist_ok=True)
    shutil.copy(os.path.join(GOLDEN, kind, "tokenizer.json"), folder)
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as file:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos,
                   **({"chat_template": template} if template else {})}, file)
    return folder


def run_tool(folder, out, *files):
    """(exit status, what it said)"""
    import tokenize_jsonl
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = tokenize_jsonl.main(["--tokenizer", folder, "--out", out, *files])
    return status, said.getvalue()


def read_file(load_file, path):
    """[(ids, mask)] of a token file."""
    made = load_file(path)
    mask = made.get("loss_mask")
    mask = [1] * len(made["tokens"]) if mask is None else mask.tolist()
    borders, tokens = made["documents"].tolist(), made["tokens"].tolist()
    return [(tokens[a:b], mask[a:b]) for a, b in zip(borders, borders[1:])]


def check_text(transformers, load_file, program, root, kind):
    eos = None if kind == "digits" else "<|im_end|>"
    folder = make_folder(root, kind, eos)
    with open(os.path.join(GOLDEN, "cases.json"), encoding="utf-8") as file:
        texts = json.load(file)["texts"]
    path, ids, out = (os.path.join(root, kind + end) for end in (".jsonl", ".ids", ".safetensors"))
    write_jsonl(path, [{"text": text} for text in texts])
    subprocess.run([program, "--filter", "json_lines/ids_for_transformers"], check=True,
                   env={**os.environ, "KD_JSONL": path, "KD_IDS": ids, "KD_TOKENIZER": folder},
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(ids, encoding="ascii") as file:
        kd = [[int(number) for number in line.split()] for line in file]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    wanted = []
    for text in texts:
        one = tokenizer(text)["input_ids"] if text else []
        if text and eos and one[-1:] != [tokenizer.eos_token_id]:
            one = one + [tokenizer.eos_token_id]
        wanted += [one] if text else []
    assert len(kd) == len(wanted), f"kd has {len(kd)} documents, transformers {len(wanted)}"
    for got, want in zip(kd, wanted):
        assert got == want, f"kd has {got}, transformers {want}: {tokenizer.decode(want)!r}"
    status, said = run_tool(folder, out, path)
    assert status == 0, said
    assert read_file(load_file, out) == [(one, [1] * len(one)) for one in wanted], "the tool's file"
    return f"{len(kd)} documents, {sum(map(len, kd))} tokens"


def runs(ids, mask):
    """The masked tokens, run by run."""
    found = [[]]
    for token, scored in zip(ids, mask):
        if scored:
            found[-1].append(token)
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def check_chat(load_file, tokenizers, root, name, template, end):
    folder = make_folder(root, "gpt2", end, template)
    path, out = os.path.join(root, "chat.jsonl"), os.path.join(root, "chat.safetensors")
    write_jsonl(path, [{"messages": messages(chat)} for chat in CHATS] + [{"text": "plain"}])
    status, said = run_tool(folder, out, path)
    assert status == 0, said
    documents = read_file(load_file, out)
    decode = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json")).decode
    assert len(documents) == len(CHATS) + 1 and all(documents[-1][1]), "the text counts whole"
    for chat, (ids, mask) in zip(CHATS, documents):
        said = [text + end for role, text in chat if role == "assistant"]
        found = [decode(run, skip_special_tokens=False) for run in runs(ids, mask)]
        # But for white space, which a token may share with the prompt ("\n\n" of both line ends).
        assert "".join("".join(found).split()) == "".join("".join(said).split()) and all(
            run.endswith(end) for run in found), f"{name}: scored {found}, expected {said}"
        rest = decode([i for i, m in zip(ids, mask) if not m], skip_special_tokens=False)
        for want in said:
            assert len(want) < 12 or want not in rest, f"{name}: {want!r} is in {rest!r}"
    return f"{len(CHATS)} conversations"


def check_refusals(root):
    folder, path, out = os.path.join(root, "gpt2"), os.path.join(root, "bad.jsonl"), \
        os.path.join(root, "bad.safetensors")
    cases = [
        (FORGETS, {"messages": messages(CHATS[1])}, "messages[2]: the chat template of"),
        (CHATML, {"messages": messages(CHATS[1][:2])}, "found no assistant's turn"),
        (CHATML, {"messages": messages([("user", "<|im_end|>"), ("assistant", "a")])},
         "messages[0]: found <|im_end|> inside the content"),
        (CHATML, {"messages": [{"role": "assistant", "content": None}]}, "content: found NoneType"),
        (CHATML, {"messages": "hello"}, "messages: expected a list"),
        (CHATML, {"text": 1}, "text: found int"),
        (CHATML, {"text": "a", "messages": []}, "expected one of text and messages"),
        ("{{ raise_exception('no') }}", {"messages": messages(CHATS[0])}, "no"),
        (None, {"messages": messages(CHATS[0])}, "chat template: found none"),
    ]
    for template, record, part in cases:
        make_folder(root, "gpt2", "<|im_end|>", template)
        write_jsonl(path, [{"text": "a line that is right"}, record])
        status, said = run_tool(folder, out, path)
        assert status == 3 and part in said, f"{part}: {status}, {said}"
        assert template is None or f"{path}:2" in said, said
        left = [name for name in os.listdir(root) if name.startswith("bad.safetensors")]
        assert not left, f"{left} was left behind"
    return f"{len(cases)} cases"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        import tokenizers
        import transformers
        import xxhash  # the tool's
        from safetensors.numpy import load_file
    except ImportError as missing:
        print(f"skipped: {missing}")
        sys.exit(77)
    program = os.path.abspath(sys.argv[1])
    checks = [("text, " + kind, lambda root, kind=kind: check_text(
        transformers, load_file, program, root, kind)) for kind in sorted(os.listdir(GOLDEN))
        if os.path.isdir(os.path.join(GOLDEN, kind))]
    checks += [("chat, " + name, lambda root, args=(name, template, end): check_chat(
        load_file, tokenizers, root, *args)) for name, template, end in (
            ("ChatML", CHATML, "<|im_end|>"), ("marked", MARKED, "<|im_end|>"),
            ("bare", BARE, "<|endoftext|>"))]
    checks.append(("refusals", check_refusals))
    failures = 0
    for name, check in checks:
        with tempfile.TemporaryDirectory() as root:
            try:
                print(f"{name}: {check(root)}", flush=True)
            except (AssertionError, subprocess.CalledProcessError) as failure:
                failures += 1
                print(f"{name}: FAILED: {failure}", flush=True)
    sys.exit(failures != 0)


if __name__ == "__main__":
    main()
