"""Documents in, coloured lines for a terminal out: learnt, not learnt, special, pads, and where samples begin."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from mindspeed_ift.data.show.opening import Document, Part, ShownDataset
from mindspeed_ift.data.show.origins import told

LEARNT, NOT_LEARNT, BORDER, PADS = "green", "default", "bold cyan", "bright_black"
_OPEN, _CLOSE = "⟦", "⟧"


def legend(coloured: bool) -> Text:
    """What the colours, or without them the brackets, mean."""
    if not coloured:
        return Text(f"{_OPEN}learnt{_CLOSE} not learnt")
    return Text.assemble(("learnt", LEARNT), " ", ("not learnt", NOT_LEARNT), "  (every other token underlined)")


def lines(dataset: ShownDataset, document: Document, coloured: bool) -> Iterator[Text]:
    """One document: a heading, and for each of its samples a heading and its tokens.

    Args:
        dataset: It is from.
        document: To be shown.
        coloured: Colours tell what is learnt, and lines under every other token where tokens end; brackets otherwise.
    """
    parts = list(document.parts())
    samples = max((part.number for part in parts), default=0)
    tokens = f"{len(document.input_ids):,} tokens, {int(document.learnt.sum()):,} learnt"
    origins = dataset.origins(document.number)
    apart = len(origins) == samples > 1
    heading = f"document {document.number}: {samples} sample{'s' * (samples != 1)}, {tokens}"
    yield Text(heading if apart else heading + _from(told(origins, 1, samples)), BORDER)
    for part in parts:
        if not part.number:
            yield Text(f"[{len(part.input_ids):,} pads]", PADS)
            continue
        if samples > 1:
            learnt = int(part.learnt.sum())
            heading = f"-- {dataset.name(part)}: {len(part.input_ids):,} tokens, {learnt:,} learnt"
            yield Text(heading + _from(told(origins, part.number, samples)) if apart else heading, BORDER)
        yield _coloured(dataset, part) if coloured else _bracketed(dataset, part)


def _from(origin: str) -> str:
    return f", from {visible(origin)}" if origin else ""


def visible(text: str) -> str:
    """The text with a mark for each line break, and control characters as pictures: nobody's text drives a terminal."""
    return "".join(_VISIBLE.get(character, character) for character in text)


# C0, DEL, C1, and the marks that turn the direction of what follows.
_VISIBLE = {chr(code): chr(0x2400 + code) for code in range(32)} | {"\n": "↵\n", "\t": "→\t", "\x7f": "␡"}
_VISIBLE |= {
    chr(code): f"<U+{code:04X}>" for code in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def _coloured(dataset: ShownDataset, part: Part) -> Text:
    shown = Text()
    for number, (piece, learnt) in enumerate(zip(dataset.pieces(part.input_ids), part.learnt)):
        shown.append(visible(piece), f"{LEARNT if learnt else NOT_LEARNT}{' underline' if number % 2 else ''}")
    return shown


def _bracketed(dataset: ShownDataset, part: Part) -> Text:
    shown, before = Text(), False
    for piece, learnt in zip(dataset.pieces(part.input_ids), part.learnt):
        if learnt != before:
            shown.append(_OPEN if learnt else _CLOSE)
        shown.append(visible(piece))
        before = learnt
    if before:
        shown.append(_CLOSE)
    return shown
