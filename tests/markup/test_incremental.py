"""Text that grows gives what the whole text gives."""

from __future__ import annotations

import random

import pytest
from applied import applied

from glm4.markup import IncrementalRenderer, render

DOCUMENT = r"""# 标题 Title

Hello **world** $5 and \(a|b|\) 【3†source】 [x][later] #tag

\[
\begin{aligned} a &= b \\
- c &= d
\end{aligned}
\]

| a | $|x|$ |
|:--|--:|
| 1 | 2 |

```python
def f(x):
    return "a<b"
```

- [ ] task
- [x] done
  ```c
  int x;
  ```

1. one[^1]
2. two

[^1]: Note.
[later]: https://e.org

~~strike~~ `code $x$`
"""


@pytest.mark.parametrize("seed", range(20))
def test_a_text_in_pieces_ends_as_the_whole(seed: int) -> None:
    chance = random.Random(seed)
    renderer = IncrementalRenderer()
    blocks: list[str] = []
    position = 0
    while position < len(DOCUMENT):
        size = chance.randint(1, 12)
        blocks = applied(blocks, renderer.feed(DOCUMENT[position : position + size]))
        assert blocks == renderer.blocks
        position += size
    blocks = applied(blocks, renderer.finish())
    assert blocks == renderer.blocks == render(DOCUMENT)
