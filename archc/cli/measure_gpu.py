"""`archc bench --gpu`: operations, a layer and a whole model on a GPU, beside peers, in one run."""

from __future__ import annotations

import importlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archc import __version__
from archc.cli.answers import json_value
from archc.kernels.bench import (
    Budget,
    Result,
    Side,
    clock_for,
    compare,
    copies_for,
    copy_bandwidth,
    matrix_rate,
)
from archc.kernels.bench_models import (
    PEERS,
    PROMPT,
    captured,
    our_decoding,
    peer_decoding,
    peer_layer,
    peer_model,
    training_step,
)
from archc.kernels.bench_operations import TIMED, OurSide, PeerSide, Shape, Timed, raw_inputs, spec_of
from archc.spec.diagnostics import MachineError, SpecError

if TYPE_CHECKING:
    import torch

GROUPS = ("operations", "decode", "model", "layer")
REFUSED = "not timed: the self-test failed: "


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the cases are."""

    shapes: tuple[Shape, ...]
    decode: tuple[Shape, ...]
    batch: int  # of a training step
    tokens: int
    batches: tuple[int, ...]  # of decoding
    copied: int  # bytes of the copy that gives the bandwidth
    square: int  # of the product that gives the matrix rate


# The most telling shapes first: a run may end early.
FULL = Scale(
    (
        Shape(2, 16384, 16, 128),
        Shape(4, 2048, 16, 128),
        Shape(1, 8192, 96, 128),
        Shape(4, 4096, 64, 128),
        Shape(8, 2048, 32, 256),
    ),
    (Shape(1, 1, 16, 128), Shape(32, 1, 16, 128), Shape(256, 1, 16, 128)),
    8,
    2048,
    (1, 32, 256),
    2**30,
    8192,
)
TINY = Scale((Shape(1, 40, 2, 16),), (Shape(2, 1, 2, 16),), 1, 20, (2,), 2**16, 64)


@dataclass(slots=True)
class GpuBench:
    """Everything that a run found, with what it depends on."""

    spec: str
    target: str
    surroundings: dict[str, str]
    measured: dict[str, float] = field(default_factory=dict)
    selftests: dict[str, Any] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    geometric_means: dict[str, float] = field(default_factory=dict)
    budget: float = 0.0
    seconds: float = 0.0


def measure_gpu(
    spec: Path,
    *,
    target: str = "h100",
    device: str = "cuda",
    tiny: bool = False,
    seconds: float = 540.0,
    rounds: int = 7,
    groups: Sequence[str] = GROUPS,
    save: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> GpuBench:
    """Time what `groups` names within `seconds`; what does not fit is noted as such.

    save: a file that holds all results so far after each case. device "cpu" and `tiny` are for trying out. Raises
    MachineError without torch or the device, SpecError for mistakes in `spec`.
    """
    try:
        import torch
    except ImportError as error:
        raise MachineError("measuring needs torch: pip install 'archc-compiler[kernels]'") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise MachineError("torch sees no GPU here; --device cpu --tiny tries the bench out without figures")
    with tempfile.TemporaryDirectory(prefix="archc_bench_") as folder, _importable(folder):
        run = _Run(
            spec, target, torch.device(device), TINY if tiny else FULL, seconds, rounds, folder, save, tell
        )
        return run.all(groups)


class _Run:
    """One run: its packages, its self-tests, its results."""

    def __init__(
        self,
        spec: Path,
        target: str,
        device: torch.device,
        scale: Scale,
        seconds: float,
        rounds: int,
        folder: str,
        save: Path | None,
        tell: Callable[[str], None],
    ) -> None:
        import torch

        self.spec, self.target, self.device, self.scale = spec, target, device, scale
        self.rounds, self.folder, self.save, self.tell = rounds, Path(folder), save, tell
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.clock = clock_for(device)
        self.budget = Budget(seconds)
        self.found = GpuBench(str(spec), target, _surroundings(device), budget=seconds)
        self.built: dict[str, str] = {}  # what keeps a package from being timed, empty where nothing does
        self.model: Any = None

    def all(self, groups: Sequence[str]) -> GpuBench:
        """Every case of the groups, the most telling first."""
        self.tell("copy bandwidth and matrix rate")
        self.found.measured = {
            "copy_bandwidth": copy_bandwidth(self.device, self.clock, self.scale.copied),
            "matrix_rate": matrix_rate(self.device, self.clock, self.scale.square, self.dtype),
        }
        for group, case, what, run in self._cases():
            if group not in groups:
                continue
            result = Result(group, case, what)
            self.found.results.append(result)
            if self.budget.left() <= 0:
                result.why_not["case"] = "the time was up"
                continue
            self.tell(f"{group}: {case}, {what} ({self.budget.left():.0f} s left)")
            try:
                run(result)
            except SpecError as error:
                result.why_not["case"] = str(error).splitlines()[0]
            except Exception as error:  # the next case may do
                text = str(error).splitlines()
                result.why_not["case"] = f"{type(error).__name__}: {text[0] if text else ''}"
            self.clock.forget()
            self._keep()
        self._keep()
        return self.found

    def _cases(self) -> Iterator[tuple[str, str, str, Callable[[Result], None]]]:
        """Group, case, what is done, and how."""
        first, *others = TIMED
        scale = self.scale

        def operation(timed: Timed, shape: Shape, back: bool) -> Callable[[Result], None]:
            return lambda result: self._operation(result, timed, shape, back)

        def decode(timed: Timed, shape: Shape, graph: bool) -> Callable[[Result], None]:
            return lambda result: self._decode(result, timed, shape, graph)

        def decoding(batch: int, graph: bool) -> Callable[[Result], None]:
            return lambda result: self._decoding(result, batch, graph)

        both, alone = "forward and backward", "forward"
        for shape in scale.shapes:
            yield "operations", f"{first.name}: {shape}", both, operation(first, shape, True)
        for shape in scale.decode:
            yield "decode", f"{first.name}: {shape}", "one token", decode(first, shape, False)
        yield "model", f"batch {scale.batch}, {scale.tokens} tokens", "training step", self._training
        for batch in scale.batches:
            yield "model", f"batch {batch}", "decoding", decoding(batch, False)
        yield "layer", f"batch {scale.batch}, {scale.tokens} tokens", both, self._layer
        for timed in others:
            for shape in scale.shapes[:3]:
                yield "operations", f"{timed.name}: {shape}", both, operation(timed, shape, True)
        for shape in scale.decode:
            yield "decode", f"{first.name}: {shape}", "one token, CUDA graphs", decode(first, shape, True)
        for batch in scale.batches:
            yield "model", f"batch {batch}", "decoding, CUDA graphs", decoding(batch, True)
        for timed in TIMED:
            for shape in scale.shapes:
                yield "operations", f"{timed.name}: {shape}", alone, operation(timed, shape, False)
        for timed in others:
            for shape in scale.shapes[3:]:
                yield "operations", f"{timed.name}: {shape}", both, operation(timed, shape, True)
            for shape in scale.decode:
                yield "decode", f"{timed.name}: {shape}", "one token", decode(timed, shape, False)

    # -- packages -----------------------------------------------------------------------------------------------

    def _package(self, name: str, source: Any, result: Result) -> bool:
        """Build a package and run its self-test, once; whether it may be timed."""
        from archc.pipeline import build

        if name not in self.built:
            # Heads of a trial are too small for matrix instructions.
            build(source, self.folder / name, target=self.target, allow_torch=self.scale is TINY)
            importlib.invalidate_caches()
            self.tell(f"self-test of {name}")
            self.built[name] = self._selftest(name)
        if self.built[name]:
            result.why_not["case"] = REFUSED + self.built[name]
        return not self.built[name]

    def _selftest(self, name: str) -> str:
        """The first check that fails, or nothing. A package without recurrences has none."""
        if not (self.folder / name / "selftest.py").exists():
            return ""
        selftest = importlib.import_module(f"{name}.selftest")
        self.found.surroundings = selftest.surroundings(self.device) | self.found.surroundings
        checks = list(selftest.run(self.device, dtypes=(self.dtype,), quick=True))
        failed = [str(check) for check in checks if not check.passed]
        forms = sorted({f"{c.kernel} {c.what}: {c.implementation}" for c in checks if c.implementation})
        self.found.selftests[name] = {"checks": len(checks), "failed": failed, "implementations": forms}
        return failed[0] if failed else ""

    # -- operations ---------------------------------------------------------------------------------------------

    def _operation(self, result: Result, timed: Timed, shape: Shape, back: bool) -> None:
        import torch

        name = str(spec_of(timed, shape.H, shape.D)["name"])
        if not self._package(name, spec_of(timed, shape.H, shape.D), result):
            return
        bytes_of_inputs = 2 * shape.B * shape.T * shape.H * (3 * shape.D)
        copies = copies_for(self.device, bytes_of_inputs)
        raw = raw_inputs(timed, shape, self.device, self.dtype, copies)
        gradients = [torch.randn_like(given["v"]) for given in raw]
        for given in raw:
            for x in given.values():
                x.requires_grad_(back)
        ours = OurSide(name, self.device)

        def run_of(call: Any, pick: Callable[[Any], torch.Tensor]) -> Callable[[int], torch.Tensor]:
            def run(number: int) -> torch.Tensor:
                given = raw[number]
                with torch.set_grad_enabled(back):
                    o = pick(call(given))
                    if back:
                        gradient = gradients[number].view_as(o)
                        torch.autograd.grad(o, call.leaves(given), gradient, allow_unused=True)
                return o.detach()

            return run

        sides = [Side("ours", run_of(ours, lambda found: found))]
        sides += self._peer(result, "fla", lambda: run_of(PeerSide(timed), lambda found: found[0]))
        sides.append(Side("sdpa", self._softmax(raw, gradients, back)))
        compare(result, sides, copies, self.clock, self.rounds)
        self._differences(result, sides)
        least, flops = self._work(timed, shape, back)
        self._shares(result, least, flops, shape.B * shape.T)

    def _peer(self, result: Result, name: str, make: Callable[[], Callable[[int], object]]) -> list[Side]:
        """The side of a peer, or a note why it is not there."""
        try:
            return [Side(name, make())]
        except Exception as error:  # missing, or another version of it
            result.why_not[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            return []

    def _softmax(
        self, raw: Sequence[dict[str, torch.Tensor]], gradients: Sequence[torch.Tensor], back: bool
    ) -> Callable[[int], torch.Tensor]:
        """Causal softmax attention of the same q, k and v."""
        import torch

        def run(number: int) -> torch.Tensor:
            q, k, v = (raw[number][name].transpose(1, 2) for name in ("q", "k", "v"))
            with torch.set_grad_enabled(back):
                o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                if back:
                    leaves = [raw[number][name] for name in ("q", "k", "v")]
                    torch.autograd.grad(o, leaves, gradients[number].transpose(1, 2))
            return o.detach()

        return run

    def _differences(self, result: Result, sides: Sequence[Side]) -> None:
        """How far the output of a peer that computes the same is from ours."""
        if "ours" not in result.sides:
            return
        ours: Any = sides[0].run(0)
        for side in sides:
            if side.name == "fla" and side.name in result.sides:
                theirs: Any = side.run(0)
                off = (theirs.reshape(ours.shape).float() - ours.float()).abs().max()
                result.difference[side.name] = float(off / ours.float().abs().max())

    def _work(self, timed: Timed, shape: Shape, back: bool) -> tuple[float, float]:
        """The least bytes and the FLOP of the chunk form."""
        from archc.kernels.bytes import minimum
        from archc.tiles.costs import count
        from archc.tiles.kind import RecurrenceKind

        kind = RecurrenceKind(timed.decay, timed.erase)  # type: ignore[arg-type]
        least, costs = minimum(kind, shape.D, shape.D), count(kind, shape.D, shape.D)
        each = shape.B * shape.T * shape.H
        moved = least.forward + (least.backward if back else 0)
        return each * moved, each * (costs.forward.flops + (costs.backward.flops if back else 0))

    def _shares(self, result: Result, least: float, flops: float, tokens: int) -> None:
        for name, figure in result.sides.items():
            result.tokens_per_second[name] = tokens / figure.seconds
        if "ours" in result.sides:
            taken = result.sides["ours"].seconds
            if least:
                result.bandwidth_share = least / taken / self.found.measured["copy_bandwidth"]
            if flops:
                result.matrix_share = flops / taken / self.found.measured["matrix_rate"]

    def _decode(self, result: Result, timed: Timed, shape: Shape, graph: bool) -> None:
        """One token with the state in place; the peer writes a new state and goes on with it."""
        import torch

        name = str(spec_of(timed, shape.H, shape.D)["name"])
        if not self._package(name, spec_of(timed, shape.H, shape.D), result):
            return
        state_bytes = 4 * shape.B * shape.H * shape.D**2
        copies = copies_for(self.device, state_bytes)
        raw = raw_inputs(timed, shape, self.device, self.dtype, copies)
        states = [
            torch.zeros(shape.B, shape.H, shape.D, shape.D, device=self.device) for _ in range(2 * copies)
        ]
        ours, theirs = OurSide(name, self.device), list(states[copies:])

        def our_step(number: int) -> Callable[[], object]:
            return torch.no_grad()(lambda: ours(raw[number], states[number]))

        def their_step(number: int, call: PeerSide) -> Callable[[], object]:
            def step() -> object:
                o, theirs[number] = call(raw[number], theirs[number])  # type: ignore[assignment]
                return o

            return torch.no_grad()(step)

        def run_of(steps: Sequence[Callable[[], object]]) -> Callable[[int], object]:
            steps = [captured(step) for step in steps] if graph else steps
            return lambda number: steps[number]()

        def our_run() -> Callable[[int], object]:
            return run_of([our_step(n) for n in range(copies)])

        def their_run() -> Callable[[int], object]:
            call = PeerSide(timed, recurrent=True)
            return run_of([their_step(n, call) for n in range(copies)])

        sides = self._peer(result, "ours", our_run)
        if not sides:
            return
        sides += self._peer(result, "fla", their_run)
        compare(result, sides, copies, self.clock, self.rounds)
        self._shares(result, 2.0 * state_bytes, 0.0, shape.B)

    # -- models -------------------------------------------------------------------------------------------------

    def _ours(self, result: Result) -> Any:
        """Our model, if its self-test lets it be timed."""
        name = "bench_model"
        if not self._package(name, self.spec, result):
            return None
        if self.model is None:
            self.model = importlib.import_module(name).Model(device=self.device, dtype=self.dtype)
        return self.model

    def _tokens(self, model: Any, batch: int, length: int) -> torch.Tensor:
        import torch

        return torch.randint(0, model.config.vocab_size, (batch, length), device=self.device)

    def _training(self, result: Result) -> None:
        from archc.pipeline import cost

        model = self._ours(result)
        if model is None:
            return
        scale = self.scale
        batches = [self._tokens(model, scale.batch, scale.tokens) for _ in range(2)]
        ours = training_step(model, lambda tokens: model.loss(tokens).total)
        sides = [Side("ours", lambda number: ours(batches[number]))]
        for name in PEERS:

            def make(name: str = name) -> Callable[[int], object]:
                peer = peer_model(name, model, self.device, self.dtype)
                step = training_step(peer, lambda tokens: peer(input_ids=tokens, labels=tokens).loss)
                return lambda number: step(batches[number])

            sides += self._peer(result, name, make)
        compare(result, sides, 2, self.clock, self.rounds)
        report = cost(self.spec, batch_size=scale.batch, tokens=scale.tokens)
        self._shares(result, 0.0, report.training_flops, scale.batch * scale.tokens)

    def _decoding(self, result: Result, batch: int, graph: bool) -> None:
        from archc.pipeline import cost

        model = self._ours(result)
        if model is None:
            return
        model.eval()
        prompt = min(PROMPT, model.config.context // 2)
        tokens = self._tokens(model, batch, prompt)
        room = 8 + 100 * (self.rounds + 1)
        step = our_decoding(model, tokens, room)
        if graph:
            step = captured(step)
        sides = [Side("ours", lambda number: step())]
        for name in () if graph else PEERS:  # the peers' caches grow, which a graph cannot

            def make(name: str = name) -> Callable[[int], object]:
                peer = peer_model(name, model, self.device, self.dtype).eval()
                theirs = peer_decoding(peer, tokens)
                return lambda number: theirs()

            sides += self._peer(result, name, make)
        compare(result, sides, 1, self.clock, self.rounds)
        report = cost(self.spec, batch_size=batch, tokens=prompt)
        least = report.parameter_bytes + 2 * report.state_bytes + report.cache_bytes
        self._shares(result, least, report.decode_flops, batch)

    def _layer(self, result: Result) -> None:
        import torch

        model = self._ours(result)
        if model is None:
            return
        place = importlib.import_module("bench_model.place")
        mixer, width, scale = model.layers[0].mixer, model.config.d_model, self.scale
        shape = scale.batch, scale.tokens, width
        inputs = [torch.randn(shape, device=self.device, dtype=self.dtype).requires_grad_() for _ in range(2)]
        gradient = torch.randn(shape, device=self.device, dtype=self.dtype)

        def run_of(layer: Any, call: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[int], object]:
            leaves = list(layer.parameters())
            return lambda number: torch.autograd.grad(
                call(inputs[number]), [inputs[number], *leaves], gradient, allow_unused=True
            )

        def make() -> Callable[[int], object]:
            peer = peer_layer(mixer, width, self.device, self.dtype)
            return run_of(peer, lambda x: peer(x)[0])

        sides = [Side("ours", run_of(mixer, lambda x: mixer(x, place.Place(place.dense_layout(x)))))]
        sides += self._peer(result, "fla", make)
        compare(result, sides, 2, self.clock, self.rounds)
        for name, figure in result.sides.items():
            result.tokens_per_second[name] = scale.batch * scale.tokens / figure.seconds

    # -- the record ---------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Geometric means of the ratios so far, and the file."""
        groups: dict[str, list[float]] = {}
        for result in self.found.results:
            for peer, ratio in result.ratios.items():
                groups.setdefault(f"{result.group}, {result.what}: {peer}", []).append(ratio.median)
        self.found.geometric_means = {
            name: math.exp(sum(map(math.log, values)) / len(values)) for name, values in groups.items()
        }
        self.found.seconds = round(self.budget.spent(), 1)
        if self.save is not None:
            text = json.dumps(json_value(self.found), indent=1)
            self.save.write_text(text + "\n", encoding="utf-8")


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


def _surroundings(device: torch.device) -> dict[str, str]:
    import platform

    import torch

    gpu = device.type == "cuda"
    found = {"device": torch.cuda.get_device_name(device) if gpu else "cpu: no figures, a trial of the bench"}
    if gpu:
        found["cuda"] = str(torch.version.cuda)
    found |= {"python": platform.python_version(), "archc": __version__}
    for package in ("torch", "triton", "flash-linear-attention", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    found["torch"] = torch.__version__
    return found


@contextmanager
def _importable(folder: str) -> Iterator[None]:
    """Packages of a folder can be imported meanwhile."""
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
                del sys.modules[name]
