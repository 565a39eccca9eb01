"""What is recorded of GLM-4V in torch: the tower and projector that `glm4 finetune` trains, and the ChatGLM text model.

Both are written from the published facts about the code beside the weights of THUDM/glm-4v-9b, with its module names,
so that a checkpoint's tensors load as they are. Only the text half has a second implementation to be compared with:
transformers' GLM, given the picture's rows as `inputs_embeds` at the positions of `row_positions`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

import golden_models as gm
import vision_models as vm
from glm4.checkpoints.config_reader import config_from_json
from glm4.training.vision.tower import Tower, TowerLayer
from golden import tiny
from golden.chatglm import ChatGLM
from golden.files import write_npz


class GLM4V(ChatGLM):
    """The text model with the tower among its modules, as the published file has it."""

    def __init__(self, shape: vm.TinyVision) -> None:
        super().__init__(shape.text)
        self.transformer["vision"] = Tower(config_from_json(vm.vision_config_json(shape), shape.text.name).config)

    @property
    def vision(self) -> Tower:
        tower: Tower = self.transformer["vision"]
        return tower

    def embed(self, before: torch.Tensor, rows: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Input rows of text, picture, text: ids [..., B], rows [..., R, hidden], ids [..., A]."""
        embedding = self.transformer["embedding"]["word_embeddings"]
        return torch.cat([embedding(before), rows, embedding(after)], -2)


def row_positions(length: int, first: int, num_rows: int) -> torch.Tensor:
    """Positions of `length` rows with a picture at row `first`: all its patches share one position."""
    positions = torch.arange(length)
    positions[first + 1 : first + num_rows - 1] = first + 1
    positions[first + num_rows - 1 :] = torch.arange(first + 2, first + 2 + length - (first + num_rows - 1))
    return positions


def resized(picture: vm.Pixels, size: int) -> vm.Pixels:
    """A picture at the model's size, as the original makes it: bicubic, antialiased, whatever the aspect ratio."""
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))


def without_antialias(picture: vm.Pixels, size: int) -> torch.Tensor:
    """The picture [1, S, S, 3] as a tensor's resize makes it by default: a negative control."""
    planes = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()
    small = functional.interpolate(planes, (size, size), mode="bicubic", align_corners=False, antialias=False)
    return small.clamp(0, 255).permute(0, 2, 3, 1)


def build(shape: vm.TinyVision) -> GLM4V:
    model = GLM4V(shape)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in vm.draw_files(shape).items()}
    tensors.pop("transformer.rotary_pos_emb.inv_freq")
    model.load_state_dict(tensors, strict=True)
    return model.float().eval()


def check_text(shape: vm.TinyVision, h: torch.Tensor, positions: torch.Tensor, logits: torch.Tensor) -> None:
    """The text half must be transformers' GLM with the same rows at the same positions."""
    model = tiny.reference_model(gm.hf_config(shape.text), gm.hf_tensors(shape.text, gm.draw(shape.text)))
    # Without a mask, transformers takes repeated positions for the start of another, packed sequence.
    mask = torch.ones(1, len(h), dtype=torch.long)
    out = model(inputs_embeds=h[None], position_ids=positions[None], attention_mask=mask, use_cache=False)
    expected = out.logits[0]
    difference = float((logits - expected).abs().max() / expected.abs().max())
    print(f"  {shape.text.name}: text half differs from transformers' GLM by {difference:.1e}")
    if difference > 1e-5:
        raise SystemExit(f"{shape.text.name}: the reference is wrong")


def stages(tower: Tower, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """`embedded`, `first_block` and `last_block` [positions, C] and `rows` [R, H] of one picture."""
    layers = tower.transformer["layers"]
    parts = {"embedded": tower.patch_embedding, "first_block": layers[0], "last_block": layers[-1]}
    found: dict[str, torch.Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda _module, _inputs, out, name=name: found.update({name: out[0]}))
        for name, part in parts.items()
    ]
    found["rows"] = tower(pixels)[0]
    for hook in hooks:
        hook.remove()
    return found


def pre_norm(layer: TowerLayer, x: torch.Tensor) -> torch.Tensor:
    """A layer with its norms before attention and MLP, as most towers have them: a negative control."""
    x = x + layer.attention(layer.input_layernorm(x))
    return x + layer.mlp(layer.post_attention_layernorm(x))


def compute(shape: vm.TinyVision) -> dict[str, NDArray[Any]]:
    """The arrays described in `record`."""
    model = build(shape)
    before, after = (torch.from_numpy(ids.astype(np.int64)) for ids in vm.draw_text(shape))
    picture = vm.draw_picture(shape)
    pixels = resized(picture, shape.image_size)
    image = torch.from_numpy(pixels.copy())[None]
    seen = stages(model.vision, image)
    ids = after
    length = len(before) + shape.num_rows + len(after)
    positions = row_positions(length + vm.DECODE_STEPS, len(before), shape.num_rows)
    for _ in range(vm.DECODE_STEPS):  # the whole sequence again for each token: no cache that could be wrong
        h = model.embed(before, seen["rows"], ids)
        logits = model.run(h, positions[: len(h)])
        ids = torch.cat([ids, logits[-1].argmax()[None]])
    h = model.embed(before, seen["rows"], ids)
    logits = model.run(h, positions)
    check_text(shape, h, positions, logits)
    arrays: dict[str, Any] = {
        "fingerprint": torch.tensor([gm.fingerprint(vm.draw_files(shape))], dtype=torch.float64),
        "pixels": torch.from_numpy(pixels.copy()),
        **seen,
        "logits": logits[:length],
        "decode": ids[len(after) :].int(),
        "decode_logits": logits[length:],
        "sequential_logits": model.run(h, torch.arange(len(h))),
        "no_antialias_rows": model.vision(without_antialias(picture, shape.image_size))[0],
    }
    for layer in model.vision.transformer["layers"]:
        layer.forward = partial(pre_norm, layer)
    wrong = stages(model.vision, image)
    arrays |= {f"pre_norm_{name}": wrong[name] for name in ("first_block", "last_block", "rows")}
    return {name: value.numpy() for name, value in arrays.items()}


def record(folder: Path) -> list[Path]:
    """One .npz per model. The prompt is text, a picture and text (`vision_models`), T rows in all.

    pixels uint8 [S, S, 3]; embedded, first_block, last_block [positions, C]; rows [num_rows, H]; logits [T, V]; decode
    and decode_logits [6], [6, V]: the greedy tokens after the prompt, and the logits where each of them is the last.
    Of wrong models: sequential_logits [T + 6, V], pre_norm_* and no_antialias_rows.
    """
    written = []
    for name, shape in vm.VISION_MODELS.items():
        path = folder / f"{name}.npz"
        with torch.no_grad():
            write_npz(path, compute(shape))
        written.append(path)
    return written
