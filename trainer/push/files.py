"""The files of a run that belong on the Hub, each checked.

    README.md  recipe.yaml           the model card for this repository, and the recipe without credentials and paths
    config.json  model.safetensors … model/, so that `from_pretrained(REPO)` loads it
    adapter/  export/<name>/         the files that passed a gate, as gate.json lists them
    evaluation/<split>/              scores, figures, and a report without rows

Nothing else of the run directory is read: no checkpoint, optimizer state, log or manifest.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from trainer.errors import DataError, GateError, UsageError
from trainer.export.artifact_integrity import problems, read_gate
from trainer.files import read_json
from trainer.redaction import redacted, shareable
from trainer.report.card import SPLITS, hub_card
from trainer.report.report import write_report
from trainer.report.task_report import open_report
from trainer.rundir import RunDir
from trainer.stages import file_facts

OF_ROWS = ("worst_rows",)  # keys of gate.json that quote rows
WITHOUT_ROWS = ("metrics.json", "baseline.json")  # of an evaluated split; figures and the report are added
FIGURES = (".png", ".svg")
TEXTS = (".json", ".md", ".yaml", ".html", ".py", ".svg")
VOCABULARY = ("tokenizer.json", "vocab.json", "added_tokens.json")  # any text may be a token
LARGEST_TEXT = 20_000_000  # bytes of a text that is searched for credentials
REPO = re.compile(r"(?=.{3,96}$)\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?", re.ASCII)


@dataclass(frozen=True)
class Upload:
    """A file of the repository, and where its content is from: a file of the run, or bytes."""

    path: str
    content: Path | bytes

    @property
    def bytes(self) -> int:
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)


def uploads(run: RunDir, repo: str, *, with_rows: bool = False) -> list[Upload]:
    """Return the files of a run for a repository, the model card first.

    Args:
        with_rows: also files that quote rows of the data: predictions, errors, attention, and a report with rows.

    Raises:
        UsageError: no run directory, or no name of a repository.
        GateError: the run is not finished, a gate has failed, or a file is not the one that passed its gate.
        DataError: a file has a credential or a local path in it, or the card is not one of the Hub.
    """
    run.check()
    check_repo(repo)
    check_finished(run)
    gates = check_gates(run)
    card = hub_card(run, repo).encode()
    check_card(card.decode())
    report = open_report(run, SPLITS[0], with_records=False)
    found = [Upload("README.md", card), Upload("recipe.yaml", report.recipe_text.encode())]
    for folder, gate in gates.items():
        found += _artifact(run, folder, gate, with_rows)
    benchmark = run.export / "benchmark.json"
    found += [Upload("export/benchmark.json", benchmark)] if benchmark.is_file() else []
    for folder in sorted(run.path.glob("evaluation/*/")):
        found += _evaluation(run, folder.name, with_rows)
    for upload in found:
        _check(run, upload)
    return found


def check_repo(repo: str) -> None:
    """Refuse what is not owner/name of a repository.

    Raises:
        UsageError: it is not.
    """
    if not REPO.fullmatch(repo) or any(part in repo for part in ("..", "--")) or repo.endswith(".git"):
        raise UsageError(
            f"REPO {repo!r}: owner/name is expected, such as my-team/my-model: letters, digits, '_', and within them "
            "single '.' and '-'"
        )


def check_finished(run: RunDir) -> None:
    """Refuse a run that is not finished. One that ended at a gate counts: its gates are checked as they are now.

    Raises:
        GateError: it is not finished.
    """
    status = read_json(run.status) or {}
    state, code = status.get("state"), status.get("exit_code")
    if state == "finished" or (state == "failed" and code == GateError.exit_code):
        return
    raise GateError(
        f"{run.path} is not finished (state {state}, exit code {code}), so nothing is uploaded; "
        f"`rankzero train` on the same recipe finishes it"
    )


def check_gates(run: RunDir) -> dict[Path, dict[str, Any]]:
    """Return the folders whose gates have passed, with gate.json: model/, adapter/, and the artifacts.

    Raises:
        GateError: model/ has no gate, a gate has failed, or files or weights are not those that passed.
    """
    folders = [run.model, run.adapter, *sorted(run.export.glob("[!.]*/"))]
    gates = {folder: gate for folder in folders if (gate := read_gate(folder)) is not None}
    if run.model not in gates:
        raise GateError(
            f"{run.model} has passed no gate, so nothing is uploaded; `rankzero export {run.path} export.model=true` "
            "checks it"
        )
    if found := [problem for folder, gate in gates.items() for problem in problems(folder, gate)]:
        lines = "".join(f"\n  {line}" for line in found)
        raise GateError(
            f"{run.path} has artifacts that failed their gates, so nothing is uploaded:{lines}\n`rankzero export "
            f"{run.path}` makes them again, or remove their folders"
        )
    files = gates[run.model]["files"]
    weights = {name: file_facts(run.model / name)["sha256"] for name in files if ".safetensors" in name}
    for folder, gate in gates.items():
        if folder != run.adapter and gate["inputs"].get("model") != weights:
            raise GateError(
                f"{folder} was not made from the weights in {run.model}, so nothing is uploaded; run `rankzero export "
                f"{run.path}` again"
            )
    return gates


def check_card(text: str) -> None:
    """Parse the card as the Hub does, with its results.

    Raises:
        DataError: huggingface_hub cannot read it, or finds no results where there are some.
    """
    try:
        data: Any = ModelCard(text).data
        numbers = [result.metric_value for result in data.eval_results or []]
    except Exception as error:  # of YAML or of the metadata
        raise DataError(f"README.md for the Hub: {error}") from error
    if ("model-index:" in text) != bool(numbers) or not all(isinstance(n, int | float) for n in numbers):
        raise DataError("README.md for the Hub: its model-index has no numbers")


def _artifact(run: RunDir, folder: Path, gate: dict[str, Any], with_rows: bool) -> Iterator[Upload]:
    """Yield the files that gate.json lists, and gate.json. Those of model/ are at the top of the repository."""
    prefix = "" if folder == run.model else f"{folder.relative_to(run.path).as_posix()}/"
    for name in sorted(gate["files"]):
        yield Upload(f"{prefix}{name}", folder / name)
    kept = {key: value for key, value in gate.items() if with_rows or key not in OF_ROWS}
    yield Upload(f"{prefix}gate.json", (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode())


def _evaluation(run: RunDir, split: str, with_rows: bool) -> Iterator[Upload]:
    """Yield the files of an evaluated split."""
    folder = run.evaluation(split)
    for path in sorted(folder.glob("[!.]*")):
        if path.is_dir() or path.name == "report.html":
            continue
        if with_rows or path.name in WITHOUT_ROWS or path.suffix in FIGURES:
            yield Upload(f"evaluation/{split}/{path.name}", path)
    if (folder / "predictions.jsonl").is_file():
        with tempfile.TemporaryDirectory(prefix="rankzero-push-") as scratch:
            page = write_report(run, split, with_rows=with_rows, to=Path(scratch) / "report.html")
            yield Upload(f"evaluation/{split}/report.html", page.read_bytes())


def _check(run: RunDir, upload: Upload) -> None:
    """Refuse a link out of the run, a credential, and a path of this machine.

    Raises:
        DataError: naming the file.
    """
    content, name = upload.content, upload.path.rpartition("/")[2]
    if isinstance(content, Path) and not content.resolve().is_relative_to(run.path.resolve()):
        raise DataError(f"{content} is a link out of the run directory; replace it by the file")
    if not name.endswith(TEXTS) or name in VOCABULARY or upload.bytes > LARGEST_TEXT:
        return
    text = (content.read_bytes() if isinstance(content, Path) else content).decode("utf-8", "replace")
    if redacted(text) != text:
        raise DataError(f"{upload.path} has what looks like a credential in it; nothing is uploaded")
    places = {str(Path.home()), str(run.path.absolute()), str(run.path.resolve()), str(Path.cwd())} - {"/"}
    own = [place for place in sorted(places) if place in text]
    if not own and name.endswith(".json"):
        value = json.loads(text)
        own = [] if shareable(value) == value else ["an absolute path"]
    if own:
        raise DataError(f"{upload.path} names {own[0]}, a place of this machine; nothing is uploaded")
