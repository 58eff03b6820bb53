"""Conversations in ChatML, with a mask of what the assistant says.

Only tokenizers whose own chat template *is* ChatML are accepted: the template is rendered on sample
conversations and compared, so a template that adds or drops anything is refused, not guessed at.
A default system prompt in front of conversations without one is part of what is found out.
"""

import json
import os

from gguf_to_hf import Refused

ROLES = ("system", "user", "assistant")
SAMPLES = (
    [("user", "one"), ("assistant", "two")],
    [("user", " one\n"), ("assistant", "two "), ("user", "three"), ("assistant", "<b>")],
    [("system", "zero"), ("user", "one"), ("assistant", "two")],
)


def render(messages, prompt=""):
    return prompt + "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages)


class ChatML:
    def __init__(self, folder, tokenizer):
        self.tokenizer = tokenizer
        template = self.read_template(folder)
        rendered = [self.apply(template, sample) for sample in SAMPLES]
        plain = render(SAMPLES[0])
        self.prompt = rendered[0][:-len(plain)] if rendered[0].endswith(plain) else ""
        expected = [render(SAMPLES[0], self.prompt), render(SAMPLES[1], self.prompt),
                    render(SAMPLES[2])]
        for found, wanted in zip(rendered, expected):
            if found != wanted:
                raise Refused(f"{folder}: chat template: found {found!r}, "
                              f"expected ChatML {wanted!r}")
        for token in ("<|im_start|>", "<|im_end|>"):
            if len(tokenizer.encode(token, add_special_tokens=False).ids) != 1:
                raise Refused(f"{folder}: {token}: found no such token, expected one for ChatML")
        self.special = [t.content for t in tokenizer.get_added_tokens_decoder().values()
                        if t.special]

    @staticmethod
    def read_template(folder):
        alone = os.path.join(folder, "chat_template.jinja")
        if os.path.exists(alone):
            with open(alone, encoding="utf-8") as file:
                return file.read()
        path = os.path.join(folder, "tokenizer_config.json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                template = json.load(file).get("chat_template")
            if isinstance(template, str):
                return template
        raise Refused(f"{folder}: chat template: found none, expected ChatML's")

    @staticmethod
    def apply(template, sample):
        import jinja2.sandbox  # only conversations need it
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True,
                                                                   lstrip_blocks=True)
        messages = [{"role": role, "content": text} for role, text in sample]
        try:
            return environment.from_string(template).render(messages=messages,
                                                            add_generation_prompt=False)
        except jinja2.TemplateError as error:
            raise Refused(f"chat template: {error}, expected ChatML") from error

    def check(self, messages, where):
        """[(role, text)] of a conversation, or a refusal that names the line."""
        if not isinstance(messages, list) or not messages:
            raise Refused(f"{where}: messages: expected a list of role and content")
        pairs = []
        for message in messages:
            role = message.get("role") if isinstance(message, dict) else None
            text = message.get("content") if isinstance(message, dict) else None
            if role not in ROLES or not isinstance(text, str):
                raise Refused(f"{where}: found role {role!r} with {type(text).__name__} content, "
                              f"expected one of {ROLES} with text")
            for token in self.special:
                if token in text:
                    raise Refused(f"{where}: found {token} inside a message, expected plain text")
            pairs.append((role, text))
        if all(role != "assistant" for role, _ in pairs):
            raise Refused(f"{where}: found no assistant's turn, expected something to learn from")
        return pairs

    def encode(self, messages, where):
        """(ids, mask): 1 where the token is the assistant's text or the <|im_end|> that ends it."""
        pairs = self.check(messages, where)
        ids, mask = [], []
        if self.prompt and pairs[0][0] != "system":
            ids += self.tokenizer.encode(self.prompt, add_special_tokens=False).ids
            mask += [0] * len(ids)
        for role, text in pairs:
            # Turns are cut at special tokens and line ends, so each encodes as in the whole.
            turn = self.tokenizer.encode(render([(role, text)]), add_special_tokens=False)
            head = len(f"<|im_start|>{role}\n")
            end = head + len(text) + len("<|im_end|>")
            said = [int(role == "assistant" and head <= a < end) for a, _ in turn.offsets]
            ids += turn.ids
            mask += said
        return ids, mask
