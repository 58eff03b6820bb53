"""Documentation as clean English prose: HTML pages in, documents out.

Kept: headings, paragraphs, list items, quotations.  Dropped: navigation, tables, code, footnote
marks, paragraphs that are not prose, and paragraphs that were seen before.
"""

import html.parser
import re
import unicodedata

SKIPPED = {"head", "script", "style", "nav", "table", "pre", "form", "select", "button", "svg",
           "math", "footer", "aside", "figure", "address", "template", "object"}
SKIPPED_CLASSES = re.compile(
    r"\b(nav\w*|toc\w*|sidebar\w*|sphinxsidebar\w*|related|footer\w*|headerlink|breadcrumbs?|"
    r"footnotes?|programlisting|screen|synopsis|highlight\S*|index\w*|menu\w*|banner\w*|"
    r"(product|doc)-?nav\w*|docnav|legalnotice|literalblock|listingblock)\b")
BLOCKS = {"p", "div", "li", "dd", "dt", "blockquote", "section", "article", "main", "body", "tr",
          "td", "ul", "ol", "dl", "hr", "center", "title", "header"}
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
ADMONITION = re.compile(r"(note|tip|caution|warning|important|see also|example \S+)\W*", re.I)
GAP = -1  # the level of a block that stands for skipped code or a skipped table
VOID = {"br", "hr", "img", "input", "link", "meta", "area", "base", "col", "embed", "wbr", "param"}


class Blocks(html.parser.HTMLParser):
    """Collects (heading level, 0 or GAP, text).  A block ends where the next one starts, so pages
    with unclosed <p> and <li> read like closed ones."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.blocks, self.text, self.level = [], [], 0
        self.skipping, self.depth = None, 0

    def flush(self):
        text = " ".join("".join(self.text).split())
        if text:
            self.blocks.append((self.level, text))
        self.text = []

    def handle_starttag(self, tag, attributes):
        if self.skipping:
            self.depth += tag == self.skipping
            return
        names = dict(attributes)
        label = f"{names.get('class') or ''} {names.get('id') or ''} {names.get('role') or ''}"
        if tag not in VOID and (tag in SKIPPED or SKIPPED_CLASSES.search(label)) and tag != "body":
            if tag not in ("a", "span"):
                self.flush()
                self.blocks.append((GAP, ""))
            self.skipping, self.depth = tag, 1
        elif tag in HEADINGS:
            self.flush()
            self.level = int(tag[1])
        elif tag in BLOCKS:
            self.flush()
            self.level = 0
        elif tag == "br":
            self.text.append(" ")

    def handle_endtag(self, tag):
        if self.skipping:
            self.depth -= tag == self.skipping
            if self.depth == 0:
                self.skipping = None
        elif tag in HEADINGS or tag in BLOCKS:
            self.flush()
            self.level = 0

    def handle_data(self, data):
        if not self.skipping:
            self.text.append(data)


def html_blocks(text):
    parser = Blocks()
    parser.feed(text)
    parser.close()
    parser.flush()
    return parser.blocks


def clean(text):
    """One spelling for quotes, dashes and spaces; footnote marks away."""
    text = unicodedata.normalize("NFC", text).replace("\u00ad", "").replace("\u200b", "")
    text = text.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0xA0: " ",
                           0x2026: "...", 0x2010: "-", 0x2011: "-"})
    text = re.sub(r"\s*\[\d{1,3}\]", "", text)
    text = re.sub(r"\(\s+", "(", re.sub(r"\s+([,.;:!?)])(?=\s|$)", r"\1", text))
    return " ".join(text.split())


def is_prose(text):
    """Words, not code, names or numbers: measured on characters, so no word list is needed."""
    letters = sum(c.isalpha() or c == " " for c in text)
    ascii_share = sum(c.isascii() for c in text) / len(text)
    odd = sum(text.count(c) for c in "{}<>=_\\|$@#*~^`")
    return (letters >= 0.85 * len(text) and ascii_share >= 0.97 and odd <= 0.01 * len(text)
            and len(text.split()) >= 4)


def without_announcement(text):
    """A paragraph whose last sentence announces what was skipped ("as follows:"), less that
    sentence."""
    if not text.endswith(":"):
        return text
    end = max(text.rfind(". "), text.rfind("? "), text.rfind("! "))
    return text[:end + 1]


def sections(blocks):
    """Cuts one page at its headings of the two highest levels it uses: lists of paragraphs, each
    beginning with its title where it has one."""
    blocks = [(level, clean(text)) for level, text in blocks]
    blocks = [(level, text) for level, text in blocks
              if level == GAP or (text and not (level and ADMONITION.fullmatch(text)))]
    cuts = sorted({level for level, _ in blocks if level > 0})[:2]
    pieces = [[]]
    for (level, text), (following, _) in zip(blocks, [*blocks[1:], (GAP, "")]):
        if level in cuts:
            pieces.append([text])
        elif level > 0:
            pieces[-1].append(text)
        elif level == 0 and is_prose(text):
            text = without_announcement(text) if following == GAP else text
            pieces[-1] += [text] if text else []
    return [piece for piece in pieces if any(len(text) >= 120 for text in piece)]


def documents(pieces, shortest, longest):
    """Sections of one page as documents of about `shortest` to `longest` characters: short ones
    join the next, long ones are cut between paragraphs."""
    pages, page = [], []
    for piece in pieces:
        if page and size(page) + size(piece) > longest:
            pages, page = [*pages, page], []
        page = page + piece
        if size(page) >= shortest:
            pages, page = [*pages, page], []
    for page in [*pages, page]:
        parts = -(-size(page) // longest)
        part = []
        for text in page:
            part.append(text)
            if parts > 1 and size(part) >= size(page) / parts:
                yield "\n\n".join(part)
                part = []
        if size(part) >= shortest:
            yield "\n\n".join(part)


def size(texts):
    return sum(len(text) for text in texts)


class Seen:
    """Near-duplicate paragraphs: the same letters and digits in the same order, whatever the case,
    spaces and punctuation."""

    def __init__(self):
        self.keys = set()

    def fresh(self, text):
        key = re.sub(r"[\W_]+", "", text.casefold())
        if len(key) < 40:
            return True  # titles and short list items may come again
        found = key in self.keys
        self.keys.add(key)
        return not found
