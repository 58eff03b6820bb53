#!/usr/bin/env python3
"""Shows the page of `kd report` to headless Chromium.

    python3 tests/report/check_report.py build/kd [--keep DIR]

A tiny run is trained and evaluated, under names that are markup.  At 1200 and 400 pixels, light and
dark: nothing is logged, thrown or fetched, nothing sticks out to the side, every section and drawing
is there, no text of a drawing lies outside it or on its neighbour, and the picture of every figure has
the colours of its lines.  Then pages of folders that lack things, or hold nonsense.
--keep leaves pages and pictures in DIR.  Exit status 0: all that holds; 77: skipped, without Chromium.
"""
import json
import pathlib
import shutil
import sys
import tempfile

import browser
import tiny_run

SECTIONS = ["loss", "optimisation", "agreement", "where", "calibration", "compression",
            "configuration"]
MARKUP = "<b>\"&'</b><script>document.title='no'</script>"
FIGURES = {"loss": 4, "optimisation": 3, "agreement": 2, "where": 2, "calibration": 3}

# Texts of one drawing that leave it or overlap each other.
MISPLACED = """[...document.querySelectorAll('svg')].flatMap(svg => {
    const box = svg.getBoundingClientRect(), found = [];
    const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    texts.forEach(([text, a], i) => {
        if (a.left < box.left - 1 || a.right > box.right + 1 || a.bottom > box.bottom + 1 ||
            a.top < box.top - 1) found.push(text + ' outside');
        texts.slice(i + 1).forEach(([other, b]) => {
            if (a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2)
                found.push(text + ' on ' + other);
        });
    });
    return found.map(f => svg.getAttribute('aria-label') + ': ' + f);
})"""

# Title, place and colour of the first line of every figure.
BOXES = """[...document.querySelectorAll('figure')].map(f => {
    const box = f.getBoundingClientRect(), line = f.querySelector('polyline,.mark');
    return [f.querySelector('b').textContent, Math.round(box.x), Math.round(box.y + scrollY),
            Math.round(box.width), Math.round(box.height),
            getComputedStyle(line).stroke.match(/\\d+/g).map(Number)];
})"""


def check_quiet(page, url):
    assert page.complaints() == [], page.complaints()
    asked = [u for u in page.requests() if not u.startswith("data:")]
    assert asked == [url], asked
    wide = page.value("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, f"{wide} pixels stick out"
    odd = page.value("document.documentElement.outerHTML.match(/NaN|[^a-z]inf[^a-z]/g)")
    assert not odd, f"{odd} on the page"


def check_pixels(page):
    image = browser.Image(page.screenshot())
    boxes = page.value(BOXES)
    for title, x, y, width, height, colour in boxes:
        found = image.colours(x, y, width, height)
        assert len(found) > 20, f"{title}: {len(found)} colours"
        ground = found.most_common(1)[0][1] / (width * height)
        assert 0.5 < ground < 0.995, f"{title}: {ground:.1%} of one colour"
        near = sum(n for c, n in found.items()
                   if max(abs(a - b) for a, b in zip(c, colour)) <= 40)
        assert near >= 8, f"{title}: {near} pixels like {colour}"
    return len(boxes)


def check_whole(page, url, width, dark, keep):
    page.open(url, width, dark=dark)
    check_quiet(page, url)
    assert page.value("[...document.querySelectorAll('section')].map(s => s.id)") == SECTIONS
    for section, count in FIGURES.items():
        found = page.value(f"document.querySelectorAll('#{section} figure svg').length")
        assert found == count, f"{section}: {found} figures, expected {count}"
    assert page.value("document.querySelectorAll('#compression tbody tr').length") == 3
    assert page.value("document.querySelectorAll('.missing').length") == 0
    assert page.value("document.querySelectorAll('script').length") == 0
    assert MARKUP in page.value("document.body.textContent")
    misplaced = page.value(MISPLACED)
    assert misplaced == [], misplaced
    figures = check_pixels(page)
    name = f"{width}-{'dark' if dark else 'light'}"
    if keep:
        (keep / f"{name}.png").write_bytes(page.screenshot())
    print(f"{name}: {figures} figures")


def report(program, folder, name):
    tiny_run.kd(program, folder, "report", name, "--out", f"{name}.html")
    return (folder / f"{name}.html").as_uri()


def check_poor(program, page, folder):
    """Folders that lack things say so; one with nonsense makes a page all the same."""
    cases = {
        "metrics": {"metrics.jsonl": '{"step":0,"model":"student","loss":2}\n{"step":1,"mo'},
        "eval": {"eval-1.json": '{"models":[{"name":"a"},{},3,null]}'},
        "odd": {"metrics.jsonl": "\n".join([
                    '{"step":0,"model":"x","loss":1e308,"lr":-1e-300,"seconds":0,"tokens":5}',
                    '[1]', '7', '{"step":"a"}', '{"step":-1e29,"loss":1e29,"kl":null}',
                    '{"step":1e29,"loss":-1e29,"host_bytes":1e29}', '{"step":3,"split":3,"kl":0}']),
                "eval.json": json.dumps({"tokens": -1, "models": [
                    {"name": MARKUP, "teacher": True, "bytes": 0, "ms_per_token": 0},
                    {"name": "", "parameters": 1e29, "bytes": -1, "ms_per_token": 1e-29,
                     "kl": {"mean": 1e29, "error": 1e-29},
                     "by_context": [{"from": 1e29, "tokens": -3}, {"tokens": 1e29, "kl": -1}] * 40,
                     "by_teacher_entropy": [[]],
                     "calibration": {"bins": [{"tokens": 5, "confidence": 7}] * 30}}]})},
    }
    missing = {"metrics": 5, "eval": 6, "odd": 1}
    for name, files in cases.items():
        (folder / name).mkdir()
        for file, text in files.items():
            (folder / name / file).write_text(text)
        url = report(program, folder, name)
        page.open(url, 400)
        check_quiet(page, url)
        assert page.value("[...document.querySelectorAll('section')].map(s => s.id)") == SECTIONS
        found = page.value("document.querySelectorAll('.missing').length")
        assert found == missing[name], f"{name}: {found} notes of what is missing"
    print(f"{len(cases)} poor folders")


def check(program, folder, keep):
    tiny_run.prepare(program, folder)
    tiny_run.kd(program, folder, "train", "run.yaml")
    tiny_run.kd(program, folder, "eval", "--teacher", tiny_run.TEACHER, "--models", "student,out",
                "--names", f"{MARKUP},kd", "--data", "valid.safetensors", "--train",
                "train.safetensors", "--sequence", "32", "--out", "out/eval.json")
    url = report(program, folder, "out")
    again = (folder / "out.html").read_bytes()
    report(program, folder, "out")
    assert (folder / "out.html").read_bytes() == again, "the same folder gave another page"
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "out.html", keep)
    page = browser.Browser(browser.find())
    try:
        for width, dark in ((1200, False), (1200, True), (400, False)):
            check_whole(page, url, width, dark, keep)
        check_poor(program, page, folder)
    finally:
        page.close()


def main():
    if len(sys.argv) not in (2, 4) or (len(sys.argv) == 4 and sys.argv[2] != "--keep"):
        sys.exit(__doc__)
    if not browser.find():
        print("skipped: no Chromium")
        sys.exit(77)
    keep = pathlib.Path(sys.argv[3]).absolute() if len(sys.argv) == 4 else None
    with tempfile.TemporaryDirectory() as folder:
        check(sys.argv[1], pathlib.Path(folder), keep)


if __name__ == "__main__":
    main()
