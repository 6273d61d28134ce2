"""What a bench found: with what it depends on, kept as JSON after each case and shown as lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archc import __version__
from archc.kernels.bench.timing import Figure, Ratio, Result

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class GpuBench:
    """Everything that a run found. surroundings: device and versions; measured: what the device can do at most."""

    spec: str
    target: str
    surroundings: dict[str, str]
    measured: dict[str, float] = field(default_factory=dict)
    selftests: dict[str, Any] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    geometric_means: dict[str, float] = field(default_factory=dict)
    budget: float = 0.0
    seconds: float = 0.0

    def take_means(self) -> None:
        """The geometric means of the ratios so far, by what was done and the peer."""
        groups: dict[str, list[float]] = {}
        for result in self.results:
            for peer, ratio in result.ratios.items():
                groups.setdefault(f"{result.group}, {result.what}: {peer}", []).append(ratio.median)
        self.geometric_means = {
            name: math.exp(sum(map(math.log, values)) / len(values)) for name, values in groups.items()
        }

    def save(self, path: Path) -> None:
        """Write all of it."""
        part = path.with_name(path.name + ".part")  # a run that is killed while it writes loses nothing
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        part.replace(path)


def load(path: Path) -> GpuBench:
    """What `save` wrote."""
    found = GpuBench(**json.loads(path.read_text(encoding="utf-8")))
    results: list[Any] = found.results
    found.results = [Result(**given) for given in results]
    for result in found.results:
        sides: dict[str, Any] = result.sides
        ratios: dict[str, Any] = result.ratios
        result.sides = {name: Figure(**given) for name, given in sides.items()}
        result.ratios = {name: Ratio(**given) for name, given in ratios.items()}
    return found


def lines(found: GpuBench) -> Iterator[str]:
    """What a terminal shows of a run."""
    yield ", ".join(f"{name} {value}" for name, value in found.surroundings.items())
    yield (
        f"copy {found.measured['copy_bandwidth'] / 1e9:.0f} GB/s, "
        f"matrices {found.measured['matrix_rate'] / 1e12:.1f} TFLOP/s"
    )
    for result in found.results:
        text = f"{result.group}  {result.case}  {result.what}"
        for name, figure in result.sides.items():
            text += f"  {name} {figure.seconds * 1e3:.3f} ms"
            if name in result.ratios:
                text += f" ({result.ratios[name].median:.2f} times ours)"
        if result.bandwidth_share is not None:
            text += f"  {result.bandwidth_share:.0%} of the bandwidth"
        yield text + "".join(f"  [{name}: {why}]" for name, why in result.why_not.items())
    for name, mean in found.geometric_means.items():
        yield f"geometric mean, {name}: {mean:.2f} times ours"


def surroundings_of(device: torch.device) -> dict[str, str]:
    """The device and the versions of everything that runs on it."""
    import platform

    import torch

    gpu = device.type == "cuda"
    found = {"device": torch.cuda.get_device_name(device) if gpu else "cpu: no figures, a trial of the bench"}
    if gpu:
        found["cuda"] = str(torch.version.cuda)
    found |= {"python": platform.python_version(), "archc": __version__}
    for package in ("torch", "triton", "flash-linear-attention", "flash-attn", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    found["torch"] = torch.__version__
    return found
