"""The README's table of methods, from the runs of make.sh and what `vizrobust attack --json` said of them."""

# ruff: noqa: T201  a script that prints its table
import json
import sys
from pathlib import Path

runs, rows = Path(sys.argv[1]), [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
print("| run | how | clean | FGSM | PGD-50, 10 restarts | 95 % interval | passes per image | seconds |")
print("|---|---|---|---|---|---|---|---|")
for run in dict.fromkeys(row["checkpoint"] for row in rows):
    fgsm, pgd = (row for row in rows if row["checkpoint"] == run)
    folder = runs / Path(run).name
    about = json.loads((folder / "run.json").read_text())
    seconds, how = sum(about["seconds"].values()), about["argv"].partition(f"--out {folder} ")[2]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    passes = sum(row["gradient_passes"] for row in metrics)
    low, high = 100 * pgd["ci_low"], 100 * pgd["ci_high"]
    print(
        f"| `{folder.name}` | `{how}` | {100 * pgd['clean']:.1f} | {100 * fgsm['accuracy']:.1f} | {100 * pgd['accuracy']:.1f} "
        f"| {low:.1f} to {high:.1f} | {passes:.0f} | {seconds:.0f} |"
    )
