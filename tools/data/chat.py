"""Conversations through the tokenizer's own chat template, with a mask of what the assistant says.

A template that marks what the assistant generates ({% generation %}) is taken at its word.  Of any
other, a turn is what the conversation up to it has more than the one before it with the prompt for an
answer; where one is not the beginning of the other, the template rewrites earlier turns and is
refused, not guessed at.  White space behind the token that ends a turn is not the assistant's.
"""

import re

from gguf_to_hf import Refused

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def load(folder):
    """The tokenizer of transformers; its `tokenizers` backend knows where in the text a token is."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise Refused(f"{error}: pip install transformers==5.23.0") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise Refused(f"{folder}: {error}") from error
    if not tokenizer.is_fast:
        raise Refused(f"{folder}: found a tokenizer without tokenizer.json, expected one")
    return tokenizer


class Chat:
    def __init__(self, folder, tokenizer=None):
        self.folder, self.tokenizer = folder, tokenizer or load(folder)
        try:
            template = self.tokenizer.get_chat_template()
        except ValueError as error:
            raise Refused(f"{folder}: chat template: found none, expected one") from error
        self.marks = GENERATION.search(template) is not None

    def encode(self, messages, where, tools=None):
        """(ids, mask): 1 where the token is of an assistant's turn or ends it."""
        self.check(messages, where)
        if self.marks:
            said = self.apply(messages, where, tools, tokenize=True, return_dict=True,
                              return_assistant_tokens_mask=True)
            ids, mask = said["input_ids"], said["assistant_masks"]
        else:
            ids, mask = self.differences(messages, where, tools)
        if not any(mask):
            raise Refused(f"{where}: the chat template of {self.folder} gives the assistant no token")
        return ids, mask

    def check(self, messages, where):
        if not isinstance(messages, list) or not messages:
            raise Refused(f"{where}: messages: expected a list of role and content")
        for i, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise Refused(f"{where}: messages[{i}]: expected role and content")
            text = message.get("content")
            if not isinstance(text, str) and not (text is None and message.get("tool_calls")):
                raise Refused(f"{where}: messages[{i}]: content: found {type(text).__name__}, "
                              "expected text")
            for token in self.tokenizer.all_special_tokens:
                if token in (text or ""):
                    raise Refused(f"{where}: messages[{i}]: found {token} inside the content, "
                                  "expected plain text")
        if all(message["role"] != "assistant" for message in messages):
            raise Refused(f"{where}: found no assistant's turn, expected something to learn from")

    def apply(self, messages, where, tools, **options):
        import jinja2  # transformers renders with it
        try:
            return self.tokenizer.apply_chat_template(messages, tools=tools, **options)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise Refused(f"{where}: chat template of {self.folder}: {error}") from error

    def differences(self, messages, where, tools):
        render = lambda turns, prompt: self.apply(turns, where, tools, tokenize=False,
                                                  add_generation_prompt=prompt)
        whole, spans = render(messages, False), []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = render(messages[:i], True), render(messages[:i + 1], False)
            if not whole.startswith(after) or not after.startswith(before):
                raise Refused(
                    f"{where}: messages[{i}]: the chat template of {self.folder} writes this turn "
                    "differently when it is the last or not yet written, so what the assistant said is "
                    "not certain; mark it in the template with {% generation %}")
            spans.append((len(before), self.end(whole, len(before), len(after))))
        coded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True,
                               verbose=False)
        mask = [int(any(a <= begin < b for a, b in spans)) for begin, _ in coded["offset_mapping"]]
        return coded["input_ids"], mask

    def end(self, whole, begin, end):
        turn = whole[begin:end].rstrip()
        ended = any(turn.endswith(token) for token in self.tokenizer.all_special_tokens)
        return begin + len(turn) if ended else end
