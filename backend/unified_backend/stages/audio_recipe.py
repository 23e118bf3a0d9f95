"""The stage `audio` as users write it: options -> one validated recipe."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from unified_backend.errors import ConfigError
from unified_backend.stages.expression import Call
from unified_backend.tensors import TensorSpec

__all__ = ["AudioRecipe", "read_audio_recipe", "too_long"]


@dataclasses.dataclass(frozen=True)
class AudioRecipe:
    """What is done to a sound; every field but the last is an option of that name.

    Attributes:
        rate: samples a second of the result.
        seconds: length that every sound is cut or filled up to; None leaves it.
        mel: bands of a mel spectrogram; None gives samples.
        n_fft, window, hop: of the spectrogram, in samples; frames are centred, the sound is mirrored at its ends.
        formula: of the mel scale, `slaney` or `htk`.
        normalize: each band's triangle has area 1.
        db: 10 log10 of it.
        floor: smallest value before the logarithm.
        max_seconds: a longer sound is refused.
        trailing: the model's input has a last dimension of 1.
    """

    rate: int = 16000
    seconds: float | None = None
    mel: int | None = None
    n_fft: int = 400
    window: int = 400
    hop: int = 160
    formula: str = "slaney"
    normalize: bool = True
    db: bool = False
    floor: float = 1e-10
    max_seconds: float = 600.0
    trailing: bool = False


_OPTIONS = tuple(field.name for field in dataclasses.fields(AudioRecipe))[:-1]
_WHOLE = ("rate", "mel", "n_fft", "window", "hop")
_OF_MEL = ("n_fft", "window", "hop", "formula", "normalize", "db", "floor")
_NUMBERS = ("seconds", "floor", "max_seconds")


def too_long(seconds: float, most: float) -> str:
    """Why a sound of so many seconds is refused."""
    return f"it lasts {seconds:.0f} seconds, and the option max_seconds allows {most:.0f}"


def read_audio_recipe(call: Call, target: TensorSpec, label: str) -> AudioRecipe:
    """The recipe of a call, completed from the input that it is for: [N, samples], [N, samples, 1], [N, mel, frames].

    Raises:
        ConfigError: no such option or value, or the input is not one for sounds.
    """

    def wrong(what: str, why: str, do: str = "Correct it in config.pbtxt") -> ConfigError:
        return ConfigError(f'{label}: parameter "preprocess" {what}', why, do)

    if call.name != "audio" or len(call.arguments) > 1:
        raise wrong(f"has {call.name}({', '.join(map(str, call.arguments))})", "it may be audio(16000, option=value)")
    given = {**({"rate": call.arguments[0]} if call.arguments else {}), **call.options}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _OPTIONS:
            close = difflib.get_close_matches(name, _OPTIONS, n=1)
            raise wrong(
                f'gives audio the option "{name}"',
                f"it may be {', '.join(_OPTIONS)}",
                f"Write {close[0]}?" if close else "Take one of these",
            )
        values[name] = value = (
            {"true": True, "false": False, "none": None}.get(value, value) if isinstance(value, str) else value
        )
        if problem := _problem(name, value):
            raise wrong(f"has the option {name}={value}", f"{name} must be {problem}")
    shape = target.shape
    if target.dtype != "FP32" or (shape is not None and len(shape) not in (2, 3)):
        raise wrong(
            f'feeds the input "{target.name}"',
            f"it is {target.dtype} {target.dims}, and sounds are FP32 [-1, samples] or [-1, mel, frames]",
            "Name another input",
        )
    fixed = shape[1] if shape else None
    if values.get("mel"):
        if isinstance(fixed, int) and (shape is None or len(shape) != 3 or fixed != values["mel"]):
            raise wrong(f"has the option mel={values['mel']}", f'the input "{target.name}" is {target.dims}')
    else:
        values["trailing"] = shape is not None and len(shape) == 3
        if values["trailing"] and shape is not None and shape[2] != 1:
            raise wrong("asks for samples", f'the input "{target.name}" is {target.dims}', "Add mel=BANDS")
        if isinstance(fixed, int) and "seconds" not in values:
            values["seconds"] = fixed / values.get("rate", AudioRecipe.rate)
    recipe = AudioRecipe(**values)
    if recipe.window > recipe.n_fft:
        raise wrong(f"has the option window={recipe.window}", f"it is larger than n_fft={recipe.n_fft}")
    for name, without, there in (("mel=BANDS", _OF_MEL, recipe.mel), ("db=true", ("floor",), recipe.db)):
        if not there and (unused := [option for option in without if option in values]):
            raise wrong(
                f"has the option {unused[0]}={values[unused[0]]}", f"it has no effect without {name}", f"Add {name}"
            )
    length = round(recipe.seconds * recipe.rate) if recipe.seconds else None
    if isinstance(fixed, int) and not recipe.mel and length != fixed:
        raise wrong(f"makes {length} samples", f'the input "{target.name}" is {target.dims}')
    return recipe


def _problem(name: str, value: Any) -> str | None:
    """What an option must be, if the value is not that."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
    if name in _WHOLE:
        return None if number and isinstance(value, int) else "a whole number above 0"
    if name in _NUMBERS:
        return None if number else "a number above 0"
    if name == "formula":
        return None if value in ("slaney", "htk") else "slaney or htk"
    return None if isinstance(value, bool) else "true or false"
