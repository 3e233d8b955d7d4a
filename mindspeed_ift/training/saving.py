"""How a checkpoint gets to the disk: written aside by all ranks, then made visible by one, at once or in the background."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mindspeed_ift.checkpoint import index, megatron
from mindspeed_ift.checkpoint.disk import free_bytes, require_space
from mindspeed_ift.config.errors import RunError
from mindspeed_ift.parallel.groups import Groups


class Written(NamedTuple):
    """What one rank has written: for the manifest, and for the index of a ``torch_dist`` folder."""

    files: megatron.Files
    stored: list[index.Stored]


Job = Callable[[Path], Written]
"""Writes one rank's files into a staging folder, without a word to the other ranks."""


@dataclass
class _Pending:
    """A checkpoint that is being written."""

    written: Future[Written]
    manifest: dict[str, Any]
    after: Callable[[], None]


class Saver:
    """Writes the checkpoints of a run, one at a time.

    Every rank calls the same methods at the same step. Only `finish` makes a checkpoint visible: what ends before leaves
    the former one as the newest.

    Args:
        directory: the run's folder.
        groups: who writes, and waits for whom.
        background: `start` returns once this rank's thread has the job; `poll` or `finish` end it.
    """

    def __init__(self, directory: Path, groups: Groups, background: bool = False) -> None:
        self.directory, self.groups, self.background = Path(directory), groups, background
        self._pending: _Pending | None = None
        self._iteration = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None

    def begin(self, iteration: int, needed: int) -> None:
        """Finish what is still being written, and make the staging folder of another checkpoint.

        Raises:
            RunError: on every rank, if ``needed`` bytes have no room.
        """
        self.finish()
        require_space(self.directory, needed, "--save", free=self.groups.gather(free_bytes(self.directory))[0])
        self._iteration = iteration
        if self.groups.rank == 0:
            megatron.begin_save(self.directory, iteration)
        self.groups.barrier()

    def start(self, job: Job, manifest: dict[str, Any], after: Callable[[], None]) -> None:
        """Run this rank's job; without background, to the end.

        Args:
            job: writes.
            manifest: what is said of the checkpoint.
            after: called once it is there.

        Raises:
            RunError: as `finish`.
        """
        staging = megatron.staging_folder(self.directory, self._iteration)
        if self._thread is not None:
            self._pending = _Pending(self._thread.submit(job, staging), manifest, after)
            return
        written: Future[Written] = Future()
        try:
            written.set_result(job(staging))
        except Exception as error:  # noqa: BLE001 - told to all ranks by `finish`
            written.set_exception(error)
        self._pending = _Pending(written, manifest, after)
        self.finish()

    def poll(self) -> None:
        """Between steps: finish what all ranks have written.

        Raises:
            RunError: as `finish`.
        """
        if self._pending is not None and all(self.groups.gather(self._pending.written.done())):
            self.finish()

    def finish(self) -> None:
        """Wait for what is being written, if anything is, and make it the newest checkpoint.

        Raises:
            RunError: on every rank, if one could not write; nothing is left behind.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        staging, iteration = megatron.staging_folder(self.directory, self._iteration), self._iteration
        failure, own = None, Written({}, [])
        try:
            own = pending.written.result()
        except RunError as error:
            failure = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it was, the others must not wait for it
            failure = f"the checkpoint of step {iteration} could not be written ({type(error).__name__}: {error})"
        # All have written, or all stop: a peer that waits for one that failed would wait for the time-out.
        told = self.groups.gather((failure, own))
        if self.groups.rank == 0 and not any(one for one, _ in told):
            try:
                self._commit(staging, iteration, pending.manifest, [own for _, own in told])
            except (OSError, RunError) as error:
                failure = str(error)
        failures = [one for one in self.groups.gather(failure) if one]
        if failures:
            if self.groups.rank == 0:
                megatron.abandon_save(staging)
            raise RunError(failures[0])
        pending.after()

    def _commit(self, staging: Path, iteration: int, manifest: dict[str, Any], told: list[Written]) -> None:
        files = dict(ChainMap(*(one.files for one in told)))
        if manifest["format"] == index.FORMAT:
            files |= index.write_index(staging, (entry for one in told for entry in one.stored), iteration)
        megatron.commit(staging, self.directory, iteration, manifest, files)
