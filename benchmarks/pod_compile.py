"""Compiling for TPUs that aren't there: GPT-3 1.3B against MaxText's own ahead-of-time compile, and the cost of depth.

    python benchmarks/pod_compile.py --maxtext-python=/path/to/venv/bin/python     both sides, one after the other
    python benchmarks/pod_compile.py --depth                                      12 against 96 layers, at two widths

The same work on both sides: GPT-3's block with 16 heads of 128 (biases everywhere, learned positions, tied table of
50257), 16 chips of v5e, FSDP 16, 4 sequences of 2048 a chip, bfloat16 products, float32 parameters, gradients and
moments, AdamW with clipping at norm 1, everything of a layer computed again, layers in a loop, state donated. What
differs: MaxText takes plain attention's softmax in bfloat16 (ours: float32) and segment ids, and keeps whole logits.

Ours runs in the interpreter that is named by --python, so that both sides may have one JAX: MaxText's environment has
what is needed but this package, which is found by its path.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

OURS = """
import json, resource, sys
sys.path.insert(0, {root!r})
import jax
jax.config.update("jax_platforms", "cpu")
from importlib.metadata import version
from bigmodel import config
from bigmodel.ops import sharding
from bigmodel.pods import aot, layout
cfg = aot.frozen(config.load({root!r} + "/experiments/gpt3.py:" + {size!r}, {overrides!r}))
mesh = sharding.make_mesh(cfg.run.mesh, aot.devices(layout.Topology({topology!r})))
lowered = aot.lower(cfg, mesh)
before = resource.getrusage(resource.RUSAGE_SELF)
compiled = aot.compile_step(lowered)
after = resource.getrusage(resource.RUSAGE_SELF)
m = compiled.memory_analysis()
print(json.dumps({{
    "arguments": m.argument_size_in_bytes, "temporaries": m.temp_size_in_bytes, "peak": m.peak_memory_in_bytes,
    "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    "jax": jax.__version__, "libtpu": version("libtpu"),
}}))
"""

THEIRS = """
import json, os, resource, sys
import jax
from maxtext.trainers.pre_train import train_compile
spent = {}
compile_ = jax.stages.Lowered.compile
def measured(self, *args, **kwargs):
    before = resource.getrusage(resource.RUSAGE_SELF)
    out = compile_(self, *args, **kwargs)
    after = resource.getrusage(resource.RUSAGE_SELF)
    m = out.memory_analysis()
    spent.update(
        arguments=m.argument_size_in_bytes, temporaries=m.temp_size_in_bytes, peak=m.peak_memory_in_bytes,
        cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, jax=jax.__version__,
    )
    return out
jax.stages.Lowered.compile = measured
try:
    train_compile.main(sys.argv)
finally:
    print("\\n" + json.dumps(spent), flush=True)
    os._exit(0)
