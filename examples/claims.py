# SPDX-License-Identifier: Apache-2.0
"""Claims of the papers, checked on images at the size of two cores: a table, a picture and a verdict for each.

    python examples/claims.py --data-root CIFAR                  # all, or names: views decoupled swav cacr simlap
    python examples/claims.py simlap --data-root CIFAR --jobs 2  # two trainings at a time, of a thread each

Every training is a run of one of the examples, in a folder of its own below --out, and is kept: what is there already
is not trained again. Means and standard deviations are over the seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, pstdev
from typing import Any, NamedTuple

from common import flags
from common.tables import grid, spread

FOLDER = Path(__file__).parent
Setting = tuple[str, ...]  # flags and their values
Measured = dict[str, list[float]]  # of a measure, one for each seed


class Claim(NamedTuple):
    """What a paper says, the runs that show it, and when it has shown.

    ``lines`` and ``points`` are flags: every line is trained at every point. ``read`` finds the measures in the summary
    of a run, ``"before"`` and ``"after"`` training.
    """

    says: str
    paper: str
    example: str
    fixed: Setting
    lines: dict[str, Setting]
    points: dict[str, Setting]
    read: Callable[[dict[str, Any], str], dict[str, float]]
    shown: Callable[[dict[tuple[str, str], Measured]], bool]


def accuracies(summary: dict[str, Any], stage: str) -> dict[str, float]:
    """Of the features of a training of one seed, in percent."""
    (trained,) = summary["trainings"].values()
    return {f"{label} (%)": 100 * trained[stage][key][0] for label, key in (("kNN", "knn"), ("linear", "linear"))}


def accuracies_and_rank(summary: dict[str, Any], stage: str) -> dict[str, float]:
    """And the effective rank of the embedding."""
    (trained,) = summary["trainings"].values()
    return accuracies(summary, stage) | {"effective rank": trained[stage]["effective_rank"][0]}


def prototypes(summary: dict[str, Any], stage: str) -> dict[str, float]:
    """How ``swav_images`` uses its prototypes."""
    row, count = summary["rows"][{"before": 0, "after": -1}[stage]], summary["run"]["prototypes"]
    use = {"in use, of codes (%)": 100 * row["perplexity"] / count, "dead": float(row["dead"])}
    use |= {"in use, predicted (%)": 100 * row["predicted_perplexity"] / count}
    return use | {"kNN (%)": 100 * row["knn"], "linear (%)": 100 * row["linear"]}


def top(found: dict[tuple[str, str], Measured], line: str, point: str, measure: str = "linear (%)") -> float:
    """Mean over the seeds."""
    return mean(found[line, point][measure])


def rises(found: dict[tuple[str, str], Measured], line: str, measure: str, points: Sequence[str]) -> bool:
    values = [top(found, line, point, measure) for point in points]
    return all(a < b for a, b in itertools.pairwise(values))


VIEWS = ("2", "4", "8")
BATCHES = ("256", "128", "64", "32")
CLAIMS = {
    "views": Claim(
        "MV-DHEL is at least as accurate as MV-InfoNCE, and that as averaging over pairs of views; the effective rank "
        "rises with the number of views",
        "arXiv 2507.06979",
        "multiview_images",
        ("--epochs", "10"),
        {name: ("--loss", name) for name in ("pairwise", "mv_info_nce", "mv_dhel")},
        {views: ("--views", views) for views in VIEWS},
        accuracies_and_rank,
        lambda found: (
            top(found, "mv_dhel", "8") >= top(found, "mv_info_nce", "8") >= top(found, "pairwise", "8")
            and rises(found, "mv_dhel", "effective rank", VIEWS)
        ),
    ),
    "decoupled": Claim(
        "the advantage of DCL over SimCLR grows as the batch shrinks",
        "arXiv 2110.06848",
        "multiview_images",
        ("--epochs", "10", "--views", "2", "--temperature", "0.1", "--lr", "1e-3"),
        {name: ("--loss", name) for name in ("simclr", "dcl")},
        {batch: ("--batch-size", batch) for batch in BATCHES},
        accuracies_and_rank,
        lambda found: (
            top(found, "dcl", "32") - top(found, "simclr", "32")
            > top(found, "dcl", "256") - top(found, "simclr", "256")
            and top(found, "dcl", "32") > top(found, "simclr", "32")
        ),
    ),
    "swav": Claim(
        "Sinkhorn's codes use all prototypes, whatever their sharpness",
        "arXiv 2006.09882",
        "swav_images",
        ("--epochs", "10", "--batch-size", "128", "--queue-size", "256"),
        {"SwAV": ()},
        {epsilon: ("--epsilon", epsilon) for epsilon in ("0.05", "0.03", "0.015")},
        prototypes,
        lambda found: all(measured["dead"] == [0] * len(measured["dead"]) for measured in found.values()),
    ),
    "cacr": Claim(
        "CACR loses less than SimCLR where classes are not met equally often in the pre-training",
        "arXiv 2105.03746",
        "multiview_images",
        ("--epochs", "10", "--views", "4"),
        {name: ("--loss", name) for name in ("simclr", "cacr")},
        {"equal": (), "20 : 1": ("--long-tail", "20")},
        accuracies_and_rank,
        lambda found: (
            top(found, "cacr", "equal") - top(found, "cacr", "20 : 1")
            < top(found, "simclr", "equal") - top(found, "simclr", "20 : 1")
        ),
    ),
    "simlap": Claim(
        "SimLAP learns from pairs of arbitrary classes, where SupCon fails",
        "arXiv 2410.18200",
        "supervised_images",
        ("--epochs", "10"),
        {"sup_con": ("--loss", "sup_con"), "simlap": ("--loss", "simlap")},
        {pairs: ("--pairs", pairs) for pairs in ("same", "arbitrary")},
        accuracies,
        lambda found: (
            top(found, "simlap", "arbitrary", "kNN (%)") > top(found, "sup_con", "arbitrary", "kNN (%)") + 5
            and top(found, "sup_con", "same", "kNN (%)") > top(found, "sup_con", "arbitrary", "kNN (%)") + 5
        ),
    ),
}


def command(claim: Claim, line: str, point: str, args: argparse.Namespace) -> list[str]:
    """The training of one line at one point, but for its seed and its folder."""
    given = ["--data-root", str(args.data_root)] if args.data_root else []
    for flag, value in (("--limit", args.limit), ("--max-steps", args.max_steps)):
        given += [flag, str(value)] if value is not None else []
    program = [f"{claim.example}.py", *claim.fixed, *claim.lines[line], *claim.points[point]]
    return [*program, *given, "--threads", "1"]


def train(words: list[str], out: Path) -> dict[str, Any]:
    """The summary of a training, which is run where it is not there yet.

    Raises:
        Refused: the training failed, or what is there is of another command.
    """
    ran = out / "command.txt"
    if not ran.exists():
        whole = [sys.executable, str(FOLDER / words[0]), *words[1:], "--out", str(out), "--resume", "auto", "--quiet"]
        done = subprocess.run(whole, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise flags.Refused(f"{shlex.join(whole)}\n{done.stderr.strip().splitlines()[-1]}")
        ran.write_text(shlex.join(words))
    elif ran.read_text() != shlex.join(words):
        raise flags.Refused(f"{out} has the run of another command, {ran.read_text()}: give another --out")
    return json.loads((out / "summary.json").read_text())


def check(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Trains what a claim takes; every measure of every run, and whether it has shown."""
    claim = CLAIMS[name]
    places = list(itertools.product(claim.lines, claim.points))
    runs = []
    for line, point in places:
        words = command(claim, line, point, args)
        for seed in range(args.seeds):
            folder = args.out / name / f"{line}-{point}".replace(" ", "") / f"seed-{seed}"
            runs.append(([*words, "--seed", str(seed)], folder))
    with ThreadPoolExecutor(args.jobs) as pool:
        summaries = list(pool.map(lambda run: train(*run), runs))
    found: dict[tuple[str, str], Measured] = {}
    for at, place in enumerate(places):
        found[place] = measured(claim, summaries[at * args.seeds :][: args.seeds], "after")
    rows = [{"line": line, "point": point, "measured": of_seeds} for (line, point), of_seeds in found.items()]
    untrained = measured(claim, summaries[: args.seeds], "before")
    return {"claim": name, "seeds": args.seeds, "shown": claim.shown(found), "untrained": untrained, "rows": rows}


