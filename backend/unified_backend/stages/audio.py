"""The stage `audio`: sound files into samples or mel spectrograms; on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unified_backend.errors import RequestError
from unified_backend.stages import Rows
from unified_backend.stages.audio_recipe import AudioRecipe, read_audio_recipe, too_long
from unified_backend.stages.dali import Pipeline, arguments, require_dali
from unified_backend.stages.expression import Call
from unified_backend.stages.mp3 import as_wav, is_mp3
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["AudioStage"]

_SEND = "Send a WAV, FLAC, MP3 or OGG (Vorbis, Opus) file, whole"
_QUALITY = 50.0  # of DALI's resampling: a sinc filter of 16 lobes, about 80 dB


class AudioStage:
    """A pipeline for one recipe; see `Stage`.

    Its outputs are the target, filled up with zeros (of decibels: with the smallest value) to the longest of the batch,
    and `TARGET_length` (INT64 [N, 1]): how many samples or frames are the sound's.

    Args:
        call: of `preprocess`.
        target: the engine's input that it feeds: FP32 [N, samples], [N, samples, 1] or [N, mel, frames].
        input_name: name of the stage's own input, BYTES [N, 1].
    """

    def __init__(
        self, call: Call, target: TensorSpec, input_name: str, max_batch_size: int, threads: int, label: str
    ) -> None:
        """
        Raises:
            ConfigError: the call is wrong or does not fit the target, or DALI is not installed.
            EngineError: DALI does not build the pipeline.
        """
        recipe = read_audio_recipe(call, target, label)
        require_dali(label, 'the parameter "preprocess" (audio)')
        self._recipe, self._input, self._name = recipe, input_name, target.name
        self._limit = max(1, max_batch_size)
        length = round(recipe.seconds * recipe.rate) if recipe.seconds else None
        shape: tuple[int | None, ...] = (None, length)
        if recipe.mel:
            shape = (None, recipe.mel, None if length is None else 1 + length // recipe.hop)
        self.signature = Signature(
            (TensorSpec(input_name, "BYTES", (None, 1)),),
            (
                TensorSpec(target.name, "FP32", (*shape, 1) if recipe.trailing else shape),
                TensorSpec(f"{target.name}_length", "INT64", (None, 1)),
            ),
        )
        self._pipeline = Pipeline(lambda: _pipeline(recipe, max_batch_size, threads), label)

    def run(self, feeds: Mapping[str, Array]) -> Rows:
        """The tensors for a batch."""
        given = feeds[self._input]
        if len(given) > self._limit:
            raise RequestError(
                f'input "{self._input}" has {len(given)} sounds',
                f"a batch has at most {self._limit}",
                "Send fewer at once",
            )
        failed: dict[int, RequestError] = {}
        rows, places = [], []
        for index, row in enumerate(given):
            content = row if isinstance(row, (bytes, str)) else np.ravel(row)[0]
            content = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
            try:
                rows.append(np.frombuffer(_checked(content, self._recipe.max_seconds), np.uint8))
                places.append(index)
            except ValueError as error:
                failed[index] = self._refused(str(error))
        ran = self._pipeline.run({"sound": rows}) if rows else None
        if ran:
            failed |= {places[row]: self._refused(why) for row, why in ran.failed.items()}
        if ran is None or ran.outputs is None:
            return Rows(self._arrays([]), failed)
        passed = [place for row, place in enumerate(places) if row not in ran.failed]
        sounds = [np.array(tensor) for tensor in ran.outputs[0]]
        lasting = [float(np.array(seconds)) for seconds in ran.outputs[1]]
        kept = []
        for place, sound, seconds in zip(passed, sounds, lasting, strict=True):
            if seconds > self._recipe.max_seconds:
                failed[place] = self._refused(too_long(seconds, self._recipe.max_seconds))
            else:
                kept.append(sound)
        lengths = self._lengths([seconds for seconds in lasting if seconds <= self._recipe.max_seconds], kept)
        return Rows(self._arrays(kept, lengths), failed)

    def close(self) -> None:
        """Free the pipeline."""
        self._pipeline.close()

    def _lengths(self, lasting: list[float], sounds: list[Array]) -> list[int]:
        """Samples or frames that are the sound's own, of each."""
        if self._recipe.seconds is None:
            return [sound.shape[-1] for sound in sounds]
        samples = [round(min(seconds, self._recipe.seconds) * self._recipe.rate) for seconds in lasting]
        return [1 + count // self._recipe.hop for count in samples] if self._recipe.mel else samples

    def _arrays(self, sounds: list[Array], lengths: list[int] | None = None) -> dict[str, Array]:
        recipe = self._recipe
        empty = tuple(
            size or 0 for size in (self.signature.outputs[0].shape or ())[1 : -1 if recipe.trailing else None]
        )
        longest = np.max([sound.shape for sound in sounds], axis=0) if sounds else empty
        filling = 10 * np.log10(recipe.floor) if recipe.mel and recipe.db else 0
        batch = np.full((len(sounds), *map(int, longest)), filling, np.float32)
        for row, sound in zip(batch, sounds, strict=True):
            row[tuple(slice(size) for size in sound.shape)] = sound
        batch = batch[..., None] if recipe.trailing else batch
        return {self._name: batch, f"{self._name}_length": np.array(lengths or [], np.int64)[:, None]}

    def _refused(self, reason: str) -> RequestError:
        return RequestError(f'input "{self._input}": the sound cannot be used', reason, _SEND)


def _pipeline(recipe: AudioRecipe, max_batch_size: int, threads: int) -> Any:
    from nvidia.dali import Pipeline as Dali
    from nvidia.dali import fn, types

    pipeline = Dali(**arguments(max_batch_size, threads, None))
    with pipeline:
        files = fn.external_source(name="sound", dtype=types.UINT8, ndim=1, no_copy=True)
        sound, rate = fn.decoders.audio(files, dtype=types.FLOAT)
        seconds = sound.shape(dtype=types.FLOAT)[0] / rate
        sound = fn.reductions.mean(sound, axes=[1])
        sound = fn.audio_resample(sound, in_rate=rate, out_rate=float(recipe.rate), quality=_QUALITY)
        if recipe.seconds is not None:
            length = round(recipe.seconds * recipe.rate)
            sound = fn.slice(sound, start=[0], shape=[length], axes=[0], out_of_bounds_policy="pad")
        if recipe.mel:
            # DALI's own Hann window lies half a sample beside that of librosa, torchaudio and SciPy
            hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(recipe.window) / recipe.window)
            sound = fn.spectrogram(
                sound,
                nfft=recipe.n_fft,
                window_length=recipe.window,
                window_step=recipe.hop,
                window_fn=hann.tolist(),
                center_windows=True,
                reflect_padding=True,
                power=2,
            )
            sound = fn.mel_filter_bank(
                sound,
                sample_rate=float(recipe.rate),
                nfilter=recipe.mel,
                mel_formula=recipe.formula,
                normalize=recipe.normalize,
            )
            if recipe.db:
                lowest = float(10 * np.log10(recipe.floor))
                sound = fn.to_decibels(sound, multiplier=10.0, reference=1.0, cutoff_db=lowest)
        pipeline.set_outputs(sound, seconds)
    return pipeline


def _checked(content: Any, most: float) -> bytes:
    """The file as DALI decodes it.

    Raises:
        ValueError: why it cannot be used, as far as it is known before it is decoded.
    """
    if not isinstance(content, bytes):
        raise ValueError(f"it is {type(content).__name__}, and must be the bytes of a file")
    if not content:
        raise ValueError("it is empty")
    if is_mp3(content):
        return as_wav(content, most)
    # FLAC packs silence by a thousand and more; its header (STREAMINFO) has the rate in 20 bits, the samples in 36.
    if content[:4] == b"fLaC" and len(content) >= 26:
        numbers = int.from_bytes(content[18:26], "big")
        rate, samples = numbers >> 44, numbers & ((1 << 36) - 1)
        if rate and samples / rate > most:
            raise ValueError(too_long(samples / rate, most))
    return content
