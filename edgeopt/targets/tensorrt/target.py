"""The TensorRT target: a bundle from which a device builds its engine, and the engine itself where TensorRT is here."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
import onnx_ir as ir
from pydantic import field_validator, model_validator

from edgeopt import digest
from edgeopt.errors import TargetError
from edgeopt.formats.onnx import load, spec
from edgeopt.graph.constraints import Constraints
from edgeopt.graph.quantization import QuantizedGraph
from edgeopt.runtimes import tensorrt as runtime
from edgeopt.targets.base import Target
from edgeopt.targets.onnx_file import serialised
from edgeopt.targets.tensorrt import bundle, realise, versions
from edgeopt.targets.tensorrt.table import own_table
from edgeopt.targets.tensorrt.verdict import FileVerdict, check_file
from edgeopt.targets.tensorrt.versions import Version
from edgeopt.targets.tensorrt.write import (
    check_operators,
    dequantized_scales,
    write_float,
    write_half,
    write_model,
)
from edgeopt.types import NO_METADATA, Artifact, Engine, Metadata, Realised, Signature


class TensorrtTarget(Target):
    """A bundle folder for TensorRT.

    Args:
        version: of TensorRT, as ``"10.3"``; with neither this nor ``jetpack``, 10.3.
        jetpack: of the Jetson, as ``"6.2"``, instead of a version.
        dla: also for the Deep Learning Accelerator of a Jetson: a float model with a calibration cache.
        fp16: also the model in float16 throughout, to compare with.
    """

    name: ClassVar[str] = "tensorrt"
    constraints: ClassVar[Constraints] = Constraints(symmetric_activations=True)
    own_grids: ClassVar[str | None] = "zero point 0, from the same ranges"

    version: str | None = None
    jetpack: str | None = None
    dla: bool = False
    fp16: bool = False

    @field_validator("version", "jetpack", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f'write the version in quotes, as "{value}": without them YAML reads 10.10 as 10.1')
        return value

    @model_validator(mode="after")
    def _known(self) -> TensorrtTarget:
        if self.version is not None and self.jetpack is not None:
            raise ValueError("give 'version' or 'jetpack', not both: a JetPack has one TensorRT")
        self.release()  # UnknownVersionError is a ValueError: its message names the nearest
        return self

    def release(self) -> Version:
        """What is built for."""
        if self.jetpack is not None:
            return versions.jetpack(self.jetpack, dla=self.dla)
        default = ".".join(map(str, versions.DEFAULT))
        return versions.tensorrt(self.version if self.version is not None else default, dla=self.dla)

    def own_graph(self, graph: QuantizedGraph) -> QuantizedGraph:
        """Symmetric activation grids from the shared ranges, where TensorRT rounds and nowhere else."""
        return own_table(graph)

    def check(self, model: ir.Model) -> None:
        """Refuse a canonical graph with an operator that the release does not read: UnsupportedOperator."""
        check_operators(model, self.release())

    def lower(self, graph: QuantizedGraph, out: Path, metadata: Metadata = NO_METADATA) -> Artifact:
        """Write the bundle into ``out``; its samples come with ``finish``.

        Raises:
            UnsupportedOperator: one that the release does not read.
            TargetError: a weight that does not fit into fp16, or a file that breaks a rule of acceptance.
        """
        release, graph = self.release(), own_table(graph)
        gpu = Version(release.release, release.jetpack)
        model = write_model(graph, release, metadata)
        verdicts = {bundle.MODEL: _written(out / bundle.MODEL, serialised(model), gpu)}
        if self.fp16:
            half = serialised(write_half(graph, release))
            verdicts[bundle.HALF_MODEL] = _written(out / bundle.HALF_MODEL, half, gpu)
        if release.dla:
            plain = serialised(write_float(graph, release, metadata))
            verdicts[bundle.DLA_MODEL] = _written(out / bundle.DLA_MODEL, plain, release)
            cache = bundle.calibration_cache(dequantized_scales(graph))
            (out / runtime.CALIBRATION).write_text(cache, encoding="ascii")
        bundle.write_rules(out, verdicts)
        bundle.write_confidence(out, metadata.confidence)
        bundle.write_build(out, release, half=self.fp16)
        stored = load(out / bundle.MODEL).graph
        signature = Signature(inputs=tuple(map(spec, stored.inputs)), outputs=tuple(map(spec, stored.outputs)))
        names = [one.name for one in signature.inputs]
        bundle.write_readme(out, release, verdicts[bundle.MODEL], half=self.fp16, inputs=names)
        return Artifact(
            target=self.name,
            path=".",
            digest=digest.of_path(out),
            size_bytes=digest.size_bytes(out / bundle.MODEL),
            signature=signature,
            preprocess=metadata.preprocess,
            confidence=metadata.confidence,
            realised=self.realised(out, graph),
            emulation=bundle.MODEL,
            not_built=f"build it on the device: {bundle.BUILD} or {bundle.RUNNER} in the bundle, for {release.label}",
        )

    def realised(self, path: Path, graph: QuantizedGraph) -> Realised:
        """What the bundle's file holds: which operators stand between integers, and which rules of speed it breaks."""
        file = path / bundle.MODEL
        release = self.release()
        verdict = check_file(file, Version(release.release, release.jetpack))
        broken = [
            f"rule {one.id} broken at {len(one.nodes)} places: {', '.join(one.nodes[:3])}"
            for one in verdict.rules
            if one.kind == "speed" and one.nodes
        ]
        return realise.realised(file, graph, leftovers=tuple(broken))

    def finish(self, folder: Path, artifact: Artifact, samples: Iterable[Mapping[str, npt.NDArray[Any]]]) -> Artifact:
        """Save samples and expected outputs; build the engine and compare it, where TensorRT and a GPU are here.

        Raises:
            TargetError: TensorRT refuses the file, or builds no engine.
        """
        bundle.write_samples(folder, samples)
        changes: dict[str, Any] = {}
        if reason := runtime.missing():
            changes["not_built"] = f"{reason}; {artifact.not_built}"
        elif (release := self.release()).major != int(runtime.version().split(".")[0]):
            changes["not_built"] = f"TensorRT {runtime.version()} is here, and the bundle is for {release.label}"
        else:
            changes = self._build(folder, artifact)
        return artifact.model_copy(update={**changes, "digest": digest.of_path(folder)})

    def _build(self, folder: Path, artifact: Artifact) -> dict[str, Any]:
        cache = _timing_cache()
        began = time.monotonic()
        try:
            layers = runtime.build(
                folder / (bundle.DLA_MODEL if self.dla else bundle.MODEL),
                folder / runtime.PLAN,
                timing_cache=cache,
                dla=self.dla,
                calibration=folder / runtime.CALIBRATION if self.dla else None,
            )
            seconds = time.monotonic() - began
            found = runtime.compare(folder / runtime.PLAN, folder / runtime.SAMPLES)
        except (ValueError, RuntimeError) as error:
            raise TargetError(
                str(error), where="target tensorrt", hint=f"The verdict of every rule is in {bundle.RULES}."
            ) from error
        (folder / runtime.TIMING_CACHE).write_bytes(cache.read_bytes())
        asked = artifact.realised
        return {
            "not_built": None,
            "engine": Engine(
                path=runtime.PLAN,
                runtime=f"TensorRT {runtime.version()}",
                seconds=round(seconds, 3),
                sqnr_db=found.sqnr_db,
                samples=found.samples,
                median_ms=found.median_ms,
            ),
            "realised": Realised(
                int8_ops=layers.int8,
                float_ops=layers.floating,
                other_ops=layers.other,
                leftovers=asked.leftovers if asked is not None else (),
                unasked_float=_lost(asked, layers),
            ),
        }


def _written(path: Path, data: bytes, release: Version) -> FileVerdict:
    """Write a model and hold it against the rules.

    Raises:
        TargetError: it breaks one of acceptance.
    """
    path.write_bytes(data)
    verdict = check_file(data, release)
    for rule in verdict.rules:
        if rule.kind == "acceptance" and rule.verdict == "broken":
            raise TargetError(
                f"{release.label} does not take {path.name}: {rule.text} Not so: {', '.join(rule.nodes[:3])}",
                where=f"target tensorrt, rule {rule.id}",
                hint=rule.repair,
            )
    return verdict


def _lost(asked: Realised | None, layers: runtime.Layers) -> tuple[str, ...]:
    """An engine without any int8 layer of a model that has int8 operators lost what was asked."""
    if asked is None or not asked.int8_ops or layers.int8:
        return () if asked is None else asked.unasked_float
    return ("every layer of the engine",)


def _timing_cache() -> Path:
    """One per release of TensorRT, kept between conversions."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "edgeopt" / f"tensorrt-{runtime.version()}.timing"
