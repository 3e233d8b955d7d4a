"""The account adds up in the order of the records."""

from __future__ import annotations

from mindspeed_ift.data.ledger import Ledger
from mindspeed_ift.data.records import Origin


def test_merge_keeps_the_first_origins_of_each_reason() -> None:
    total = Ledger()
    for start in (1, 3, 5):
        part = Ledger(read=2)
        part.drop(Origin("a.json", start), "bad")
        part.keep(Origin("a.json", start + 1), ["cut"])
        total.merge(part)
    assert (total.read, total.kept) == (6, 3)
    assert total.as_dict()["dropped"] == {"bad": {"count": 3, "first": ["a.json:1", "a.json:3", "a.json:5"]}}
    assert total.rows()[2:] == [
        ("  kept, but: cut", 3, "a.json:2, a.json:4, a.json:6"),
        ("dropped: bad", 3, "a.json:1, a.json:3, a.json:5"),
    ]
    total.drop(Origin("a.json", 7), "bad")
    assert total.rows()[-1] == ("dropped: bad", 4, "a.json:1, a.json:3, a.json:5, ...")
