"""The table of docs/pods.md from the reports in docs/pods/: python benchmarks/pod_table.py docs/pods/*.json"""

import json
import sys
from pathlib import Path

G = 2**30
HEAD = (
    "| model | chips | layout | batch | arguments, temporaries, peak of GiB | collectives, GB a chip and step | "
    "roofline: compute / HBM / ICI / DCN, s | step at least | MFU at most | tokens a day | compile, CPU s |"
)


def main() -> None:
    reports = [json.loads(Path(path).read_text()) for path in sys.argv[1:]]
    reports.sort(key=lambda r: (r["params"], r["chips"]))
    print(HEAD)
    print("|" + "---|" * (HEAD.count("|") - 1))
    for r in reports:
        b, roof = r["bytes"], r["roofline"]
        mesh = " x ".join(f"{k} {v}" for k, v in r["mesh"].items())
        micro = f", microbatch {r['microbatch']}" if r["microbatch"] else ""
        moments = ", moments bf16" if r["dtypes"]["optimizer"] != "float32" else ""
        slices = f"{r['slices']} x " if r["slices"] > 1 else ""
        parts = ", ".join(f"{x['kind']} ({x['axis']}) {x['bytes'] / 1e9:.3g}" for x in r["collectives"][:4])
        print(
            f"| {r['name'].rpartition(':')[2]} | {r['chips']}: {slices}{r['topology']} | {mesh}, "
            f"{r['execution']['remat']}{micro}{moments} | {r['batch_size']} x {r['units_per_example']} | "
            f"{b['arguments'] / G:.2f}, {b['temporaries'] / G:.2f}, {b['peak'] / G:.2f} of {r['hbm_bytes'] / G:.0f} "
            f"| {parts} | {roof['compute']:.3g} / {roof['hbm']:.3g} / {roof['ici']:.3g} / "
            f"{roof['dcn']:.3g} | {roof['step']:.3g} s ({roof['bound_by']}) | {roof['mfu_at_most']:.0%} | "
            f"{r['units_per_day'] / 1e9:.3g}G | {r['compile_cpu_seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
