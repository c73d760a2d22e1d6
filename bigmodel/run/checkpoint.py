"""Checkpoints by orbax: asynchronous, atomic, restorable onto any mesh."""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bigmodel import tree
from bigmodel.errors import UsageError, note
from bigmodel.files import full_disk, is_whole, sealed
from bigmodel.run import claims, objects

# orbax reports each file at INFO and WARNING, and at ERROR the traceback of what it raises anyway.
for name in ("absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


NONE_WHOLE = "no earlier checkpoint is whole: remove the run's folder to train it again"


def _absolute(folder: str) -> str:
    return folder if "://" in folder else str(epath.Path(folder).resolve())


class Checkpoints:
    """Steps under one folder. A save is committed by a rename; what a kill leaves behind is removed.

    In an object store a save is committed by the run's claim: one that the claim doesn't list doesn't count. Each
    holder writes to a folder of its own, named by its token. What goes to s3:// is written to this disk first.
    """

    def __init__(self, folder: str, keep: int = 2, token: int = 0, claim: Any = None):
        """Args:
        token: of the run's claim, in every process; 0 on a disk.
        claim: in the process that holds it.
        """
        self.folder, self.keep, self.token, self.claim = _absolute(folder), keep, token, claim
        self.unlisted: int | None = None  # a step that is being written, and not yet in the claim
        self.staged: tempfile.TemporaryDirectory[str] | None = None  # removed with this object, however a run ends
        if token and folder.startswith("s3://"):
            if jax.process_count() > 1:
                raise UsageError(f"{folder}: several processes save to a disk that all see, or to gs://, not to s3://")
            self.staged = tempfile.TemporaryDirectory(prefix="bigmodel-checkpoints-")
        _silence_closed_loops()
        options = ocp.CheckpointManagerOptions(
            # One more where a claim lists them: a step that it lists must outlive the save of the next.
            max_to_keep=keep + bool(token),
            create=True,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        with full_disk(self.folder):
            own = self.staged.name if self.staged else f"{self.folder}/{token:06d}" if token else self.folder
            self.manager = ocp.CheckpointManager(own, options=options)

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def poll(self) -> None:
        """Lists a save that has been written meanwhile; called now and then."""
        if self.unlisted is not None and not self.manager.is_saving_in_progress():
            self._list()

    def _list(self) -> None:
        """Waits for a save that is being written, and lists it in the claim."""
        with full_disk(self.folder):
            self.manager.wait_until_finished()
        step, self.unlisted = self.unlisted, None
        if step is None or not self.claim:
            return
        home = objects.opened(self.folder)
        if self.staged:
            home.put(Path(self.staged.name) / str(step), f"{self.token:06d}/{step}")
        before = set(self.claim.saved)
        self.claim.publish(step, self.keep)
        tokens = {token for token, _ in self.claim.saved}
        for token, old in before - set(self.claim.saved):
            if token not in tokens:
                home.remove(f"{token:06d}")  # with what an earlier holder left unfinished
            elif token != self.token or self.staged:  # this one's in gs:// are removed by its manager
                home.remove(f"{token:06d}/{old}")

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts writing; returns once the arrays are copied. Errors of an earlier save surface here."""
        # The next step is given these buffers to overwrite, and on a CPU the writer would share them.
        state = jax.tree.map(jnp.copy, state)
        meta = sealed({**meta, "arrays": _sums(state)})
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        if self.token:
            self._list()
        with full_disk(self.folder):
            self.manager.save(step, args=args)
        if self.token:
            self.unlisted = step

    def restore_latest(
        self, shapes: Any, shardings: Any, lost: Callable[[dict[str, Any]], str] = lambda _: ""
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, meta) of the newest step that is whole, with these shardings; None where there is no step.

        Newer steps that are damaged are renamed to `damaged-STEP`, and that is noted.

        Args:
          lost: metadata -> what else a run lacks to go on from that step, in words; "" for nothing.

        Raises:
          UsageError: no step can be restored; or the newest is another model's, or can't be read.
        """
        if self.token:
            return self._restore_listed(shapes, shardings, lost)
        steps = sorted(self.manager.all_steps(), reverse=True)
        damaged: dict[int, str] = {}
        for i, step in enumerate(steps):
            try:
                found = self._restore(step, shapes, shardings)
                _check(lost(found[1]))
            except UsageError as e:
                if i + 1 == len(steps) and isinstance(e, _Damaged):
                    raise UsageError(f"{e}; {NONE_WHOLE}") from e
                if i + 1 == len(steps) or jax.process_count() > 1:  # processes would have to agree
                    raise
                own, older = (_difference(self.manager, s, shapes) for s in (step, steps[i + 1]))
                if not isinstance(e, _Damaged) and not (own and not older):  # of another model, all steps differ
                    raise
                damaged[step] = f"{e}; going on from the one of step {steps[i + 1]}"
                continue
            for other, why in damaged.items():
                note(why)
                epath.Path(self.folder, str(other)).rename(epath.Path(self.folder, f"damaged-{other}"))
            if damaged:
                self.manager.reload()
            return step, *found
        return None

    def _restore_listed(
        self, shapes: Any, shardings: Any, lost: Callable[[dict[str, Any]], str]
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """`restore_latest` of an object store. All processes read the same list: only this one's saves change it."""
        listed = claims.saved(self.folder.rpartition("/")[0])
        for i, (token, step) in enumerate(reversed(listed)):
            with _fetched(self.folder, token, step) as folder:
                manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True))
                state = ocp.args.StandardRestore(_like(shapes, shardings))
                try:
                    found = _restore(manager, f"{self.folder}/{token:06d}", step, shapes, state)
                    _check(lost(found[1]))
                    return step, *found
                except _Damaged as e:
                    if i + 1 == len(listed):
                        raise UsageError(f"{e}; {NONE_WHOLE}") from e
                    if jax.process_count() > 1:
                        raise
                    note(f"{e}; going on from an earlier one")
        return None

    def restore(self, step: int, shapes: Any, shardings: Any) -> Any:
        """The state of `step` with these shardings, whatever mesh wrote it."""
        return self._restore(step, shapes, shardings)[0]

    def _restore(self, step: int, shapes: Any, shardings: Any) -> tuple[Any, dict[str, Any]]:
        state = ocp.args.StandardRestore(_like(shapes, shardings))
        return _restore(self.manager, self.folder, step, shapes, state)

    def wait(self) -> None:
        self._list()

    def close(self) -> None:
        self._list()
        with full_disk(self.folder):
            self.manager.close()
        if self.staged:
            self.staged.cleanup()


@contextlib.contextmanager
def _fetched(folder: str, token: int, step: int) -> Iterator[str]:
    """The folder from which orbax reads a step that a claim lists: in place, or of s3:// a copy on this disk."""
    if not folder.startswith("s3://"):
        yield f"{folder}/{token:06d}"
        return
    with tempfile.TemporaryDirectory(prefix="bigmodel-checkpoints-") as local:
        objects.opened(folder).get(f"{token:06d}/{step}", Path(local) / str(step))
        yield local


def _like(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _restore(manager: Any, folder: str, step: int, shapes: Any, state: Any, part: bool = False) -> tuple[Any, Any]:
    """(state, meta) of a step. `part`: the checkpoint may have more than `shapes`."""
    _silence_closed_loops()
    try:
        out = manager.restore(step, args=ocp.args.Composite(state=state, meta=ocp.args.JsonRestore()))
        _verify(out["state"], out["meta"])
    except Exception as e:
        raise _error(f"{folder}/{step}", _difference(manager, step, shapes, part), e) from e
    return out["state"], out["meta"]


def _sums(state: Any) -> dict[str, int]:
    """CRC-32 of each array by path, as the checkpoint's format detects a cut file, but no changed bit.

    Empty where other processes hold a part of the state.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    if not all(x.is_fully_addressable for _, x in leaves):
        return {}
    return {tree.path_of(p): zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data) for p, x in leaves}


def _verify(state: Any, meta: dict[str, Any]) -> None:
    old = isinstance(meta["crc32"], dict)  # earlier versions kept the arrays' sums there, and no seal
    if not old and not is_whole(meta):
        raise ValueError("its metadata is damaged: the checksum differs")
    saved = meta["crc32"] if old else meta["arrays"]
    for path, crc in _sums(state).items() if saved else ():
        if crc != saved[path]:
            raise ValueError(f"{path} is damaged: its checksum is {crc}, {saved[path]} was saved")


class _Silenced:
    """A hook of `sys` that says nothing about what tensorstore reports after a failed read or write.

    By then its event loop has been closed. Reads under way report through sys.unraisablehook, writes through
    sys.excepthook.
    """

    def __init__(self, hook: Any):
        self.hook = hook

    def __call__(self, *args: Any) -> None:
        if "Event loop is closed" not in str(args) and "_read_array" not in str(args):
            self.hook(*args)


def _silence_closed_loops() -> None:
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)  # what hadn't started
    for name in ("unraisablehook", "excepthook"):
        if not isinstance(getattr(sys, name), _Silenced):
            setattr(sys, name, _Silenced(getattr(sys, name)))


class _Damaged(UsageError):
    """A checkpoint whose bytes have changed."""


def _check(lost: str) -> None:
    if lost:
        raise _Damaged(lost)


def _error(path: str, difference: str, e: Exception) -> UsageError:
    """What to raise for a checkpoint that can't be restored: `_Damaged`, unless the model is another one, the device
    has no room, or the disk can't be read."""
    first: BaseException = e
    while first.__cause__ is not None:
        first = first.__cause__
    why = difference or f"{type(first).__name__}: {(str(first).splitlines() or [''])[0][:300]}"
    unread = isinstance(first, OSError) and not isinstance(first, FileNotFoundError)
    kind = UsageError if difference or unread or "RESOURCE_EXHAUSTED" in str(e) else _Damaged
    return kind(f"checkpoint {path} can't be restored: {why}")


def _difference(manager: ocp.CheckpointManager, step: int, shapes: Any, part: bool = False) -> str:
    """The first parameter that differs between checkpoint and model, in words; '' if unknown or none."""
    try:
        saved = manager.item_metadata(step)["state"]
        have = {tree.path_of(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(saved)}
    except Exception:
        return ""
    if not have:  # unreadable metadata isn't another model
        return ""
    want = {tree.path_of(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(shapes)}
    have = {p: shape for p, shape in have.items() if (p in want if part else p.split("/")[0] in shapes)}
    for path in sorted(want.keys() | have.keys()):
        if want.get(path) != have.get(path):
            return f"{path} is {have.get(path, 'absent')} there and {want.get(path, 'absent')} here"
    return ""


@contextlib.contextmanager
def _reader(folder: str) -> Iterator[tuple[ocp.CheckpointManager, int]]:
    """(a manager of the checkpoints under `folder`, the latest step).

    Raises:
      UsageError: no checkpoints there.
    """

    def manager(place: str) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(read_only=True)
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(place, options=options, item_handlers=handlers)

    if "://" in folder:
        if listed := claims.saved(folder.rpartition("/")[0]):
            with _fetched(folder, *listed[-1]) as place:
                yield manager(place), listed[-1][1]
            return
    elif epath.Path(folder).is_dir():
        found = manager(_absolute(folder))
        if (step := found.latest_step()) is not None:
            yield found, step
            return
    raise UsageError(f"no checkpoints at {folder!r}")


def parameters(folder: str) -> list[str]:
    """Paths of the parameters in the latest step under `folder`. UsageError: no checkpoint there, or a damaged one."""
    with _reader(folder) as (manager, step):
        try:
            return tree.paths(manager.item_metadata(step)["state"]["params"])
        except Exception as e:
            raise _error(f"{folder}/{step}", "", e) from e


def restore_part(folder: str, shapes: Any, shardings: Any) -> Any:
    """The part of the latest step's state under `folder` that `shapes` has, as {'params': ...}.

    Raises:
      UsageError: no checkpoint there, or other shapes.
    """
    like = _like(shapes, shardings)
    restore_args = ocp.checkpoint_utils.construct_restore_args(like)
    state = ocp.args.PyTreeRestore(like, restore_args=restore_args, partial_restore=True)
    with _reader(folder) as (manager, step):
        return _restore(manager, folder, step, shapes, state, part=True)[0]
