"""The commands of a training process. They never start a launcher: use them with `accelerate launch`, torchrun or srun.

Torch is imported inside commands only, so that `--help` is fast.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.cli_arguments import (
    AllowChange,
    Debug,
    Defer,
    Fresh,
    Overrides,
    Profile,
    RecipeArgument,
    ResumeFrom,
    RunArgument,
    RunOption,
    part_of,
)
from trainer.compare.command import compare_command
from trainer.completion import run_directories
from trainer.cpu_info import cores
from trainer.embedding import embed_command
from trainer.errors import CheckpointError, DataError, RankzeroError, UsageError, is_panic
from trainer.evaluation.predictions import write_predictions
from trainer.export.benchmark_table import show
from trainer.init_recipe.command import init_command
from trainer.push.command import push_command
from trainer.rank_env import clean_environment
from trainer.recipe_commands import recipes_command
from trainer.redaction import printable, redacted
from trainer.rundir import RunDir
from trainer.text_lines import Numbers, TextCommand, prepare_streams, read_rows, shown_numbers, table_console
from trainer.tracking.command import track_command

app = typer.Typer(
    name="trainer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="rankzero without a launcher: for accelerate launch, torchrun and srun.",
)


@app.command("train")
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: RunOption = None,
    fresh: Fresh = False,
    allow_change: AllowChange = None,
    debug: Debug = False,
    profile: Profile = False,
    defer: Defer = False,
    resume_from: ResumeFrom = None,
) -> None:
    """Train, or resume from the newest checkpoint, then evaluate, export and report."""
    ended = api().train(
        recipe, overrides or [], run=run, fresh=fresh, allow_change=allow_change or [], debug=debug, profile=profile,
        defer=defer, resume_from=resume_from,
    )  # fmt: skip
    if is_main() and defer:
        print(f"trained: {ended.path} (step {ended.step})")
    elif is_main():
        from trainer.report.samples import sample_lines

        for line in sample_lines(RunDir(ended.path)):
            print(line)
        print(f"done: {ended.path} (step {ended.step})")


@app.command("prepare")
def prepare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="folder (default prepared/NAME)")] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", metavar="N", min=1, help="default: one per usable core, 16 at most")
    ] = None,
    part: Annotated[
        str | None, typer.Option("--part", metavar="STAGE:I/N", help="part I of N of read, deal or write, for an array")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="hash all original files and compare with what DIR or the run recorded")
    ] = False,
    run: Annotated[Path | None, typer.Option("--run", metavar="DIR", help="with --verify: a run directory")] = None,
) -> None:
    """Train the tokenizer, check every row, write the tokenized corpus as shuffled shards. The same command resumes."""
    used = processes or min(16, cores())
    module = api("preparation")
    print(module.prepare(recipe, overrides or [], out=out, processes=used, part=part_of(part), verify=verify, run=run))


@app.command("evaluate")
def evaluate(
    run: RunArgument,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    split: Annotated[str, typer.Option("--split", metavar="S", help="validation or test")] = "test",
    other: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="METRIC", help="comet: also score predictions.jsonl by COMET, see its guide"),
    ] = None,
    comet_python: Annotated[
        Path | None,
        typer.Option("--comet-python", metavar="FILE", help="of COMET's environment; default: $RANKZERO_COMET_PYTHON"),
    ] = None,
    comet_model: Annotated[
        Path | None, typer.Option("--comet-model", metavar="FILE", help="checkpoint; default: $RANKZERO_COMET_MODEL")
    ] = None,
) -> None:
    """Evaluate a finished run again: write evaluation/SPLIT/ and print metrics.json."""
    if unknown := set(other or ()) - {"comet"}:
        raise UsageError(f"--with {unknown.pop()}: allowed is comet")
    if (comet_python or comet_model) and not other:
        raise UsageError("--comet-python and --comet-model are for --with comet")
    scores = None
    there = (RunDir(run).evaluation(checked_split(split)) / "predictions.jsonl").exists()
    if not other or overrides or not there:
        scores = api().evaluate(run, split=split, overrides=overrides or [])
    if other and is_main():
        scores = api().comet(run, split=split, python=comet_python, model=comet_model)
    if is_main():
        print(json.dumps(scores, indent=2, ensure_ascii=False))


@app.command("export")
def export(
    run: RunArgument,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="only compare artifacts, weights and checkpoints with their hashes")
    ] = False,
) -> None:
    """Write the artifacts of a finished run (ONNX, int8, bf16, …), each after it has passed its gate."""
    if check:
        for problem in (found := api().check_export(run)):
            print(problem, file=sys.stderr)
        if not found:
            print(f"{run}: artifacts, weights and checkpoints match their hashes")
        raise typer.Exit(CheckpointError.exit_code if found else 0)
    for path in api().export(run, overrides=overrides or []):
        print(path)


@app.command("bench")
def bench(
    run: RunArgument,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", help="for the whole benchmark")] = 30.0,
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", help="default: one per usable core")] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="also measure torch.compile, which needs a minute or more")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print export/benchmark.json")] = False,
) -> None:
    """Measure the speed of each artifact of a finished run on this machine, and recommend one."""
    found = api().bench(run, seconds=seconds, threads=threads, compiled=compiled)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        show(found, table_console())


@app.command("report")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run directories")],
    split: Annotated[str, typer.Option("--split", metavar="S", help="validation or test")] = "test",
    index: Annotated[
        Path | None, typer.Option("--index", metavar="FILE", help="only write a page that links the runs' reports")
    ] = None,
    no_rows: Annotated[bool, typer.Option("--no-rows", help="report.html without texts and predictions")] = False,
) -> None:
    """Write the report of an evaluated split again: report.html, confusion matrix, errors, attention."""
    checked_split(split)
    if index is not None:
        from trainer.report.report import write_index

        print(write_index([(run.name, run / "evaluation" / split / "report.html") for run in runs], index))
        return
    for run in runs:
        for path in api().report(run, split=split, with_rows=not no_rows):
            print(path)


@app.command("ensemble")
def ensemble(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="run directories of classifiers", autocompletion=run_directories),
    ],
    split: Annotated[str, typer.Option("--split", metavar="S", help="validation or test")] = "test",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="writes the averaged predictions")] = None,
) -> None:
    """Average several runs' probabilities: each member, the ensemble, and how much they agree."""
    records, summary = api().ensemble(runs, split=checked_split(split))
    if out is not None:
        write_predictions(out, records)
    print(json.dumps(summary, indent=2, ensure_ascii=False))


