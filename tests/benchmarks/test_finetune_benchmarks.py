"""The programs that measure fine-tuning: both sides get the same tokens, and what is counted. No clock, no torch."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import finetune
import finetune_data
import finetune_tasks
from function_cards import HELD_OUT, cards
from glm4.requests.processor import Processor
from glm4.training.config import DataConfig
from glm4.training.data.dataset import load_datasets
from glm4.training.data.examples import TokenizedExample
from tiny import write_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the standard library's modules


def test_the_peers_get_the_tokens_and_targets_that_we_train_on(tmp_path: Path) -> None:
    model = write_folder(tmp_path / "m")
    made = finetune_data.conversations(6, 0)
    finetune_data.write_rows(tmp_path / "rows.jsonl", made)
    finetune_data.save_tokens(tmp_path / "tokens.npz", finetune_data.tokenized(model, made))
    theirs = finetune_data.load_tokens(tmp_path / "tokens.npz")
    ours = load_datasets(
        DataConfig(train=(str(tmp_path / "rows.jsonl"),), max_length=1 << 16), Processor.open(model), seed=0
    ).train
    assert len(theirs) == 6
    for (ids, mask), sample in zip(theirs, ours, strict=True):
        assert isinstance(sample, TokenizedExample)
        np.testing.assert_array_equal(ids, sample.ids)
        np.testing.assert_array_equal(mask, sample.mask)


def test_lengths_are_mixed() -> None:
    lengths = [sum(len(message["content"]) for message in made) for made in finetune_data.conversations(64, 0)]
    assert max(lengths) > 4 * statistics.median(lengths)
    assert finetune_data.conversations(3, 1) == finetune_data.conversations(64, 1)[:3]


def test_ratios_are_those_of_the_same_round() -> None:
    def runs(*rates: float) -> list[dict[str, object]]:
        return [{"rate": rate, "peak": 2e9, "losses": [1.0]} for rate in rates]

    found = {"glm4": runs(20.0, 2.0, 30.0), "TRL": runs(10.0, 1.0, 30.0)}
    rows = finetune.rows_of(found, {"glm4": 1.0, "TRL": 1.5})
    assert rows[0]["ours / this"] is None
    assert rows[1]["ours / this"] == 2.0  # although the second round was slow for both
    assert (rows[1]["tokens/s"], rows[1]["peak memory, GB"], rows[1]["memory, ours / this"]) == (10.0, 2.0, 1.0)


def test_no_module_is_both_trained_and_asked_about() -> None:
    trained, asked = ({card.fields["lib"] for card in cards(held_out=held_out)} for held_out in (False, True))
    assert asked <= set(HELD_OUT)
    assert not trained & asked
    assert len(asked) > 5


def test_fields_of_a_card_are_counted_one_by_one() -> None:
    card = next(card for card in cards(held_out=True) if card.fields["needs"])
    assert card.right(json.dumps(card.fields)) == 1.0
    assert card.right(json.dumps(card.fields | {"needs": []})) == pytest.approx(5 / 6)
    assert card.right(f"Here it is:\n```json\n{json.dumps(card.fields, indent=2)}\n```") == 1.0
    assert card.right("{}") == card.right('{"lib": ') == card.right("[]") == 0.0


def test_a_gain_is_told_from_noise() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(50)
    low, high = finetune_tasks.gain(before.tolist(), (before + 0.1).tolist())
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)
    low, high = finetune_tasks.gain(before.tolist(), rng.random(50).tolist())
    assert low < 0 < high
