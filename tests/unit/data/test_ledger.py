"""The account adds up in the order of the records, and has a row for each."""

from __future__ import annotations

import json

from mindspeed_ift.data.ledger import Entry, Ledger, Outcome
from mindspeed_ift.data.records import Origin


def test_merge_keeps_the_first_origins_of_each_reason() -> None:
    total = Ledger()
    for start in (1, 3, 5):
        part = Ledger(read=2)
        part.drop(Origin("a.json", start), "bad")
        part.keep(Origin("a.json", start + 1), ["cut"])
        total.merge(part)
    assert (total.read, total.kept) == (6, 3)
    assert total.as_dict()["dropped"] == {
        "bad": {"count": 3, "first": ["a.json:1", "a.json:3", "a.json:5"], "cut_tokens": 0}
    }
    assert total.rows()[2:] == [
        ("  kept, but: cut", 3, "a.json:2, a.json:4, a.json:6"),
        ("dropped: bad", 3, "a.json:1, a.json:3, a.json:5"),
    ]
    total.drop(Origin("a.json", 7), "bad")
    assert total.rows()[-1] == ("dropped: bad", 4, "a.json:1, a.json:3, a.json:5, ...")


def test_every_record_has_a_row() -> None:
    ledger = Ledger(read=5)
    ledger.keep(Origin("a", 1), tokens=9, learnt_tokens=4)
    ledger.keep(Origin("a", 2), ["odd"], tokens=2)
    ledger.keep(Origin("a", 3), ["cut", "odd"], tokens=5, learnt_tokens=1, cut_tokens=3)
    ledger.keep(Origin("a", 4), ["long"], samples=2, tokens=7)
    ledger.drop(Origin("a", 5), "too long", malformed=False, cut_tokens=11)
    assert ledger.entries == [
        Entry("a", 1, Outcome.KEPT, "", 1, 9, 4, 0),
        Entry("a", 2, Outcome.KEPT, "odd", 1, 2, 0, 0),
        Entry("a", 3, Outcome.CUT, "cut; odd", 1, 5, 1, 3),
        Entry("a", 4, Outcome.SPLIT, "long", 2, 7, 0, 0),
        Entry("a", 5, Outcome.DROPPED, "too long", 0, 0, 0, 11),
    ]
    assert (ledger.kept, ledger.tokens, ledger.learnt_tokens, ledger.malformed) == (5, 23, 5, 0)
    assert ledger.rows()[:2] == [("read", 5, ""), ("kept, as 5 samples", 4, "")]
    assert ("  kept, but: cut, 3 tokens lost", 1, "a:3") in ledger.rows()
    assert ("dropped: too long, 11 tokens lost", 1, "a:5") in ledger.rows()


def test_a_total_can_be_gone_on_with() -> None:
    ledger = Ledger(read=2, columns={"b", "a"}, filled={"a"})
    ledger.keep(Origin("a", 1), ["cut"], tokens=3, learnt_tokens=2, cut_tokens=1)
    ledger.drop(Origin("a", 2), "bad")
    again = Ledger.from_state(json.loads(json.dumps(ledger.state())))
    ledger.entries.clear()
    assert again == ledger


def test_reasons_are_the_most_frequent() -> None:
    ledger = Ledger()
    for number in range(7):
        ledger.drop(Origin("a", number), f"reason {min(number, 5)}")
    assert ledger.reasons().startswith("2 reason 5 (first a:5), 1 reason 0 (first a:0), ")
    assert ledger.reasons().endswith("1 reason 3 (first a:3), ...")
