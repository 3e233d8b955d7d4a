"""``mindspeed-ift show-data`` / ``tools/show_data.py``: look at a dataset, in the terminal or on a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.show import ShowConfig
from mindspeed_ift.config.words import first_word_of

if TYPE_CHECKING:
    from mindspeed_ift.data.show.opening import ShownDataset


def main(argv: list[str]) -> int:
    """Print documents as coloured tokens, or write the page and say where."""
    argv = first_word_of(argv, "--data-path")
    config = parse(ShowConfig, argv, program="show_data.py", description="Look at a dataset: show-data PREFIX [FLAGS]")
    config.check()
    from mindspeed_ift.data.show.opening import ShownDataset
    from mindspeed_ift.data.show.page import write_page

    dataset = ShownDataset(config.data_path, config.tokenizer_name_or_path, config.pack_index)
    documents = config.chosen(len(dataset))
    if config.html is not None:
        found = write_page(dataset, documents, config.html)
        print(f"{len(found.row):,} documents, {len(found.length):,} samples -> {config.html}")
        return 0
    _print(dataset, documents)
    return 0


def _print(dataset: ShownDataset, documents: list[int]) -> None:
    from mindspeed_ift.cli.console import Console
    from mindspeed_ift.data.show.terminal import legend, lines

    console = Console(soft_wrap=True)
    coloured = console.color_system is not None and not console.no_color
    console.print(legend(coloured))
    if dataset.notice:
        console.print(f"notice: {dataset.notice}", markup=False)
    for number in documents:
        for line in lines(dataset, dataset[number], coloured):
            console.print(line)
