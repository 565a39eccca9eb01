"""Which tokens' rows of the head are worth a finer format.

Errors e_v of the logits change the distribution p by a divergence of about sum_v p_v (e_v - sum_u p_u e_u)^2 / 2: an
error costs p (1 - p). Few tokens are ever candidates, and rounding the head is what int4 loses most by. So the rows of
those that are, a small fraction of the vocabulary, are kept a second time in int8 and replace the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glm4.kernels.base import Kernels
from glm4.kernels.formats import ROW_BLOCK, PackedWeight, packed_nbytes
from glm4.model.tensors import FREQUENT_HEAD, row_of

FREQUENT_FORMAT = row_of(FREQUENT_HEAD).format
# At most one in this many tokens is frequent: 0.02 bits per weight for a 9B model, 0.06 for the smallest ones.
FREQUENT_SHARE = 32
_ROWS = 64  # positions whose distributions are held at a time


def frequent_count(vocabulary: int, hidden_size: int, room: float) -> int:
    """How many tokens: a 32nd of the vocabulary, or the whole row blocks that fit in `room` bytes, if fewer."""
    block_and_ids = packed_nbytes(FREQUENT_FORMAT, ROW_BLOCK, hidden_size) + 4 * ROW_BLOCK
    blocks = int(room // block_and_ids)
    return max(0, min(vocabulary // FREQUENT_SHARE, blocks * ROW_BLOCK))


def frequent_tokens(x: NDArray[np.float32], head: PackedWeight, count: int, kernels: Kernels) -> NDArray[np.intp]:
    """The `count` tokens with the largest sum of p (1 - p) over all positions of a text, ascending.

    Args:
        x: inputs of the head, [positions, H].
        head: [vocabulary, H].
    """
    doubt = np.zeros(head.rows)
    for start in range(0, len(x), _ROWS):
        p = np.exp(kernels.log_softmax(kernels.linear(x[start : start + _ROWS], head)))
        doubt += np.einsum("ij,ij->j", p, 1 - p)
    return np.sort(np.argsort(-doubt, kind="stable")[:count])
