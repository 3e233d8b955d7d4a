"""Reading with caches gives the logits of reading the whole row each time."""

from __future__ import annotations

import torch

from mindspeed_ift.inference.decoder import Decoder
from mindspeed_ift.model.build import Qwen3Model
from tests.tiny_model import tiny_model, world_of_one
from tests.tolerances import LOGITS

ROWS = [[3, 4, 5, 6], [7, 8], [9, 1, 2]]
THEN = [[11, 12, 13], [14, 15, 16], [17, 18, 19]]


def _whole(model: Qwen3Model, row: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([row]), torch.arange(len(row))[None], None)[0, -1, : model.architecture.vocab_size]


def test_rows_of_any_lengths_as_if_each_were_alone() -> None:
    """Prompts padded to the longest, then three tokens each; after the first, the row in the middle leaves."""
    with world_of_one() as groups:
        model = tiny_model(groups).eval()
        own = [layer.self_attention.core_attention.attend for layer in model.decoder.layers]
        decoder, rows, left = Decoder(model, groups), [list(row) for row in ROWS], [0, 1, 2]
        logits = decoder.start(ROWS, 4)
        for turn in range(4):
            assert logits is not None
            expected = torch.stack([_whole(model, rows[row]) for row in left])
            torch.testing.assert_close(logits, expected, **LOGITS)
            if turn == 1:
                left = [0, 2]
                decoder.keep([0, 2])
            if turn < 3:
                for row in left:
                    rows[row].append(THEN[row][turn])
                logits = decoder.step([rows[row][-1] for row in left])
        again = decoder.start([[5, 6]], 2)  # nothing is left of the rows before
        torch.testing.assert_close(again[0], _whole(model, [5, 6]), **LOGITS)
        assert own == [layer.self_attention.core_attention.attend for layer in model.decoder.layers]


def test_only_the_asked_position_meets_the_vocabulary() -> None:
    with world_of_one() as groups:
        model = tiny_model(groups).eval()
        shapes = []
        model.output_layer.register_forward_hook(lambda _, given, __: shapes.append(tuple(given[0].shape)))
        Decoder(model, groups).start(ROWS, 1)
    assert shapes == [(1, 3, model.config.hidden_size)]
