"""`rlsgd push FOLDER NAME`: an exported model to the Hugging Face hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rlsgd.core.command import PlainParser, run_command
from rlsgd.core.named_files import check_model_folder
from rlsgd.core.stored import StoredTensors

DESCRIPTION = """\
Upload a model folder, such as the one that HFExport writes, to the Hugging Face hub: weights,
config, tokenizer and model card, no other file. The token is that of `hf auth login` or HF_TOKEN.
"""
SUFFIXES = {".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".md"}


def main(argv: Sequence[str]) -> int:
    """Run `rlsgd push` and return its exit status."""
    parser = PlainParser(prog="rlsgd push", description=DESCRIPTION)
    parser.add_argument("FOLDER", help="model folder: config.json and safetensors")
    parser.add_argument("NAME", help="owner/name on the hub")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--dry_run", action="store_true", help="print what would be uploaded; no network"
    )
    return run_command("push", argv, parser, _run)


def _run(given: argparse.Namespace) -> None:
    files = files_to_push(Path(given.FOLDER), given.NAME)
    size = sum(file.stat().st_size for file in files)
    for file in files:
        print(f"{file.stat().st_size:>15,}  {file.name}")
    what = f"{len(files)} files, {size:,} bytes, to https://huggingface.co/{given.NAME}"
    if given.dry_run:
        print(f"would upload {what}")
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(given.NAME, private=given.private, exist_ok=True)
        api.upload_folder(
            repo_id=given.NAME,
            folder_path=given.FOLDER,
            allow_patterns=[file.name for file in files],
            commit_message="Upload by rlsgd push",
        )
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"NAME {given.NAME}: the hub refused ({reason}); log in with `hf auth login` as who "
            "may write there"
        ) from error
    print(f"uploaded {what}")


def files_to_push(folder: Path, name: str) -> list[Path]:
    """The files of a model folder that go to the hub, by name.

    Raises:
        ValueError: the folder is no whole model, or the name is not one of the hub's.
    """
    flag = f"FOLDER {folder}"
    if not (folder / "config.json").is_file():
        raise ValueError(f"{flag}: has no config.json; name a folder that HFExport wrote")
    try:
        check_model_folder(folder)
        shards = set(StoredTensors.open(folder).files.values())
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{flag}: {error}") from error
    if missing := sorted(shard.name for shard in shards if not shard.is_file()):
        raise ValueError(f"{flag}: its index names {missing[0]}, which is not there")
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"NAME {name}: {error}") from error
    if name.count("/") != 1:
        raise ValueError(f"NAME {name}: write owner/name")
    others = {path for path in folder.iterdir() if path.suffix in SUFFIXES - {".safetensors"}}
    return sorted((path for path in shards | others if path.is_file()), key=lambda path: path.name)
