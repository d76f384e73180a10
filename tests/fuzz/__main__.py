"""Fuzz one target, or run it on the inputs of files."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from . import engine


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", help="one of README.md, or all")
    parser.add_argument("files", nargs="*", type=Path, help="run the target on these inputs, and on nothing else")
    parser.add_argument("--runs", type=int, help="of each target (default: 100000, or what is possible in --seconds)")
    parser.add_argument("--seconds", type=float, help="stop each target after so long")
    parser.add_argument("--seed", type=int, help="of the random numbers (default: another one each time)")
    parser.add_argument("--build", choices=["plain", "compiled"], help="refuse to run on the other one")
    parser.add_argument("--guided", action="store_true", help="let atheris find new paths, on the plain build")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    if arguments.guided:
        run_guided(arguments)
    from . import targets  # noqa: PLC0415 - not before atheris has had its look at what is imported

    check_build(arguments.build)
    for name in targets.TARGETS if arguments.target == "all" else [arguments.target]:
        if arguments.files:
            replay(targets.TARGETS[name], arguments.files)
        else:
            fuzz(name, targets.TARGETS[name], arguments)


def check_build(wanted):
    from geventws.masking import COMPILED  # noqa: PLC0415 - as above

    build = "compiled" if COMPILED else "plain"
    if wanted not in (None, build):
        sys.exit(f"this is the {build} build, not the {wanted} one")
    print(f"geventws: {build}")


def replay(check, paths):
    for path in paths:
        check(path.read_bytes())
        print(f"{path}: nothing found")


def fuzz(name, check, arguments):
    runs = arguments.runs or (sys.maxsize if arguments.seconds else 100_000)
    # The slow target sees to something that a few inputs show.
    runs = runs // 100 or 1 if name == "growth" else runs
    seed = random.getrandbits(32) if arguments.seed is None else arguments.seed
    corpus = engine.load(name, engine.SEEDS, engine.FOUND)
    figures = engine.run(name, check, corpus, runs=runs, seed=seed, seconds=arguments.seconds)
    print(f"{name}: nothing found in {figures}; {len(corpus)} inputs to begin with, seed {seed}", flush=True)


def run_guided(arguments):
    """Hand over to libFuzzer, which ends the process."""
    import atheris  # noqa: PLC0415 - it is there for this alone

    with atheris.instrument_imports(include=["geventws"]):
        from . import targets  # noqa: PLC0415 - as above
    # atheris sees nothing of the compiled build, which can only be run on what the plain one has found.
    check_build("plain")
    found, findings = engine.FOUND / arguments.target, engine.FOUND / "findings"
    for folder in (found, findings):
        folder.mkdir(parents=True, exist_ok=True)
    options = [f"-max_len={engine.MAX_SIZE}", f"-artifact_prefix={findings}/{arguments.target}-", "-timeout=20"]
    options += [f"-runs={arguments.runs}"] if arguments.runs else []
    options += [f"-max_total_time={arguments.seconds:.0f}"] if arguments.seconds else []
    options += [f"-seed={arguments.seed}"] if arguments.seed is not None else []
    folders = [str(found), str(engine.SEEDS / arguments.target)]
    atheris.Setup([sys.argv[0], *options, *folders], targets.TARGETS[arguments.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
