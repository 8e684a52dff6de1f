"""The bundle on disk: its manifest, and the checks that refuse a damaged one by name.

Needs neither torch nor onnx: a machine that only runs engines opens bundles with this file alone.
The pipeline writes bundles (`pipeline/workspace/write_bundle.py`); everything else opens them here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field
from pydantic import ValidationError as PydanticValidationError

from kvfold.plugins.contract.errors import BundleError
from kvfold.plugins.contract.fold_plan import FoldPlan, describe_errors
from kvfold.plugins.contract.record import Record
from kvfold.plugins.contract.version import VERSION

MANIFEST = "manifest.json"
CONFIG = "config.json"
FOLD_PLAN = "fold.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
WEIGHTS = "weights.json"  # which files the weights are read from, by content
SCALES = "scales.safetensors"
QUANTIZATION = "quantization.json"

Verification = Literal["size", "full"]
RecordType = TypeVar("RecordType", bound=Record)


def _inside(name: str) -> str:
    """A path that cannot lead out of the bundle's folder, whoever wrote the manifest."""
    path = PurePosixPath(name)
    if str(path) != name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"{name!r:.80} is no path inside the bundle")
    return name


FileName = Annotated[str, AfterValidator(_inside)]


class FileRecord(Record):
    """One file of a bundle.

    Attributes:
        size: bytes.
        sha256: of the content, hexadecimal.
        mtime_ns: modification time when recorded; while it stays the same the content is not hashed again.
    """

    size: int = Field(ge=0)
    sha256: str
    mtime_ns: int


class StageRecord(Record):
    """One finished stage.

    Attributes:
        hash: of everything that decides the stage's result; another hash means it must run again.
        files: what it wrote, by path inside the bundle.
        seconds: how long it took.
    """

    hash: str
    files: dict[FileName, FileRecord]
    seconds: float = Field(ge=0)


class Manifest(Record):
    """What a bundle holds: the finished stages, and the tools that made them.

    Attributes:
        tools: versions of the packages that took part.
        stages: finished stages whose files belong together.
        seconds: how long each stage last took, kept when its record goes; progress estimates from it.
    """

    kvfold_version: str
    tools: dict[str, str] = Field(default_factory=dict)
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)

    @property
    def files(self) -> dict[str, FileRecord]:
        """Every recorded file, by path inside the bundle."""
        return {name: record for stage in self.stages.values() for name, record in stage.files.items()}


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: `file` and `directory` hand out paths only after checking them."""

    root: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of a recorded file whose content is the recorded one.

        Raises:
            BundleError: the bundle has no such file, or its content changed.
        """
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(
                f"{self.root} holds no {name}: the stage that writes it has not finished; "
                f"run `kvfold build RECIPE --output {self.root}` to continue"
            )
        check_file(self.root, name, record)
        return self.root / name

    def directory(self, name: str) -> Path:
        """Path of a folder (`engine/cpu`) after each of its recorded files was checked.

        Raises:
            BundleError: no file is recorded under it, or one of them changed.
        """
        names = [file for file in self.manifest.files if file.startswith(f"{name}/")]
        if not names:
            built = sorted({file.split("/")[1] for file in self.manifest.files if file.startswith("engine/")})
            raise BundleError(
                f"{self.root} holds no {name} (engines built: {', '.join(built) or 'none'}); "
                f"name one of these as the target, or run `kvfold build RECIPE --output {self.root}`"
            )
        for file in names:
            self.file(file)
        return self.root / name

    @cached_property
    def plan(self) -> FoldPlan:
        """The FoldPlan of `fold.json`; raises BundleError where it holds none."""
        return read_record(self.file(FOLD_PLAN), FoldPlan)


def open_bundle(path: str | Path, verify: Verification = "size") -> Bundle:
    """Open a bundle and refuse a damaged one.

    Args:
        path: the bundle's folder.
        verify: `size` checks that every recorded file is there at its full length, and hashes a file
            when it is asked for and its modification time changed; `full` hashes every file now.

    Raises:
        BundleError: no bundle there, unreadable manifest, another kvfold version, or a file that is missing,
            truncated or changed; the message names the file and what to run.
    """
    root = Path(path)
    manifest = read_manifest(root)
    if manifest is None:
        raise BundleError(
            f"{root} is no bundle: it has no {MANIFEST}; make one with `kvfold build RECIPE --output {root}`"
        )
    if manifest.kvfold_version != VERSION:
        raise BundleError(
            f"{root} was written by kvfold {manifest.kvfold_version}, this is {VERSION}; "
            f"run `kvfold build RECIPE --output {root}` to write it anew, or install that version"
        )
    for name, record in manifest.files.items():
        check_size(root, name, record)
        if verify == "full":
            check_content(root, name, record)
    return Bundle(root, manifest)


def read_record(path: Path, kind: type[RecordType]) -> RecordType:
    """A JSON file of a bundle as the record that kvfold writes there.

    Raises:
        BundleError: it cannot be read, or holds something else; each wrong key is named.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except PydanticValidationError as error:
        raise BundleError(
            f"{describe_errors(str(path), error)}\ndelete it and run `kvfold build RECIPE` to write it again"
        ) from error


def read_manifest(root: Path) -> Manifest | None:
    """The manifest of a bundle, or None where there is none.

    Raises:
        BundleError: it is there but cannot be read or parsed.
    """
    try:
        return Manifest.model_validate_json((root / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{root / MANIFEST} cannot be read ({error.strerror}); check the path") from error
    except PydanticValidationError as error:
        raise BundleError(
            f"{describe_errors(str(root / MANIFEST), error)}\n"
            f"delete {root} and run `kvfold build RECIPE --output {root}`"
        ) from error


def check_file(root: Path, name: str, record: FileRecord) -> None:
    """Check a file's size, and its content unless its modification time is the recorded one."""
    check_size(root, name, record)
    if (root / name).stat().st_mtime_ns != record.mtime_ns:
        check_content(root, name, record)


def check_size(root: Path, name: str, record: FileRecord) -> None:
    """Refuse a file that is missing or has another length than recorded."""
    path = root / name
    again = f"run `kvfold build RECIPE --output {root}` to write it again"
    try:
        present = path.is_file()
    except OSError as error:
        raise BundleError(f"{path!s:.200} cannot be read ({error.strerror}); {again}") from error
    if not present:
        raise BundleError(f"{path} is missing; {again}")
    size = path.stat().st_size
    if size != record.size:
        what = "truncated" if size < record.size else "too long"
        raise BundleError(f"{path} is {what}: {size} bytes, recorded {record.size}; {again}")


def check_content(root: Path, name: str, record: FileRecord) -> None:
    """Refuse a file whose content is not the recorded one."""
    digest = hash_file(root / name)
    if digest != record.sha256:
        raise BundleError(
            f"{root / name} is corrupted: sha256 is {digest[:12]}..., recorded {record.sha256[:12]}...; "
            f"run `kvfold build RECIPE --output {root}` to write it again"
        )


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
