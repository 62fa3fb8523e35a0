"""Python and the packages: lower bounds, what is known to be bad, and whether the installed ones fit each other."""

from __future__ import annotations

import platform
import sys
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from launch.doctoring.check import Check, Findings

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
OLDEST_PYTHON = (3, 11)

# Told also where no requirement of ours asks for them.
OPTIONAL = {
    "deepspeed": "configs zero1, zero2, zero3",
    "onnx": "ONNX export",
    "onnxruntime": "ONNX and int8 artifacts",
    "tensorboard": "track: tensorboard",
}


@dataclass(frozen=True)
class KnownBad:
    """A range of versions that must not be used (`severe`) or that does not serve here."""

    package: str
    versions: str
    why: str
    fix: str
    severe: bool = True


KNOWN_BAD = (
    KnownBad("torch", "<2.13", "torch.load with weights_only can be made to run code", "pip install 'torch>=2.13'"),
    KnownBad("transformers", "<5.10.1", "has published vulnerabilities", "pip install 'transformers>=5.10.1'"),
    KnownBad("onnx", "<1.21.0", "external data of a graph may read any file", "pip install 'onnx>=1.21'"),
    KnownBad("deepspeed", "<0.15.1", "has published vulnerabilities", "pip install 'rankzero[deepspeed]'"),
    KnownBad(
        "optimum-onnx",
        "<=0.1.0",
        "asks for transformers < 4.58; rankzero exports without it",
        "pip uninstall optimum-onnx",
        severe=False,
    ),
)


def checks() -> list[Check]:
    """Python, packages and their combination; nothing is imported but metadata."""
    return [_python(), _packages(), _vulnerable(), _combination()]


def installed(package: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def requirements() -> list[tuple[Requirement, bool]]:
    """What rankzero asks for, and whether it is optional: from the checkout, or from the installed distribution."""
    if PROJECT.is_file():
        project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {})
        lines = [(line, False) for line in project["dependencies"]]
        lines += [(line, True) for extra in extras if extra != "test" for line in extras[extra]]
        return [(Requirement(line), optional) for line, optional in lines]
    found = [Requirement(line) for line in metadata.requires("rankzero") or []]
    return [(r, not _always(r)) for r in found if _always(r) or not _for_extra(r, "test")]


def _always(requirement: Requirement) -> bool:
    return _for_extra(requirement, "")


def _for_extra(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _python() -> Check:
    findings = Findings("python")
    findings.fact(f"{platform.python_version()} at {sys.executable}")
    if sys.version_info[:2] < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        findings.fail(f"older than {wanted}", f"make an environment with Python {wanted} or newer (make setup)")
    return findings.check()


def _packages() -> Check:
    findings = Findings("packages")
    wanted = requirements()
    known = {canonicalize_name(requirement.name) for requirement, _ in wanted}
    for requirement, optional in wanted:
        version = installed(requirement.name)
        purpose = OPTIONAL.get(requirement.name, "")
        if version is None and optional:
            findings.fact(f"{requirement.name} not installed" + (f" (only for {purpose})" if purpose else ""))
        elif version is None:
            findings.fail(f"{requirement.name} is missing", f"pip install '{_plain(requirement)}'")
        elif version not in _allowing_all(requirement.specifier):
            text = f"{requirement.name} {version} is not {requirement.specifier}"
            findings.fail(text, f"pip install '{_plain(requirement)}'")
        else:
            findings.fact(f"{requirement.name} {version}")
    for name, purpose in OPTIONAL.items():
        if name not in known:
            version = installed(name)
            findings.fact(f"{name} {version}" if version else f"{name} not installed (only for {purpose})")
    return findings.check()


def _vulnerable() -> Check:
    findings = Findings("known bad versions")
    for bad in KNOWN_BAD:
        version = installed(bad.package)
        if version is not None and version in _allowing_all(SpecifierSet(bad.versions)):
            say = findings.fail if bad.severe else findings.warn
            say(f"{bad.package} {version} ({bad.versions}): {bad.why}", bad.fix)
    return findings.check(f"none of {', '.join(bad.package for bad in KNOWN_BAD)}")


def _combination() -> Check:
    """What `pip check` would say of the packages that rankzero stands on."""
    findings = Findings("package combination")
    seen = 0
    for ours, _ in requirements():
        try:
            lines = metadata.requires(ours.name) or []
        except metadata.PackageNotFoundError:
            continue
        for line in lines:
            theirs = Requirement(line)
            version = installed(theirs.name) if _always(theirs) else None
            if version is None:  # of an extra or another platform, or a missing one: pip's business
                continue
            seen += 1
            if version not in _allowing_all(theirs.specifier):
                text = f"{ours.name} {installed(ours.name)} wants {_plain(theirs)}, {version} is installed"
                findings.fail(text, f"pip install '{_plain(theirs)}' (or another {ours.name})")
    return findings.check(f"{seen} requirements of these packages hold")


def _allowing_all(specifier: SpecifierSet) -> SpecifierSet:
    """Development builds (2.14.0.dev…, 2.13.0a0+git…) are compared like others."""
    return SpecifierSet(str(specifier), prereleases=True)


def _plain(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"
