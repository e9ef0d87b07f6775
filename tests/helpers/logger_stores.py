"""What W&B, MLflow and Trackio have on disk of a run, and TensorBoard, each in the same words."""

from __future__ import annotations

import ast
import csv
import io
import json
import sqlite3
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.tracking import MlflowClient
from PIL import Image
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from wandb.proto.wandb_internal_pb2 import Record

from tests.callbacks.callback_stub import events

Place = tuple[str, int]  # tag and step


@dataclass
class Store:
    """Scalars are in the order in which they were logged; a table is its columns and rows."""

    scalars: dict[Place, list[float]] = field(default_factory=lambda: defaultdict(list))
    tables: dict[Place, tuple[list[str], list[list[Any]]]] = field(default_factory=dict)
    images: dict[Place, np.ndarray] = field(default_factory=dict)
    histograms: dict[Place, list[int]] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)


def wandb_store(folder: Path) -> Store:
    """Of a run of W&B that was offline."""
    store = Store()
    [log] = folder.glob("wandb/offline-run-*/*.wandb")
    files = log.parent / "files"
    for record in _wandb_records(log):
        for item in record.config.update:
            store.hyperparameters[item.key] = json.loads(item.value_json)
        row: dict[str, Any] = {}
        for item in record.history.item:
            *outer, last = item.nested_key
            inner = row
            for key in outer:
                inner = inner.setdefault(key, {})
            inner[last] = json.loads(item.value_json)
        row = {key: value for key, value in row.items() if not key.startswith("_")}
        step = row.pop("trainer/global_step", None)
        for tag, value in row.items():
            if not isinstance(value, dict):
                store.scalars[tag, step].append(value)
            elif value["_type"] == "table-file":
                table = json.loads((files / value["path"]).read_text())
                store.tables[tag, step] = table["columns"], table["data"]
            elif value["_type"] == "histogram":
                store.histograms[tag, step] = value["values"]
            else:
                [path] = value["filenames"]
                store.images[tag, step] = _pixels(files / path)
    store.hyperparameters.pop("_wandb", None)
    return store


def _wandb_records(path: Path) -> Iterator[Record]:
    """A log of LevelDB's kind: blocks of 32 KiB, in which a record is in one or more fragments."""
    data, at, fragments = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        fragments += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last
            record = Record()
            record.ParseFromString(fragments)
            fragments = b""
            yield record


def mlflow_store(folder: Path) -> Store:
    """Of the one run in its database."""
    store = Store()
    client = MlflowClient(f"sqlite:///{folder.absolute() / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("rlsgd").experiment_id])
    assert run.info.status == "FINISHED"
    store.hyperparameters = dict(run.data.params)
    for tag in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, tag):
            store.scalars[tag, metric.step].append(metric.value)
    artifacts = folder / "mlartifacts" / run.info.run_id / "artifacts"
    for path in artifacts.rglob("*.csv"):
        with path.open(newline="") as file:
            columns, *rows = csv.reader(file)
        tag, step = path.parent.relative_to(artifacts).as_posix(), path.stem.removeprefix("step-")
        store.tables[tag, int(step)] = columns, [[*row[:3], float(row[3])] for row in rows]
    for path in artifacts.glob("images/*.png"):
        tag, _, step, *_ = path.name.split("+")
        store.images[tag.replace("~", "/"), int(step)] = _pixels(path)
    return store


def trackio_store(folder: Path) -> Store:
    """Of the one run in its database."""
    store = Store()
    with sqlite3.connect(folder / "trackio/rlsgd.db") as database:
        [(config,)] = database.execute("SELECT config FROM configs").fetchall()
        rows = database.execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall()
    store.hyperparameters = {
        key: value for key, value in json.loads(config).items() if not key.startswith("_")
    }
    for step, metrics in rows:
        for tag, value in json.loads(metrics).items():
            if not isinstance(value, dict):
                store.scalars[tag, step].append(value)
            elif value["_type"] == "trackio.table":
                records = value["_value"]
                store.tables[tag, step] = list(records[0]), [list(r.values()) for r in records]
            elif value["_type"] == "trackio.histogram":
                store.histograms[tag, step] = value["values"]
            else:
                store.images[tag, step] = _pixels(folder / "trackio/media" / value["file_path"])
    return store


def tensorboard_store(folder: Path) -> Store:
    """What the event files hold; a table is the Markdown that was made of it."""
    store = Store()
    found = events(folder)
    for tag in found.Tags()["scalars"]:
        for event in found.Scalars(tag):
            store.scalars[tag, event.step].append(event.value)
    for tag in found.Tags()["tensors"]:
        for event in found.Tensors(tag):
            [text] = event.tensor_proto.string_val
            place = tag.removesuffix("/text_summary"), event.step
            store.tables[place] = [], [[text.decode()]]
    for tag in found.Tags()["images"]:
        for event in found.Images(tag):
            image = Image.open(io.BytesIO(event.encoded_image_string))
            store.images[tag, event.step] = np.asarray(image.convert("RGB"))
    for tag in found.Tags()["histograms"]:
        for event in found.Histograms(tag):
            store.histograms[tag, event.step] = [int(n) for n in event.histogram_value.bucket]
    metadata = found.summary_metadata["_hparams_/session_start_info"]
    data = HParamsPluginData.FromString(metadata.plugin_data.content)
    for name, value in data.session_start_info.hparams.items():
        store.hyperparameters[name] = getattr(value, value.WhichOneof("kind"))
    return store


def plain(value: Any) -> Any:
    """A hyperparameter without what a store does to it: texts of numbers, tuples that are lists."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))
