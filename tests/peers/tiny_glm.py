"""The model the peer suites talk to: a random two-layer GLM with a byte vocabulary, made in a fraction of a second.

Its numbers are random but for one thing: a constant channel makes printable ASCII likely and everything else, special
tokens included, very unlikely. So answers are text, and they end where a length or a stop string says, as the suites'
own small models do.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from golden_models import draw, file_tensors  # noqa: E402
from tiny import special_id, tiny_model, write_folder  # noqa: E402
from vision_models import TinyVision, draw_vision, vision_config_json  # noqa: E402

GLM4_TEMPLATE = TESTS.parent / "src/glm4/chat/template/jinja/glm4.jinja"
CONTEXT = 32768
NEVER = -3.0


def checkpoint(
    cache: Path, template: str | None = None, temperature: float = 0.8, end_bias: float = NEVER, *, sees: bool = False
) -> Path:
    """The folder of a checkpoint with this chat template (default: GLM-4's), written the first time.

    Args:
        end_bias: how likely the end of the answer is: 3 is as likely as a letter.
        sees: it has a vision tower, and GLM-4V's own template.
    """
    source = GLM4_TEMPLATE.read_text() if template is None else template
    key = hashlib.sha256(json.dumps([source, temperature, end_bias, sees]).encode()).hexdigest()[:16]
    folder = cache / f"tiny-{key}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=cache))
        model = tiny_model("chatglm", max_position_embeddings=CONTEXT, rope_theta=5e6)
        tensors = draw(model)
        tensors["embed_tokens"][:, 0] = 2.0
        for name, value in tensors.items():
            if name.endswith((".o", ".down")):
                value[0] = 0.0  # nothing in between changes the constant channel
        bias = np.full(model.vocab_size, NEVER, np.float32)
        bias[32:127] = 3.0
        bias[special_id("<|user|>")] = end_bias
        if end_bias > NEVER:
            bias[ord('"')] = 4.2  # strings inside JSON end, too
        tensors["lm_head"][:, 0] = bias
        marks = map(special_id, ("<|endoftext|>", "<|begin_of_image|>", "<|end_of_image|>"))
        vision = TinyVision(model, 3, 48, 4, 96, 56, 14, 8.0, *marks)
        write_folder(
            partial,
            model,
            tensors=file_tensors(model, tensors) | (draw_vision(vision) if sees else {}),
            config=vision_config_json(vision) if sees else None,
            chat_template=None if sees else source,
            generation_config={"temperature": temperature, "do_sample": temperature > 0},
        )
        try:
            partial.replace(folder)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return folder
