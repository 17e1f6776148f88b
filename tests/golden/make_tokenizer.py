"""Script that wrote tests/golden/tokenizer, with transformers 4.57.1 and sentencepiece 0.2.3.

    python make_tokenizer.py FOLDER SPIECE

`ids.json` has the ids that transformers 4's slow AlbertTokenizer, the last maintained code with Google's digit-comma rule, gives
for difficult texts, by vocabulary and options.  The small vocabulary is in the same folder; the released one (SPIECE) is not.
The texts do not contain what this package treats differently on purpose: NUL, `` and '', and special pieces.
"""

import inspect
import json
import random
import sys
import textwrap
from pathlib import Path

TEXTS = [
    "",
    " ",
    "\t\r\n ",
    "a",
    "▁",
    "In 2010, it cost $1,234,567, or £5,000,000.",
    "1,2,3, 10,100,1000, 3.14, 7,",
    '(born 1,999, in X-Y; so) "quoted" – it\'s',
    "x7,y7, a12,b12, 0,00,000,",
    "Café cafe\u0301 naïve ÅNGSTRÖM Ünïcödé falsé \u0301x",
    "ﬁrst ﬃ ½ ² ﷺ ﷽ İstanbul ΟΔΟΣ ΑΣ ß ẞ",
    "漢字かな交じり文 ｶﾞ 각 \u1100\u1161\u11a8 中文，标点。",
    "Привет, мир! שלום עולם مرحبا بالعالم नमस्ते สวัสดี",
    "🙂 👩\u200d👩\u200d👧 🇫🇮 a🙂b ✈\ufe0f",
    "“quoted” ‘so’ it’s — a−b 5″ n´t … • ™",
    "a\x01b\x07 c\x7fd \x1b[0m",
    "\ufeffbom\r\ncrlf\r\nlf\n",
    "zero\u200bwidth so\u00adft \u2028x\u2029 \u3000 wide\u00a0space",
    "word" * 150,
    "unbroken" + "x" * 800 + ",7,",
    "http://example.org/a_b?c=1,2&d=%20 user@example.org C:\\dir\\file.txt",
    "def f(self, *args): return {'a': [1, 2,], \"b\": 3.0}  # 100,000 == 1e5",
    "the  quick   brown\tfox\njumps over the lazy dog, and then, in 1984, it sleeps.",
]
OPTIONS = {"": {}, "keep_accents": {"keep_accents": True}, "cased": {"keep_accents": True, "do_lower_case": False}}


def main(target: Path, released: Path) -> None:
    """Train the small vocabulary, and write the ids of both vocabularies."""
    from transformers import AlbertTokenizer

    from albert_jax.data.sentencepiece_tokenizer import train_vocabulary

    numbers = ["in 2010, it cost $5,000, in 1999, it cost $1,500,000, (a12,b12,) x7,y7, 0,00,000, 42, 42,"] * 40
    prose = [line for module in (textwrap, random) for line in inspect.getsource(module).splitlines()]
    train_vocabulary(prose + numbers, target / "spiece.model", 500)
    ids = {
        vocabulary: {
            name: [AlbertTokenizer(str(path), **options).encode(text, add_special_tokens=False) for text in TEXTS]
            for name, options in OPTIONS.items()
        }
        for vocabulary, path in (("small", target / "spiece.model"), ("released", released))
    }
    lines = [
        {"text": text} | {v: {name: rows[number] for name, rows in by_option.items()} for v, by_option in ids.items()}
        for number, text in enumerate(TEXTS)
    ]
    (target / "ids.json").write_text("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
