"""Write train.jsonl, validation.jsonl and test.jsonl of the support-desk corpus anew, byte for byte.

    python data/support-desk/generate.py

A message is composed of clauses (templates.toml) and names (names.toml). Each template and each name belongs
to one split, by its place in its list. The intent is what the writer asks for now; what was asked before, is
settled or is refused does not count. The sentiment is what the writer says to feel now, drawn without regard
to the intent.
"""

import argparse
import json
import random
import re
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZES = {"train": 3600, "validation": 600, "test": 600}
PLACES = ("train", "train", "train", "validation", "test")
"""The split of the item at place i of a list is PLACES[i % 5]."""
SENTIMENTS = {"negative": 0.38, "neutral": 0.34, "positive": 0.28}
NEAR = {
    "account_access": ("change_details", "defect", "how_to"),
    "billing_question": ("refund", "change_details", "delivery"),
    "refund": ("billing_question", "cancellation", "delivery", "defect"),
    "cancellation": ("refund", "billing_question", "change_details"),
    "delivery": ("refund", "cancellation", "change_details"),
    "defect": ("how_to", "refund", "account_access", "feature_request"),
    "how_to": ("defect", "feature_request", "account_access"),
    "change_details": ("account_access", "billing_question", "delivery"),
    "feature_request": ("how_to", "defect", "billing_question"),
    "escalation": ("refund", "defect", "billing_question", "delivery"),
}
"""Topics that a message of this intent likes to mention as well."""
MODES = {"plain": 0.50, "joint": 0.18, "dismissed": 0.11, "settled": 0.11, "implicit": 0.10}
STYLES = {"clean": 0.40, "lower": 0.14, "bare": 0.12, "typos": 0.22, "chat": 0.09, "shout": 0.03}
FILLERS = {
    "day": [
        "Monday",
        "Tuesday",
        "Wednesday",
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "the 3rd",
        "the 14th",
        "the 21st",
        "1 March",
        "5 May",
        "30 June",
        "8 October",
    ],
    "amount": [
        "9.90",
        "12 euros",
        "19.99",
        "24 dollars",
        "35 euros",
        "40 pounds",
        "58.50",
        "75 dollars",
        "99 euros",
        "120 pounds",
        "149.00",
        "310 dollars",
    ],
}
CHAT = {"please": "pls", "you": "u", "thanks": "thx", "your": "ur", "are": "r", "and": "n", "could": "cd"}
WORD = re.compile(r"\w+(?:[-'.]\w+)*|[^\w\s]")


def of_split(items: list, split: str) -> list:
    """Return the items of a list that belong to this split alone."""
    return [item for i, item in enumerate(items) if PLACES[i % len(PLACES)] == split]


def pools(split: str) -> tuple[dict, dict]:
    """Return the templates and the names of one split, by kind; words and fillers, the kinds with "/", are
    shared."""
    templates = tomllib.loads((HERE / "templates.toml").read_text(encoding="utf-8"))
    names = tomllib.loads((HERE / "names.toml").read_text(encoding="utf-8"))
    kinds = {kind: of_split(items, split) for kind, items in templates.items() if isinstance(items, list)}
    kinds |= {f"feeling.{name}": of_split(templates["feeling"][name], split) for name in SENTIMENTS}
    kinds |= {f"feeling/{name}": words for name, words in templates["feeling"]["words"].items()}
    for intent, parts in templates["intent"].items():
        kinds |= {f"{kind}.{intent}": of_split(parts[kind], split) for kind in ("acts", "problems")}
        kinds |= {f"topics/{intent}": parts["topics"]}
        kinds |= {f"{intent}/{name}": words for name, words in parts["words"].items()}
    return kinds, {kind: of_split(items, split) for kind, items in names.items()}


def weighted(rng: random.Random, weights: dict):
    """Draw a key by weight, with `rng.random` alone: the same on every Python."""
    point = rng.random() * sum(weights.values())
    for key, weight in weights.items():
        point -= weight
        if point < 0:
            return key
    return key