def measured(claim: Claim, summaries: Sequence[dict[str, Any]], stage: str) -> Measured:
    """The measures of one training, a value for each seed."""
    of_seeds = [claim.read(summary, stage) for summary in summaries]
    return {measure: [one[measure] for one in of_seeds] for measure in of_seeds[0]}


def table(result: dict[str, Any]) -> str:
    """Means and standard deviations of a claim, as text."""
    claim = CLAIMS[result["claim"]]
    named = {"untrained": result["untrained"]}
    for row in result["rows"]:
        named[" ".join(filter(None, (row["line"], *claim.points[row["point"]])))] = row["measured"]
    rows = [["", *result["untrained"]]]
    for name, of_measures in named.items():
        rows.append([name, *(spread((mean(values), pstdev(values))) for values in of_measures.values())])
    verdict = "shown" if result["shown"] else "NOT shown"
    return "\n".join([f"{result['claim']} ({claim.paper}): {claim.says}: {verdict}", *grid(rows)])


def draw(result: dict[str, Any], path: Path) -> None:
    """A panel for each measure, with a line for each loss."""
    from matplotlib.figure import Figure

    claim = CLAIMS[result["claim"]]
    measures = list(result["untrained"])
    figure = Figure(figsize=(3.2 * len(measures), 3.0), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for panel, measure in zip(panels, measures, strict=True):
        for line in claim.lines:
            of_points = [row["measured"][measure] for row in result["rows"] if row["line"] == line]
            centres, widths = [mean(values) for values in of_points], [pstdev(values) for values in of_points]
            panel.errorbar(list(claim.points), centres, widths, marker="o", markersize=4, capsize=3, label=line)
        panel.axhline(mean(result["untrained"][measure]), color="#888888", linestyle="--", label="untrained")
        panel.set_title(measure, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    flag = next(filter(None, (setting[0] for setting in claim.points.values() if setting)))
    panels[0].set_xlabel(flag)
    names, labels = panels[0].get_legend_handles_labels()
    figure.legend(names, labels, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("claims", nargs="*", metavar="CLAIM", help=f"of {', '.join(CLAIMS)}; all by default")
    add("--data-root", type=Path, help="images as the examples take them; scikit-learn's digits by default")
    add("--limit", type=int, help="at most so many training and so many test images")
    add("--max-steps", type=int, help="end every training early: a trial")
    add("--seeds", type=int, default=3, help="of every training, from 0 on (default 3)")
    add("--jobs", type=int, default=1, help="trainings at a time, of one thread each (default 1)")
    add("--out", type=Path, default=Path("runs/claims"))
    args = parser.parse_args(argv)
    for name in args.claims:
        if name not in CLAIMS:
            parser.error(f"no claim {name!r}: there are {', '.join(CLAIMS)}")
    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Checks the claims; returns what was found."""
    args = parse(argv)
    results = []
    with flags.one_line():
        for name in args.claims or CLAIMS:
            results.append(result := check(name, args))
            (args.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
            draw(result, args.out / f"{name}.png")
            print(table(result), end="\n\n")
    return results


if __name__ == "__main__":
    main()
