"""Command ``merge-datasets``: several indexed datasets -> one."""

from __future__ import annotations

from mindspeed_ift.config.describe import describe
from mindspeed_ift.config.flags import parse_with_origins
from mindspeed_ift.config.merge import MergeConfig


def main(argv: list[str]) -> int:
    """Join the datasets and say what was written."""
    parsed = parse_with_origins(
        MergeConfig, argv, program="merge_datasets.py", description="Join indexed datasets into one."
    )
    if parsed.config.dry_run:
        parsed.config.check()
        print(describe(parsed))
        return 0
    return merge_and_tell(parsed.config.input, parsed.config.output_prefix, parsed.config.merge_group_keys)


def merge_and_tell(source: tuple[str, ...], output_prefix: str, keys: tuple[str, ...]) -> int:
    """Join, print what was joined, and return the exit code; see `MergeConfig`."""
    from mindspeed_ift.data.merging import merge

    summary = merge(MergeConfig(source, output_prefix, keys))
    for prefix in summary.prefixes:
        print(f"+ {prefix}")
    for notice in summary.notices:
        print(f"notice: {notice}")
    print(f"{len(summary.prefixes)} datasets joined in {summary.seconds:.1f} s")
    for name, file in summary.manifest["files"].items():
        print(f"  {name}  {file['bytes']:,} bytes")
    return 0