class Writer:
    """Compose messages of one split; `used` collects the templates that the present message took."""

    def __init__(self, split: str):
        self.split = split
        self.templates, self.names = pools(split)
        self.intents = [kind.partition(".")[2] for kind in self.templates if kind.startswith("acts.")]

    def pick(self, items: list):
        return items[int(self.rng.random() * len(items))]

    def name(self, kind: str) -> list[tuple[str, str]]:
        """Draw an entity as (string, tag) segments; a title before a surname is outside the entity."""
        rng, names = self.rng, self.names
        first, last, org = self.pick(names["first"]), self.pick(names["last"]), self.pick(names["org"])
        loc, product = self.pick(names["loc"]), self.pick(names["product"])
        if kind == "PER":
            if rng.random() < 0.12:
                return [(self.pick(["Ms ", "Mr ", "Dr "]), "O"), (last, "PER")]
            return [
                (
                    self.pick([first, first, f"{first} {last}", f"{first} {last}", f"{first[0]}. {last}"]),
                    "PER",
                )
            ]
        if kind == "ORG":
            forms = [
                org,
                org,
                f"{org} {self.pick(['Group', 'Ltd', 'Bank', 'Clinic', 'Foods', 'Media'])}",
                f"{org} & {last}",
                f"{last} and Sons",
                f"{loc} {self.pick(['Library', 'College', 'Council', 'Hospital'])}",
            ]
        elif kind == "LOC":
            forms = [
                loc,
                loc,
                loc,
                f"North {loc}",
                f"{loc} Street",
                f"{loc} {self.pick(['Park', 'Road', 'Harbour'])}",
            ]
        else:
            number = int(2 + rng.random() * 8)
            forms = [
                product,
                product,
                f"{product} {number}",
                f"{product}-{number * 10}",
                f"{product} {self.pick(['Pro', 'Mini', 'Plus', 'Cloud', 'Desk', 'Home'])}",
            ]
        return [(self.pick(forms), kind)]

    def clause(self, kind: str, **intents: str) -> list[tuple[str, str]]:
        """Draw a template and fill it; `act` and `other` name the intents that {act} and {other} speak of."""
        template = self.pick(self.templates[kind])
        heading, _, intent = kind.partition(".")  # "acts.refund", "feeling.positive", "frame"
        if "/" not in kind:
            self.used.add((kind, template))
        segments: list[tuple[str, str]] = []
        template = re.sub(r"\(([^()]*\|[^()]*)\)", lambda choice: self.pick(choice[1].split("|")), template)
        for part in re.split(r"(\{\w+\})", template):
            slot = part[1:-1] if part.startswith("{") else None
            if slot is None:
                segments.append((part, "O"))
            elif slot in ("PER", "ORG", "LOC", "PRODUCT"):
                segments += self.name(slot)
            elif slot in ("act", "other"):
                segments += self.clause(f"acts.{intents[slot]}", **intents)
            elif slot == "problem":
                segments += self.clause(f"problems.{intents['other']}", **intents)
            elif slot == "topic":
                segments += self.clause(f"topics/{self.pick(self.intents)}", **intents)
            elif slot == "number":
                segments.append((str(int(100 + self.rng.random() * 9900)), "O"))
            elif slot in FILLERS:
                segments.append((self.pick(FILLERS[slot]), "O"))
            else:
                segments += self.clause(f"{'feeling' if heading == 'feeling' else intent}/{slot}", **intents)
        return segments

    def sentence(self, kind: str, **intents: str) -> list[tuple[str, str]]:
        """A clause that begins with a capital and ends with a mark."""
        segments = [segment for segment in self.clause(kind, **intents) if segment[0]]
        text, tag = segments[0]
        segments[0] = (text[0].upper() + text[1:], tag)
        if kind.startswith("problems."):
            segments.append((".", "O"))
        return segments

    def message(self, intent: str, sentiment: str) -> list[tuple[str, str]]:
        """Compose one message: opening, context, what is the matter and what is asked, feeling, closing."""
        rng = self.rng
        near = rng.random() < 0.7
        other = self.pick(NEAR[intent] if near else [name for name in self.intents if name != intent])
        both = {"act": intent, "other": other}
        mode = weighted(rng, MODES)
        # A near topic's problem may stand beside a request: the request decides. Without a request the
        # problem does.
        problem = f"problems.{other if mode != 'implicit' and rng.random() < 0.3 else intent}"
        core = {
            "plain": lambda: [self.sentence(problem, **both), self.sentence("frame", **both)],
            "joint": lambda: [self.sentence("joint", **both)],
            "dismissed": lambda: [self.sentence("dismissal", **both), self.sentence("frame", **both)],
            "settled": lambda: [self.sentence("settled", **both), self.sentence("frame", **both)],
            "implicit": lambda: [
                self.sentence(problem, **both),
                self.sentence(self.pick(["settled", "dismissal"]), **both),
            ],
        }[mode]()
        if rng.random() < 0.5:
            core.reverse()
        if mode == "joint" and rng.random() < 0.3:
            core.insert(0, self.sentence(problem, **both))
        if rng.random() < 0.45:
            core.insert(0, self.sentence("context"))
        for _ in range(
            int(rng.random() * 1.5 + (sentiment != "neutral"))
        ):  # one or two, or none or one if neutral
            core.insert(int(rng.random() * (len(core) + 1)), self.sentence(f"feeling.{sentiment}"))
        if rng.random() < 0.6:
            core.insert(0, self.sentence("opening"))
        if rng.random() < 0.55:
            core.append(self.sentence("closing"))
        return [segment for sentence in core for segment in (*sentence, (" ", "O"))][:-1]

    def typo(self, word: str) -> str:
        """Swap, drop or double one inner letter of a word of four letters or more."""
        if len(word) < 4 or not word.isalpha() or self.rng.random() > 0.14:
            return word
        i = 1 + int(self.rng.random() * (len(word) - 2))
        head, letter, tail = word[:i], word[i], word[i + 1 :]
        return self.pick([head + tail[0] + letter + tail[1:], head + tail, head + letter + letter + tail])

    def styled(self, segments: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Write the message as a hasty, careless or loud person would; names lose their capitals, never a
        letter."""
        style = weighted(self.rng, STYLES)
        done = []
        for text, tag in segments:
            if style in ("bare", "chat") and tag == "O":
                text = re.sub(r"(?<!\d)[.,;:!?](?!\d)", "", text)
            if style in ("typos", "chat") and tag == "O":
                text = re.sub(r"[^\W\d_]+", lambda word: self.typo(word[0]), text)
            if style == "chat" and tag == "O":
                text = re.sub(r"[^\W\d_]+", lambda word: CHAT.get(word[0].lower(), word[0]), text)
            if style in ("lower", "chat") or (style == "bare" and self.rng.random() < 0.3):
                text = text.lower()
            done.append((text.upper() if style == "shout" else text, tag))
        return done

    def row(self, seed: int, number: int) -> tuple[dict, set]:
        """Compose message `number` of this split, and say which templates it took."""
        attempt = 0
        while True:
            self.rng = random.Random(f"{seed}/{self.split}/{number}/{attempt}")
            self.used: set[tuple[str, str]] = set()
            intent = self.intents[number % len(self.intents)]
            sentiment = weighted(self.rng, SENTIMENTS)
            words, tags, text = tagged(self.styled(self.message(intent, sentiment)))
            if 10 <= len(text.split()) <= 40:
                return {
                    "text": text,
                    "intent": intent,
                    "sentiment": sentiment,
                    "words": words,
                    "tags": tags,
                }, self.used
            attempt += 1


def tagged(segments: list[tuple[str, str]]) -> tuple[list[str], list[str], str]:
    """Cut segments into words and marks, each with its BIO tag, and join them to one text."""
    words, tags = [], []
    for text, tag in segments:
        found = WORD.findall(text)
        words += found
        tags += [tag if tag == "O" else f"{'I' if i else 'B'}-{tag}" for i in range(len(found))]
    return words, tags, re.sub(r"\s+", " ", "".join(text for text, _ in segments)).strip()


def corpus(seed: int = 0) -> dict[str, list[tuple[dict, set]]]:
    """Return every split as (row, templates that it took); a text that occurred before is left out and
    replaced."""
    seen, splits = set(), {}
    for split, size in SIZES.items():
        writer, rows, number = Writer(split), [], 0
        while len(rows) < size:
            row, used = writer.row(seed, number)
            number += 1
            if row["text"].lower() not in seen:
                seen.add(row["text"].lower())
                rows.append((row, used))
        random.Random(f"{seed}/{split}").shuffle(rows)
        splits[split] = rows
    return splits


def write(folder: Path, seed: int = 0) -> None:
    """Write the three files into a folder."""
    for split, rows in corpus(seed).items():
        lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row, _ in rows)
        (folder / f"{split}.jsonl").write_bytes("".join(lines).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed gives another corpus of the same kind"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    arguments = parser.parse_args()
    write(arguments.out, arguments.seed)