"""


def run(python: str, code: str, *args: str) -> dict:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1",
           "JAX_ENABLE_COMPILATION_CACHE": "false", "TPU_WORKER_HOSTNAMES": "localhost"}  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".py") as f:
        f.write(code)
        f.flush()
        out = subprocess.run([python, f.name, *args], env=env, capture_output=True, text=True)
    lines = [line for line in out.stdout.splitlines() if line.startswith("{")]
    if not lines or lines[-1] == "{}":
        sys.exit(f"{python} failed:\n{out.stdout[-2000:]}\n{out.stderr[-3000:]}")
    return json.loads(lines[-1])


def ours(python: str, size: str, topology: str, **overrides: object) -> dict:
    pairs = [(k.replace("__", "."), v) for k, v in overrides.items()]
    return run(python, OURS.format(root=str(ROOT), size=size, overrides=pairs, topology=topology))


def theirs(python: str, attention: str) -> dict:
    base = subprocess.run(
        [python, "-c", "import maxtext, os; print(os.path.dirname(maxtext.__file__))"], capture_output=True, text=True
    ).stdout.strip()
    options = """
        compile_topology=v5e-16 compile_topology_num_slices=1 ici_fsdp_parallelism=16 decoder_block=gpt3
        base_num_decoder_layers=24 base_emb_dim=2048 base_num_query_heads=16 base_num_kv_heads=16 head_dim=128
        base_mlp_dim=8192 mlp_activations=['gelu'] vocab_size=50257 trainable_position_size=2048
        logits_via_embedding=True normalize_embedding_logits=False logits_dot_in_fp32=False fused_qkv=True
        use_iota_embed=True enable_dropout=False normalization_layer_epsilon=1e-05 per_device_batch_size=4
        max_target_length=2048 remat_policy=full scan_layers=True dtype=bfloat16 weight_dtype=float32
        grad_dtype=float32 opt_type=adamw mu_dtype=float32 adam_b1=0.9 adam_b2=0.95 adam_eps=1e-08
        adam_weight_decay=0.1 gradient_clipping_threshold=1.0 dataset_type=synthetic steps=1000 run_name=aot
        base_output_directory=/tmp/maxtext_aot enable_checkpointing=False enable_tensorboard=False
        enable_goodput_recording=False skip_jax_distributed_system=True log_config=False jax_cache_dir=
    """
    return run(python, THEIRS, f"{base}/configs/base.yml", *options.split(), f"attention={attention}")


def depths(python: str, rounds: int, common: dict) -> None:
    """12 against 96 layers of two widths: 125M's shards are under a TPU's 128 lanes, 1.3B's are one row of them."""
    for size in ("125m", "1.3b"):
        spent: dict[int, list[float]] = {12: [], 96: []}
        for _ in range(rounds):  # in turns: a machine's speed drifts by more than depth costs
            for depth, found in spent.items():
                found.append(ours(python, size, "v5e:4x4", model__depth=depth, **common)["cpu"])
        for depth, found in spent.items():
            each = ", ".join(f"{c:.0f}" for c in found)
            print(f"{size}'s width, {depth} layers: {statistics.median(found):.1f} CPU s ({each})")
        print(f"96 / 12: {statistics.median(spent[96]) / statistics.median(spent[12]):.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maxtext-python", help="of an environment with maxtext[tpu]==0.2.5")
    parser.add_argument("--python", help="of ours (default: MaxText's, for one JAX on both sides)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--depth", action="store_true", help="only 12 against 96 layers, of 125M's width and 1.3B's")
    args = parser.parse_args()
    common = dict(
        train__batch_size=64, run__mesh__data=1, run__mesh__fsdp=16, run__remat="full", model__dtype="bfloat16"
    )
    if args.depth or not args.maxtext_python:
        depths(args.python or sys.executable, args.rounds, common)
        return
    python = args.python or args.maxtext_python
    rows: dict[str, list[dict]] = {}
    for _ in range(args.rounds):
        for name, attention in (("plain", "dot_product"), ("splash", "flash")):
            rows.setdefault(f"MaxText {name}", []).append(theirs(args.maxtext_python, attention))
            rows.setdefault(f"ours {name}", []).append(ours(python, "1.3b", "v5e:4x4", run__attention=name, **common))
    g = 2**30
    print(f"{'':15} arguments  temporaries   both   peak (GiB)  compile CPU s")
    both = {}
    for name, found in rows.items():
        r = found[0]
        both[name] = (r["arguments"] + r["temporaries"]) / g
        cpu = [x["cpu"] for x in found]
        sizes = f"{r['arguments'] / g:9.3f}  {r['temporaries'] / g:11.3f}  {both[name]:5.3f}  {r['peak'] / g:10.3f}"
        each = ", ".join(f"{c:.0f}" for c in cpu)
        print(f"{name:15} {sizes}  {statistics.median(cpu):.1f} ({each})  jax {r['jax']}")
    plain, flash = both["MaxText plain"], both["MaxText splash"]
    print(f"ours plain / MaxText plain {both['ours plain'] / plain:.3f}; ours splash / MaxText plain "
          f"{both['ours splash'] / plain:.3f}, / MaxText splash {both['ours splash'] / flash:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
