"""Write a bundle so that a kill at any moment leaves one that resumes.

A stage writes aside, into `.staging/`. Committing it takes the records of the stage and of all that
was made from its old files out of the manifest, renames the new files into place, then records the
stage. So at any moment the manifest names only files that belong together; what a kill leaves half
done is unrecorded and runs again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kvfold.plugins.contract.errors import BundleError
from kvfold.plugins.contract.version import VERSION
from kvfold.runtime.bundle import (
    CONFIG,
    MANIFEST,
    FileRecord,
    Manifest,
    StageRecord,
    check_file,
    hash_file,
    read_manifest,
)

LOCK = ".lock"
STAGING = ".staging"


class BundleWriter:
    """The one writer of a bundle; `open_writer` makes it and holds the lock."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest

    def staging(self, stage: str) -> Path:
        """An empty folder for a stage to write into."""
        folder = self.root / STAGING / stage
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def why_stale(self, stage: str, stage_hash: str) -> str | None:
        """Why a stage must run; None when its recorded files are there and still the right ones."""
        record = self.manifest.stages.get(stage)
        if record is None:
            return "not done yet"
        if record.hash != stage_hash:
            return "its settings, inputs or code changed"
        try:
            for name, file in record.files.items():
                check_file(self.root, name, file)
        except BundleError as error:
            return str(error).split(";", 1)[0]
        return None

    def commit(
        self,
        stage: str,
        record: StageRecord,
        forget: set[str],
        tools: Mapping[str, str],
        folders: Iterable[str] = (),
    ) -> None:
        """Move a stage's staged files into the bundle and record it.

        Args:
            stage: its name.
            record: its hash, staged files (`record_files`) and duration.
            forget: the stages made from its files; their records go when a file's content changed.
            tools: versions of the tools that made it, for the manifest.
            folders: that are its own. What lies there and is not recorded goes: the record of an earlier run
                may be gone already, for a change of what it was made from.
        """
        old = self.manifest.stages.get(stage)
        if old is None or _digests(old) != _digests(record):
            dropped = {stage, *forget}
            self._write_manifest({name: r for name, r in self.manifest.stages.items() if name not in dropped})
            for name in old.files.keys() - record.files.keys() if old else ():
                (self.root / name).unlink(missing_ok=True)
        for path in [path for folder in folders for path in (self.root / folder).rglob("*")]:
            if path.is_file() and path.relative_to(self.root).as_posix() not in record.files:
                path.unlink()
        for name in record.files:
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.root / STAGING / stage / name).replace(target)
            sync(target.parent)
        self.manifest = self.manifest.model_copy(
            update={"tools": dict(tools), "seconds": self.manifest.seconds | {stage: record.seconds}}
        )
        self._write_manifest({**self.manifest.stages, stage: record})
        shutil.rmtree(self.root / STAGING / stage)

    def _write_manifest(self, stages: dict[str, StageRecord]) -> None:
        self.manifest = self.manifest.model_copy(update={"stages": stages})
        aside = self.root / STAGING / MANIFEST
        aside.write_text(self.manifest.model_dump_json(indent=1) + "\n")
        sync(aside)
        aside.replace(self.root / MANIFEST)
        sync(self.root)


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Flush every file under a staging folder to disk and record it by its relative path."""
    records = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sync(path)
        status = path.stat()
        records[path.relative_to(folder).as_posix()] = FileRecord(
            size=status.st_size, sha256=hash_file(path), mtime_ns=status.st_mtime_ns
        )
    return records


@contextmanager
def open_writer(root: Path) -> Iterator[BundleWriter]:
    """Open a bundle for writing, making it where there is none, and lock it.

    A bundle of another kvfold version starts anew: the files that its manifest names are removed.

    Raises:
        BundleError: the path cannot be written, is a model's folder, another process writes it, or its
            manifest is damaged.
    """
    if root.exists() and not root.is_dir():
        raise BundleError(f"{root} is a file, not a bundle's folder; choose another --output")
    try:
        root.mkdir(parents=True, exist_ok=True)
        if (root / CONFIG).exists() and not (root / MANIFEST).exists():
            raise BundleError(
                f"{root} has a {CONFIG} and no {MANIFEST}: it is a model's folder, whose files a bundle "
                "would replace; choose another --output, or delete the folder if it was a bundle"
            )
        lock = FileLock(root / LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BundleError(
            f"{root} is being written by another kvfold process; wait for it, or choose another --output"
        ) from error
    except OSError as error:
        raise BundleError(
            f"{root} cannot be written ({error.strerror}); fix its permissions or choose another --output"
        ) from error
    try:
        shutil.rmtree(root / STAGING, ignore_errors=True)
        with name_disk_errors(root):
            (root / STAGING).mkdir()
            manifest = _start_from(root)
        yield BundleWriter(root, manifest)
        shutil.rmtree(root / STAGING, ignore_errors=True)
    finally:
        lock.release()


@contextmanager
def name_disk_errors(root: Path) -> Iterator[None]:
    """Turn an OSError (disk full, no permission, something in the way) into a BundleError with its path."""
    try:
        yield
    except OSError as error:
        path = error.filename2 or error.filename or root
        raise BundleError(
            f"{path} cannot be read or written ({error.strerror or error}); free disk space, fix permissions "
            f"or remove what is in the way, then run the same command again: finished stages are kept"
        ) from error


def _start_from(root: Path) -> Manifest:
    """The manifest to go on from; a kill amid the removal leaves the old one, so that it is removed again."""
    manifest = read_manifest(root)
    if manifest is not None and manifest.kvfold_version == VERSION:
        return manifest
    for name in manifest.files if manifest else ():
        (root / name).unlink(missing_ok=True)
    return Manifest(kvfold_version=VERSION)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digests(record: StageRecord) -> dict[str, str]:
    return {name: file.sha256 for name, file in record.files.items()}
