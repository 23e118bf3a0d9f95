"""The stage `image` as users write it: options and presets -> one validated recipe."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from unified_backend.errors import ConfigError
from unified_backend.stages.dali import MOST_PIXELS
from unified_backend.stages.expression import Call
from unified_backend.stages.presets import PRESETS, Recipe
from unified_backend.tensors import TensorSpec

__all__ = ["read_recipe"]

MODES = ("crop", "stretch", "letterbox", "fit", "none")
COLORS = {"RGB": 3, "BGR": 3, "GRAY": 1}
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_DTYPES = ("FP32", "FP16", "UINT8")
_CROP_RATIO = 0.875  # 224 of 256, where `resize` is not said
_CROPS = ("center", "none")
_POSITIONAL = {"letterbox": ("size", "fill")}
_SIZED = ("crop", "stretch", "letterbox")
# Options that not all modes use; what one does not use would pass without a word.
_MODES_OF = {
    "size": _SIZED,
    "resize": ("crop",),
    "fit": ("fit",),
    "fill": ("letterbox",),
    "interpolation": (*_SIZED, "fit"),
    "antialias": (*_SIZED, "fit"),
}
_OPTIONS = (*(field.name for field in dataclasses.fields(Recipe)), "crop")


def read_recipe(call: Call, target: TensorSpec, label: str) -> Recipe:
    """The recipe of a call, completed from the input that it is for.

    Raises:
        ConfigError: no such preset, option or value, or the input is not one for images.
    """
    return _Reader(call, target, label).recipe()


class _Reader:
    """Reads one call, with errors that name it."""

    def __init__(self, call: Call, target: TensorSpec, label: str) -> None:
        self._call, self._target, self._label = call, target, label
        if call.name not in PRESETS:
            raise self._wrong(f'has no stage "{call.name}"', *_one_of(call.name, tuple(PRESETS)))
        names = _POSITIONAL.get(call.name, ("size",))
        if len(call.arguments) > len(names):
            raise self._wrong(
                f"gives {call.name} {len(call.arguments)} values without a name",
                f"without one it takes {' and '.join(names)}",
                "Write the others as option=value",
            )
        given = dict(zip(names, call.arguments, strict=False))
        for name in call.options:
            if name not in _OPTIONS or name in given:
                raise self._wrong(f'gives {call.name} the option "{name}"', *_one_of(name, _OPTIONS))
        self._given = {**given, **call.options}
        self._values = {**PRESETS[call.name], **self._given}

    def recipe(self) -> Recipe:
        shape = self._target.shape if self._target.shape is not None else (None, None, None, None)
        if len(shape) != 4:
            raise self._target_wrong(f"it has {len(shape)} dimensions, and images have 4: NCHW or NHWC")
        layout = self._layout(shape)
        channel = shape[1] if layout == "NCHW" else shape[3]
        color = self._word("color", tuple(COLORS), "GRAY" if channel == 1 else "RGB")
        if isinstance(channel, int) and channel != COLORS[color]:
            raise self._target_wrong(
                f"it has {channel} channels in the layout {layout}, and {color} has {COLORS[color]}"
            )
        if self._target.dtype not in _DTYPES:
            raise self._target_wrong(f"it is {self._target.dtype}, and images are {', '.join(_DTYPES)}")
        dtype = self._word("dtype", _DTYPES, self._target.dtype)
        if dtype != self._target.dtype:
            raise self._wrong(f"has the option dtype={dtype}", f"the input is {self._target.dtype}", "Leave it out")
        if dtype == "UINT8" and (words := [name for name in ("scale", "mean", "std") if name in self._values]):
            raise self._target_wrong(f"it is UINT8, raw pixels, and {self._call.name} has {', '.join(words)}")
        mode = self._mode()
        self._require_used(mode)
        plain = 1 / 255 if dtype != "UINT8" else 1.0
        return Recipe(
            size=self._size(mode, shape[2:] if layout == "NCHW" else shape[1:3]),
            mode=mode,
            resize=self._resize(mode, shape[2:] if layout == "NCHW" else shape[1:3]),
            fit=self._fit(mode),
            scale=self._number("scale", plain),
            mean=self._channels("mean", 0.0, COLORS[color]),
            std=self._channels("std", 1.0, COLORS[color]),
            layout=layout,
            dtype=dtype,
            color=color,
            interpolation=self._word("interpolation", INTERPOLATIONS, "bilinear"),
            antialias=self._switch("antialias", True),
            fill=self._grey("fill", 0.0),
            max_pixels=self._whole("max_pixels", MOST_PIXELS),
            original=self._switch("original", False),
            shapes=self._switch("shapes", False),
        )

    def _layout(self, shape: tuple[Any, ...]) -> str:
        first, last = (shape[1] in (1, 3), shape[3] in (1, 3))
        layout = self._word("layout", ("NCHW", "NHWC"), "NHWC" if last and not first else "NCHW")
        other = shape[3] if layout == "NHWC" else shape[1]
        if isinstance(other, int) and other not in (1, 3):
            raise self._target_wrong(f"in the layout {layout} it has {other} channels, and images have 3 or 1")
        return layout

    def _mode(self) -> str:
        crop = self._word("crop", _CROPS, "center")
        default = "crop" if crop == "center" else "stretch"
        if "fit" in self._given:
            default = "fit"
        elif self._values.get("resize", 1) in (None, "none") and crop == "none":
            default = "none"
        return self._word("mode", MODES, default)

    def _require_used(self, mode: str) -> None:
        for name, value in self._given.items():
            used = value in (None, "none") or mode in _MODES_OF.get(name, MODES)
            if name == "crop":
                used = (self._word("crop", _CROPS, "center") == "center") == (mode == "crop")
            if not used:
                raise self._wrong(
                    f"has the option {name}={value}", f"it has no effect with mode={mode}", "Leave one of the two out"
                )

    def _size(self, mode: str, fixed: tuple[Any, ...]) -> tuple[int, int] | None:
        if mode in ("fit", "none"):
            return None
        given = self._given.get("size")
        known = all(isinstance(side, int) for side in fixed)
        if given is None and known:
            return (fixed[0], fixed[1])
        given = self._values.get("size") if given is None else given
        if given is None:
            raise self._wrong(
                "does not say a size", "the model leaves height and width open", "Add size=(HEIGHT, WIDTH)"
            )
        size = self._pair("size", given)
        if any(isinstance(side, int) and side != own for side, own in zip(fixed, size, strict=True)):
            raise self._wrong(
                f"has the option size={size}", f'the input "{self._target.name}" is {self._target.dims}', "Leave it out"
            )
        return size

    def _resize(self, mode: str, fixed: tuple[Any, ...]) -> int | None:
        size = self._size(mode, fixed)
        if mode != "crop" or size is None:
            return None
        if "resize" not in self._given:
            preset = PRESETS[self._call.name]
            ratio = preset["resize"] / preset["size"] if "resize" in preset else 1 / _CROP_RATIO
            return round(max(size) * ratio)
        if self._given["resize"] in (None, "none"):
            return None
        resize = self._whole("resize", None)
        if resize < max(size):
            raise self._wrong(
                f"has the option resize={resize}", f"the crop {size} would be larger", f"Write {max(size)} or more"
            )
        return resize

    def _fit(self, mode: str) -> tuple[int, int]:
        if mode != "fit":
            return (0, 1)
        if "fit" not in self._values:
            raise self._wrong(
                "has mode=fit without fit", "it says how large", "Add fit=(LONGEST_SIDE, MULTIPLE): fit=(960, 32)"
            )
        return self._pair("fit", self._values["fit"])

    def _pair(self, name: str, value: Any) -> tuple[int, int]:
        pair = value if isinstance(value, tuple) else (value, value)
        if len(pair) != 2 or not all(
            isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in pair
        ):
            raise self._value_wrong(name, value, "a whole number above 0, or two of them such as (224, 224)")
        return (pair[0], pair[1])

    def _whole(self, name: str, default: Any) -> int:
        value = self._values.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._value_wrong(name, value, "a whole number above 0")
        return value

    def _number(self, name: str, default: float) -> float:
        value = self._values.get(name, default)
        if not _is_number(value):
            raise self._value_wrong(name, value, "a number")
        return float(value)

    def _grey(self, name: str, default: float) -> float:
        value = self._number(name, default)
        if not 0 <= value <= 255:
            raise self._value_wrong(name, value, "a number from 0 to 255")
        return value

    def _channels(self, name: str, default: float, count: int) -> tuple[float, ...]:
        value = self._values.get(name, default)
        numbers = value if isinstance(value, tuple) else (value,) * count
        if count == 1 and name not in self._given and len(numbers) == 3:
            numbers = (sum(numbers) / 3,)
        if len(numbers) != count or not all(map(_is_number, numbers)) or (name == "std" and 0 in numbers):
            what = "one number, not 0," if name == "std" else "one number"
            raise self._value_wrong(name, value, f"{what} or {count} of them such as ({', '.join(['0.5'] * count)})")
        return tuple(float(number) for number in numbers)

    def _switch(self, name: str, default: bool) -> bool:
        value = self._values.get(name, default)
        value = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
        if not isinstance(value, bool):
            raise self._value_wrong(name, value, "true or false")
        return value

    def _word(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        value = self._values.get(name, default)
        value = "none" if value is None else value
        found = {word.lower(): word for word in allowed}.get(str(value).lower())
        if found is None:
            raise self._value_wrong(name, value, f"one of {', '.join(allowed)}")
        return found

    def _value_wrong(self, name: str, value: Any, must: str) -> ConfigError:
        return self._wrong(f"has the option {name}={value}", f"{name} must be {must}", "Correct it in config.pbtxt")

    def _target_wrong(self, why: str) -> ConfigError:
        return self._wrong(
            f'feeds the input "{self._target.name}"', why, "Name another input, or correct the option layout or color"
        )

    def _wrong(self, what: str, why: str, do: str) -> ConfigError:
        return ConfigError(f'{self._label}: parameter "preprocess" {what}', why, do)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _one_of(name: str, allowed: tuple[str, ...]) -> tuple[str, str]:
    close = difflib.get_close_matches(name, allowed, n=1)
    return f"it may be {', '.join(allowed)}", f"Write {close[0]}?" if close else "Take one of these"
