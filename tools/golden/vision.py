"""GLM-4V in torch, and what is recorded of it: the EVA2-CLIP tower, the projector and the ChatGLM text model.

Written from the published facts about the code beside the weights of THUDM/glm-4v-9b, with its module names, so that a
checkpoint's tensors load as they are. Only the text half has a second implementation to be compared with:
transformers' GLM, given the picture's rows as `inputs_embeds` at the positions of `row_positions`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional

import golden_models as gm
import vision_models as vm
from golden import tiny
from golden.chatglm import ChatGLM
from golden.files import write_npz

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class PatchEmbedding(nn.Module):
    def __init__(self, shape: vm.TinyVision) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.hidden_size, shape.patch_size, shape.patch_size)
        self.cls_embedding = nn.Parameter(torch.zeros(1, shape.hidden_size))
        self.position_embedding = nn.Embedding(shape.num_positions, shape.hidden_size)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.proj(image).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_embedding.expand(len(x), 1, -1), x], 1) + self.position_embedding.weight


class Attention(nn.Module):
    def __init__(self, shape: vm.TinyVision) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.query_key_value = nn.Linear(shape.hidden_size, 3 * shape.hidden_size)
        self.dense = nn.Linear(shape.hidden_size, shape.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.query_key_value(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.dense(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, shape: vm.TinyVision) -> None:
        super().__init__()
        self.fc1 = nn.Linear(shape.hidden_size, shape.intermediate_size)
        self.fc2 = nn.Linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Norms follow attention and MLP; `pre_norm` puts them before, as most towers have them: a negative control."""

    def __init__(self, shape: vm.TinyVision) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(shape.hidden_size, eps=1e-6)
        self.attention = Attention(shape)
        self.post_attention_layernorm = nn.LayerNorm(shape.hidden_size, eps=1e-6)
        self.mlp = Mlp(shape)
        self.pre_norm = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pre_norm:
            x = x + self.attention(self.input_layernorm(x))
            return x + self.mlp(self.post_attention_layernorm(x))
        x = x + self.input_layernorm(self.attention(x))
        return x + self.post_attention_layernorm(self.mlp(x))


class Projector(nn.Module):
    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.linear_proj = nn.Linear(hidden, hidden, bias=False)
        self.norm1 = nn.LayerNorm(hidden)
        self.gate_proj = nn.Linear(hidden, ffn, bias=False)
        self.dense_h_to_4h = nn.Linear(hidden, ffn, bias=False)
        self.dense_4h_to_h = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.gelu(self.norm1(self.linear_proj(x)))
        return self.dense_4h_to_h(functional.silu(self.gate_proj(x)) * self.dense_h_to_4h(x))


class Vision(nn.Module):
    def __init__(self, shape: vm.TinyVision) -> None:
        super().__init__()
        hidden = shape.text.hidden_size
        self.shape = shape
        self.patch_embedding = PatchEmbedding(shape)
        blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.transformer = nn.ModuleDict({"layers": blocks})
        self.conv = nn.Conv2d(shape.hidden_size, hidden, 2, 2)
        self.linear_proj = Projector(hidden, shape.text.intermediate_size)
        self.boi = nn.Parameter(torch.zeros(1, 1, hidden))
        self.eoi = nn.Parameter(torch.zeros(1, 1, hidden))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Normalized images [B, 3, S, S] to rows of the text model [B, num_rows, hidden]."""
        return self.stages(image)["rows"]

    def stages(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """`embedded` [B, positions, C], `first_block` and `last_block` of that shape, `rows`."""
        stages = {"embedded": self.patch_embedding(image)}
        x = stages["embedded"]
        for index, block in enumerate(self.transformer["layers"]):
            x = block(x)
            if index == 0:
                stages["first_block"] = x
        stages["last_block"] = x
        x = x[:, 1:].transpose(1, 2).unflatten(2, (self.shape.grid, self.shape.grid))
        x = self.linear_proj(self.conv(x).flatten(2).transpose(1, 2))
        edges = (edge.expand(len(x), -1, -1) for edge in (self.boi, self.eoi))
        stages["rows"] = torch.cat([next(edges), x, next(edges)], 1) / self.shape.scaling_factor
        return stages


class GLM4V(ChatGLM):
    """The text model with the tower among its modules, as the published file has it."""

    def __init__(self, shape: vm.TinyVision) -> None:
        super().__init__(shape.text)
        self.transformer["vision"] = Vision(shape)

    @property
    def vision(self) -> Vision:
        tower: Vision = self.transformer["vision"]
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


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [B, S, S, 3] of 0 to 255 as the tower takes them: [B, 3, S, S]."""
    return ((pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


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


def compute(shape: vm.TinyVision) -> dict[str, NDArray[Any]]:
    """The arrays described in `record`."""
    model = build(shape)
    before, after = (torch.from_numpy(ids.astype(np.int64)) for ids in vm.draw_text(shape))
    picture = vm.draw_picture(shape)
    pixels = resized(picture, shape.image_size)
    image = normalized(torch.from_numpy(pixels.copy())[None])
    stages = {name: value[0] for name, value in model.vision.stages(image).items()}
    ids = after
    length = len(before) + shape.num_rows + len(after)
    positions = row_positions(length + vm.DECODE_STEPS, len(before), shape.num_rows)
    for _ in range(vm.DECODE_STEPS):  # the whole sequence again for each token: no cache that could be wrong
        h = model.embed(before, stages["rows"], ids)
        logits = model.run(h, positions[: len(h)])
        ids = torch.cat([ids, logits[-1].argmax()[None]])
    h = model.embed(before, stages["rows"], ids)
    logits = model.run(h, positions)
    check_text(shape, h, positions, logits)
    arrays: dict[str, Any] = {
        "fingerprint": torch.tensor([gm.fingerprint(vm.draw_files(shape))], dtype=torch.float64),
        "pixels": torch.from_numpy(pixels.copy()),
        **stages,
        "logits": logits[:length],
        "decode": ids[len(after) :].int(),
        "decode_logits": logits[length:],
        "sequential_logits": model.run(h, torch.arange(len(h))),
        "no_antialias_rows": model.vision(normalized(without_antialias(picture, shape.image_size)))[0],
    }
    for block in model.vision.transformer["layers"]:
        block.pre_norm = True
    wrong = {name: value[0] for name, value in model.vision.stages(image).items()}
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
