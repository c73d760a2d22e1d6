"""Checkpoints by orbax: asynchronous, atomic, restorable onto any mesh."""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bigmodel import tree
from bigmodel.errors import Retry, UsageError, note
from bigmodel.files import is_whole, sealed

# orbax reports each file at INFO and WARNING, and at ERROR the traceback of what it raises anyway.
for name in ("absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _disk(what: str) -> Iterator[None]:
    """A full disk is a reason to try again, not a crash."""
    try:
        yield
    except Exception as e:
        text = str(e)
        if getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text:
            raise Retry(f"disk full while saving {what}; earlier checkpoints are intact: free space and repeat") from e
        raise


class Checkpoints:
    """Steps under one folder. A save is committed by a rename: what a kill leaves behind is swept away."""

    def __init__(self, folder: str, keep: int = 2):
        self.folder = str(epath.Path(folder).resolve()) if "://" not in folder else folder
        _let_others_end_unheard()
        with _disk(self.folder):
            self.manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True
                ),
            )

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts writing; returns once the arrays are copied. Errors of an earlier save surface here."""
        # The next step is given these buffers to overwrite, and on a CPU the writer would share them.
        state = jax.tree.map(jnp.copy, state)
        meta = sealed({**meta, "arrays": _sums(state)})
        with _disk(self.folder):
            self.manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
            )

    def restore_latest(self, shapes: Any, shardings: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, meta) of the newest step that is whole, laid out as `shardings` says; None where there is none.

        Newer steps that are damaged are put aside, as `damaged-STEP` beside the others, and that is noted.

        Raises:
          UsageError: no step can be restored; or the newest is another model's, or can't be read.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        damaged: list[int] = []
        for i, step in enumerate(steps):
            try:
                found = self._restore(step, shapes, shardings)
            except UsageError as e:
                if i + 1 == len(steps) or jax.process_count() > 1:  # processes would have to agree
                    raise
                own, older = (_difference(self.manager, s, shapes) for s in (step, steps[i + 1]))
                if not isinstance(e, _Damaged) and not (own and not older):  # another model's differ all
                    raise
                note(f"{e}; going on from the one of step {steps[i + 1]}")
                damaged.append(step)
                continue
            for other in damaged:
                epath.Path(self.folder, str(other)).rename(epath.Path(self.folder, f"damaged-{other}"))
            if damaged:
                self.manager.reload()
            return step, *found
        return None

    def restore(self, step: int, shapes: Any, shardings: Any) -> Any:
        """The state of `step`, laid out as `shardings` says, whatever mesh wrote it."""
        return self._restore(step, shapes, shardings)[0]

    def _restore(self, step: int, shapes: Any, shardings: Any) -> tuple[Any, dict[str, Any]]:
        like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore())
        try:
            out = self.manager.restore(step, args=args)
            _verify(out["state"], out["meta"])
        except Exception as e:
            raise _error(f"{self.folder}/{step}", _difference(self.manager, step, shapes), e) from e
        return out["state"], out["meta"]

    def wait(self) -> None:
        with _disk(self.folder):
            self.manager.wait_until_finished()

    def close(self) -> None:
        with _disk(self.folder):
            self.manager.close()


def _sums(state: Any) -> dict[str, int]:
    """CRC-32 of each array by path: a checkpoint's own format notices a cut file, but no changed bit.

    Empty where other processes hold a part of the state.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    if not all(x.is_fully_addressable for _, x in leaves):
        return {}
    return {tree.path_of(p): zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data) for p, x in leaves}


def _verify(state: Any, meta: dict[str, Any]) -> None:
    old = isinstance(meta["crc32"], dict)  # checkpoints of before had the arrays' sums there, and no seal
    if not old and not is_whole(meta):
        raise ValueError("what is noted beside it is damaged: its checksum differs")
    saved = meta["crc32"] if old else meta["arrays"]
    for path, crc in _sums(state).items() if saved else ():
        if crc != saved[path]:
            raise ValueError(f"{path} is damaged: its checksum is {crc}, {saved[path]} was saved")


_unraisable: Any = sys.unraisablehook
_uncaught: Any = sys.excepthook


def _show_unraisable(args: Any) -> None:
    if "Event loop is closed" not in str(args.exc_value) and "_read_array" not in str(args.object):
        _unraisable(args)


def _show_uncaught(kind: Any, value: Any, trace: Any) -> None:
    if "Event loop is closed" not in str(value):
        _uncaught(kind, value, trace)


def _let_others_end_unheard() -> None:
    """Silences what tensorstore reports after a failed read or write, when the event loop has been closed.

    Other reads still under way report through sys.unraisablehook, writes through sys.excepthook; those that had not
    started are coroutines that nothing awaits.
    """
    global _unraisable, _uncaught
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    if sys.unraisablehook is not _show_unraisable:
        _unraisable, sys.unraisablehook = sys.unraisablehook, _show_unraisable
    if sys.excepthook is not _show_uncaught:
        _uncaught, sys.excepthook = sys.excepthook, _show_uncaught


class _Damaged(UsageError):
    """A checkpoint whose bytes aren't those that were saved."""


def _error(path: str, difference: str, e: Exception) -> UsageError:
    """What to raise of a checkpoint that can't be restored. Another model, a device without room and a disk that can't
    be read are no damage: the checkpoint stays as it is."""
    text = f"checkpoint {path} can't be restored: {difference or _first_line(e)}"
    first: BaseException = e
    while first.__cause__ is not None:
        first = first.__cause__
    unread = isinstance(first, OSError) and not isinstance(first, FileNotFoundError)
    return UsageError(text) if difference or unread or "RESOURCE_EXHAUSTED" in str(e) else _Damaged(text)


def _first_line(e: BaseException) -> str:
    while e.__cause__ is not None:
        e = e.__cause__
    return f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:300]}"


def _difference(manager: ocp.CheckpointManager, step: int, shapes: Any, part: bool = False) -> str:
    """The first parameter that differs between checkpoint and model, in words; '' if unknown or none.

    part: the model may lack what the checkpoint has."""
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


def parameters(folder: str) -> list[str]:
    """Paths of the parameters in the latest step under `folder`."""
    where = folder if "://" in folder else str(epath.Path(folder).resolve())
    options = ocp.CheckpointManagerOptions(read_only=True)
    manager = ocp.CheckpointManager(where, options=options, item_handlers={"state": ocp.PyTreeCheckpointHandler()})
    return tree.paths(manager.item_metadata(manager.latest_step())["state"]["params"])


def restore_part(folder: str, shapes: Any, shardings: Any) -> Any:
    """Of the latest step's state under `folder` only what `shapes` has, as {'params': ...}: to fine-tune or evaluate.

    Raises:
      UsageError: no checkpoint there, or other shapes.
    """
    if "://" not in folder and not epath.Path(folder).is_dir():
        raise UsageError(f"no checkpoints at {folder!r}")
    manager = ocp.CheckpointManager(
        folder if "://" in folder else str(epath.Path(folder).resolve()),
        options=ocp.CheckpointManagerOptions(read_only=True),
    )
    step = manager.latest_step()
    if step is None:
        raise UsageError(f"no checkpoints at {folder!r}")
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    _let_others_end_unheard()
    try:
        out = manager.restore(
            step,
            args=ocp.args.Composite(
                meta=ocp.args.JsonRestore(),
                state=ocp.args.PyTreeRestore(
                    like,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                    partial_restore=True,
                ),
            ),
        )
        _verify(out["state"], out["meta"])
    except Exception as e:
        raise _error(f"{folder}/{step}", _difference(manager, step, shapes, True), e) from e
    return out["state"]
