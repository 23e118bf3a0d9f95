"""Small PyTorch models of every kind, made once by PyTorch itself and kept in the user's cache directory.

A helper for tests, and the script that it runs with the toolchain's own Python: no test imports torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["path"]

SEED = 7


def path(name: str) -> Path:
    """A made model; do not write to it, others use it too.

    Args:
        name: `lstm_traced.pt`, `lstm_scripted.pt`, `lstm.pt2`, ...
    """
    from made_models import folder_of, model  # not for the script

    return model(folder_of(Path(__file__), "torch"), name)


def make(folder: Path) -> None:
    """Write every model: traced, scripted and exported where PyTorch can; and files that are no models."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(SEED)

    class Lstm(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.cells(x)[0][:, -1])

    class Gru(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = nn.GRU(6, 8, batch_first=True)

        def forward(self, x):
            y, last = self.cells(x)
            return y, last.transpose(0, 1)

    class Transformer(nn.Module):
        """Its encoder layers run fused when they do not train."""

        def __init__(self):
            super().__init__()
            self.rows = nn.Embedding(50, 16)
            self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
            self.head = nn.Linear(16, 4)

        def forward(self, ids):
            return self.head(self.layers(self.rows(ids)).mean(1))

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts, self.norm, self.head = nn.Linear(16, 48), nn.RMSNorm(16), nn.Linear(16, 16)

        def forward(self, x):
            batch, length, width = x.shape
            parts = self.parts(self.norm(x)).reshape(batch, length, 3, 2, 8).permute(2, 0, 3, 1, 4)
            query, key, value = parts.unbind(0)
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            return self.head(mixed.transpose(1, 2).reshape(batch, length, width))

    class ControlFlow(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = nn.Linear(4, 4)

        def forward(self, x, times: int = 3):
            for _ in range(times):
                x = self.step(x) if bool(x.sum() > 0) else x - 1
            return x

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x) -> dict[str, torch.Tensor]:
            y = self.head(x)
            return {"logits": y, "probs": torch.softmax(y, -1)}

    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.filter = nn.Conv2d(3, 4, 3)

        def forward(self, image):
            x = image.permute(0, 3, 1, 2).float() / 255
            x = functional.interpolate(x, size=[32, 32], mode="bilinear", align_corners=False)
            return self.filter(x).mean((2, 3))

    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 4)

        def forward(self, x, y, mask: torch.Tensor | None = None):
            z = self.head(x) + y
            if mask is not None:
                z = z * mask
            return z, z.argmax(1)

    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return x + self.calls

    classifier = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.PReLU(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(8, 5), nn.Softmax(-1)),
    )
    pixels = torch.randint(0, 255, (1, 48, 40, 3), dtype=torch.uint8)
    models = {
        "classifier": (classifier, (torch.rand(1, 3, 32, 32),)),
        "lstm": (Lstm(), (torch.rand(1, 7, 6),)),
        "gru": (Gru(), (torch.rand(1, 7, 6),)),
        "transformer": (Transformer(), (torch.randint(0, 50, (1, 9)),)),
        "attention": (Attention(), (torch.rand(1, 9, 16),)),
        "named": (Named(), (torch.rand(1, 4),)),
        "pixels": (Pixels(), (pixels,)),
        "several": (Several(), (torch.rand(1, 4), torch.rand(1, 4))),
    }
    for name, (model, inputs) in models.items():
        model.eval()
        with torch.no_grad():
            torch.jit.trace(model, inputs, strict=False).save(folder / f"{name}_traced.pt")
            torch.jit.script(model).save(str(folder / f"{name}_scripted.pt"))
            doubled = tuple(torch.cat([each, each]) for each in inputs)
            shapes = tuple({0: torch.export.Dim.AUTO} for _ in inputs)
            if name == "several":
                shapes = (*shapes, None)
            program = torch.export.export(model, doubled, dynamic_shapes=shapes[: len(doubled)])
            torch.export.save(program, folder / f"{name}.pt2")
    for name, model in {"control_flow": ControlFlow(), "counter": Counter()}.items():
        torch.jit.script(model.eval()).save(str(folder / f"{name}_scripted.pt"))
    torch.save(classifier.state_dict(), folder / "state_dict.pt")
    torch.save(nn.Linear(2, 2), folder / "whole.pt")
    torch.save(classifier.state_dict(), folder / "old.pt", _use_new_zipfile_serialization=False)


def make_more(folder: Path) -> None:
    """Quantised modules, one that no exporter takes, and one with 160 MB of weights."""
    import torch
    from torch import nn
    from torch.ao import quantization

    torch.backends.quantized.engine = "fbgemm" if "fbgemm" in torch.backends.quantized.supported_engines else "qnnpack"
    inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 5))
    model = nn.Sequential(quantization.QuantStub(), inner, quantization.DeQuantStub()).eval()
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    prepared = quantization.prepare(model)
    image = torch.rand(1, 3, 16, 16)
    prepared(image)
    torch.jit.trace(quantization.convert(prepared), image).save(folder / "quantised_traced.pt")
    linear = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    dynamic = quantization.quantize_dynamic(linear, {nn.Linear}, dtype=torch.qint8)
    torch.jit.trace(dynamic, torch.rand(1, 8)).save(folder / "dynamic_traced.pt")

    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    torch.jit.script(encoder).save(str(folder / "encoder_scripted.pt"))
    large = nn.Sequential(nn.Linear(64, 300_000, bias=False), nn.ReLU(), nn.Linear(300_000, 64, bias=False)).eval()
    torch.jit.trace(large, torch.rand(1, 64)).save(folder / "large_traced.pt")


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    make(target)
    make_more(target)
