"""The peers, and their environments: one each, with the pinned packages of requirements/.

A package that is not listed there, torch for example, is that of rankzero's own environment, which all peers see.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REQUIREMENTS = Path(__file__).parent / "requirements"


@dataclass(frozen=True)
class Peer:
    """Another trainer.

    Attributes:
        jobs: the module of `benchmarks` that does a job, by the name of the job.
        variants: settings that are measured separately, by their name in the table.
        precisions: what it offers on a CPU.
    """

    title: str
    jobs: Mapping[str, str]
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    precisions: tuple[str, ...] = ("bf16", "no")


PEERS = {
    "trainer": Peer(
        "transformers' Trainer",
        dict.fromkeys(("fine_tuning", "ner", "causal", "t5"), "peers.hf_trainer"),
        # "sdpa" is the default (https://huggingface.co/docs/transformers/attention_interface), "eager" may be faster
        {"SDPA": {"attention": "sdpa"}, "eager attention": {"attention": "eager"}},
    ),
    "lightning": Peer("Lightning", dict.fromkeys(("fine_tuning", "causal"), "peers.lightning_fit")),
    "sentence_transformers": Peer("sentence-transformers' CrossEncoder", {"sentences": "peers.cross_encoder"}),
    "joeynmt": Peer("JoeyNMT", {"translation": "peers.joey"}, precisions=("no",)),
    "eole": Peer("eole", {"translation": "peers.eole_train"}),
    "tutorial": Peer(
        "tutorial's loop",
        {"fine_tuning": "baselines.padded_classifier", "translation": "baselines.tutorial"},
    ),
}


def python_of(name: str, folder: Path) -> Path:
    """Return the interpreter of a peer below `folder`. A tutorial's loop needs nothing that rankzero has not."""
    return folder / name / "bin" / "python" if (REQUIREMENTS / f"{name}.txt").exists() else Path(sys.executable)


def set_up(folder: Path, names: Sequence[str]) -> list[str]:
    """Build the environments that `folder` lacks. Return the names of those that cannot be built."""
    failed = []
    for name in names:
        requirements, python = REQUIREMENTS / f"{name}.txt", python_of(name, folder)
        if not requirements.exists() or (folder / name / ".ready").exists():
            continue
        print(f"{name}: {folder / name}", flush=True)
        venv.create(folder / name, with_pip=True, clear=True)
        packages = next((folder / name).glob("lib/python*/site-packages"))
        (packages / "rankzero.pth").write_text("".join(f"{path}\n" for path in sys.path if "-packages" in path))
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*pip, "-r", str(requirements)], capture_output=True, text=True)
        if done.returncode:
            failed.append(name)
            print(f"{name} cannot be installed:\n{done.stderr[-2000:]}", file=sys.stderr)
        else:
            (folder / name / ".ready").touch()
    return failed