@app.command("predict", cls=TextCommand)
def predict(
    run: RunArgument,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="default: lines of stdin")] = None,
    backend: Annotated[str, typer.Option("--backend", help="torch, or a folder of export/: onnx, int8, …")] = "torch",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="of the recipe's evaluation, e.g. beam_size=1"),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="language models: print the text while it is generated")
    ] = False,
    form: Annotated[
        str,
        typer.Option("--format", help="of stdin: text, jsonl (rows), or auto: by the first line"),
    ] = "auto",
    rows: Annotated[
        Path | None,
        typer.Option("--rows", metavar="FILE", help="write training rows with their provenance, and print nothing"),
    ] = None,
) -> None:
    """Print predictions for texts or stdin lines as JSON lines, in order. Lines may be rows with the run's columns."""
    numbers = Numbers()
    lines = numbers.of(read_rows(texts, "text" if stream else form, lambda row: api().has_inputs(run, row)))
    overrides = [f"evaluation.{setting}" for setting in settings or []]
    if rows is not None:
        print(api().synthesize(run, lines, rows, backend=backend, overrides=overrides))
        return
    if stream:
        for piece in api().stream(run, lines, backend=backend, overrides=overrides):
            sys.stdout.write(piece)
            sys.stdout.flush()
        return
    wrong: list[int] = []
    for record in api().predict(run, lines, backend=backend, overrides=overrides):
        number = numbers.answered()
        wrong += [number] if "error" in record else []
        sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    if wrong:
        raise DataError(
            f'predict: {len(wrong)} lines have an "error" instead of a prediction: {shown_numbers(wrong)}. All other '
            "lines have one"
        )


app.command("embed", cls=TextCommand)(embed_command)
app.command("init")(init_command)
app.command("compare")(compare_command)
app.command("push")(push_command)


app.command("recipes")(recipes_command)
app.command("track")(track_command)


def api(module: str = "api") -> Any:
    """Return a module of public functions. Most of them load torch, for which `--help` must not wait."""
    return importlib.import_module(f"trainer.{module}")


def checked_split(split: str) -> str:
    if split not in ("validation", "test"):
        raise UsageError(f"--split {split}: allowed are validation and test")
    return split


def is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


class _Stderr(logging.Handler):
    """Write to the current sys.stderr, which a progress bar replaces while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that was closed must not end a run
            print(printable(redacted(self.format(record))), file=sys.stderr, flush=True)


def set_up_logging() -> None:
    """Log to stderr on rank zero. Other ranks log errors only."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("rankzero")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main() else logging.ERROR)


def run_app(application: typer.Typer | Callable[[], Any]) -> int:
    """Run a command line and turn errors into messages and exit codes. Only unexpected errors print a traceback."""
    prepare_streams()
    clean_environment()
    set_up_logging()
    try:
        # without standalone mode Typer returns the code of an Exit
        code = application(standalone_mode=False) if isinstance(application, typer.Typer) else application()
    except RankzeroError as error:
        if is_main() or not error.everywhere:
            logging.getLogger("rankzero").error("rankzero: %s", error)
        return error.exit_code
    except typer.Abort:
        return 130
    except BrokenPipeError:  # the reader of the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EIO):
            logging.getLogger("rankzero").error("rankzero: the output cannot be written: %s", error.strerror)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CheckpointError.exit_code
        code = _usage(error)
        if code is None:
            _print_traceback()
            return 1
        return code
    return code if isinstance(code, int) else 0


def _print_traceback() -> None:
    """Print the traceback without credentials, which messages of libraries may contain in a URL."""
    print(redacted(traceback.format_exc()), file=sys.stderr, end="")


def _usage(error: BaseException) -> int | None:
    """Show a usage error of Typer and return its exit code, or None for other errors."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if show is None or code is None:
        return None
    show()
    return int(code)
