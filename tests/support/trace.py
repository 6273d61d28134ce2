"""What a model runs on a GPU, written down without one: tensors on the device "meta" that say they lie on a GPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = "view split slice transpose ::t new_empty detach select alias unbind unsqueeze expand permute".split()


class Trace(TorchDispatchMode):
    """Everything that runs: operations of torch with the shapes and numbers that they get, kernels with theirs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[str] = []
        self.elsewhere: list[str] = []

    @property
    def launches(self) -> list[str]:
        return [call for call in self.calls if not any(view in call.split("(")[0] for view in VIEWS)]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.calls.append(f"{function.name()}({described(args)} {described(kwargs)}) -> {described(result)}")
        found = result if isinstance(result, tuple | list) else [result]
        if any(isinstance(x, Tensor) and x.device.type != "meta" for x in found):
            self.elsewhere.append(self.calls[-1])
        return result


def described(x: Any) -> str:
    """Arguments without values of tensors: all that a graph bakes in."""
    if isinstance(x, Tensor):
        return f"{x.dtype}{list(x.shape)}{list(x.stride())}"
    if isinstance(x, tuple | list):
        return f"[{', '.join(map(described, x))}]"
    if isinstance(x, dict):
        return f"{{{', '.join(f'{key}: {described(value)}' for key, value in x.items())}}}"
    return repr(x)
