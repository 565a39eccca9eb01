"""DPO against TRL's trainer on the same batch, and on a toy task."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import peft
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from glm4.errors import InvalidRequestError
from glm4.training.batches import collate
from glm4.training.data.examples import TokenizedExample, TokenizedPreference
from glm4.training.dpo import DpoObjective
from glm4.training.dpo_references import with_references

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

ROWS = [
    {"prompt": "how are you", "chosen": " fine", "rejected": " go away please"},
    {"prompt": "one and one", "chosen": " is two of them", "rejected": " three"},
    {"prompt": "a", "chosen": "b", "rejected": "c"},
]
BETA = 0.3
COLLATE = partial(collate, pad_id=0)


def tiny_glm(seed: int = 0) -> Any:
    transformers.set_seed(seed)
    config = transformers.GlmConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, pad_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    return transformers.GlmForCausalLM(config)


def byte_tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0} | {character: index for index, character in enumerate(alphabet, 1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def lora() -> peft.LoraConfig:
    return peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules="all-linear")


def trl_trainer(folder: Path, peft_config: peft.LoraConfig | None, **settings: Any) -> Any:
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(
        output_dir=str(folder), beta=BETA, per_device_train_batch_size=len(ROWS), use_cpu=True, bf16=False,
        report_to=[], gradient_checkpointing=False, dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    trainer: Any = DPOTrainer(
        model=tiny_glm(), ref_model=None if peft_config else tiny_glm(), args=args, peft_config=peft_config,
        train_dataset=Dataset.from_list(ROWS), processing_class=byte_tokenizer(),
    )  # fmt: skip
    return trainer


def pairs_of(trainer: Any) -> list[TokenizedPreference]:
    """The rows that TRL's trainer has tokenized."""

    def example(prompt: list[int], answer: list[int]) -> TokenizedExample:
        mask = np.repeat([False, True], [len(prompt), len(answer)])
        return TokenizedExample(np.array(prompt + answer, np.int32), mask)

    return [
        TokenizedPreference(
            example(row["prompt_ids"], row["chosen_ids"]), example(row["prompt_ids"], row["rejected_ids"])
        )
        for row in trainer.train_dataset
    ]


def shake(model: nn.Module) -> None:
    """Move what is trained away from the reference, where every margin is 0."""
    transformers.set_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def logprobs_of(model: Any) -> Any:
    objective = DpoObjective(COLLATE, BETA)
    return lambda pairs: objective.references(model, objective.collate(pairs))


def assert_same(objective: DpoObjective, pairs: list[TokenizedPreference], trainer: Any, batch: Any) -> None:
    """Loss, gradients and metrics of both."""
    model = trainer.model.train()
    theirs = trainer.compute_loss(model, batch)
    expected = gradients(model, theirs)
    ours_batch = objective.collate(pairs)
    ours = objective.loss(model, ours_batch) / objective.count(ours_batch)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert ours.item() != pytest.approx(np.log(2), abs=1e-3)
    found = gradients(model, ours)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    metrics = objective.metrics(training=True)
    assert set(metrics) == {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"}
    for name, value in metrics.items():
        assert value == pytest.approx(trainer._metrics["train"][name][-1], abs=1e-5)
    assert objective.metrics(training=True) == {}


def test_with_an_adapter_everything_is_as_in_trl(tmp_path: Path) -> None:
    trainer = trl_trainer(tmp_path, lora())
    shake(trainer.model)
    batch = trainer.data_collator(list(trainer.train_dataset))
    objective = DpoObjective(COLLATE, BETA, lambda model: model.disable_adapter())
    assert_same(objective, pairs_of(trainer), trainer, batch)
    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(objective, pairs_of(trainer), trainer, batch)


def test_with_references_computed_before_everything_is_as_in_trl(tmp_path: Path) -> None:
    trainer = trl_trainer(tmp_path, None, precompute_ref_log_probs=True)
    plain, model = pairs_of(trainer), trainer.model
    pairs = with_references(plain, logprobs_of(model), tmp_path / "references.json", model="tiny", batch_size=2)
    for pair, row in zip(pairs, trainer.train_dataset, strict=True):
        assert pair.references == pytest.approx((row["ref_chosen_logps"], row["ref_rejected_logps"]), abs=1e-4)
    shake(model)
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert_same(DpoObjective(COLLATE, BETA), list(pairs), trainer, batch)


def test_references_are_computed_once_and_for_these_pairs_only(tmp_path: Path) -> None:
    path = tmp_path / "run" / "references.json"
    model = tiny_glm()
    plain = pairs_of(trl_trainer(tmp_path, None))
    calls: list[int] = []

    def counted(pairs: Any) -> torch.Tensor:
        calls.append(len(pairs))
        return logprobs_of(model)(pairs)

    def references(pairs: list[TokenizedPreference], name: str = "tiny") -> list[Any]:
        found = with_references(pairs, counted, path, model=name, batch_size=2)
        return [pair.references for pair in found]

    first = references(plain)
    assert calls == [2, 1]
    shake(model)
    assert references(plain) == first  # although the model has moved: a resumed run needs the old ones
    assert calls == [2, 1]
    assert references(plain[:2]) != first[:2]  # other data
    assert references(plain[:2], "other") == references(plain[:2])  # another base: computed again, by the same model
    assert calls == [2, 1, 2, 2, 2]
    path.write_bytes(path.read_bytes()[:-5])
    assert references(plain[:2]) is not None
    assert calls[5:] == [2]


def test_a_model_that_gives_nan_is_refused(tmp_path: Path) -> None:
    plain = pairs_of(trl_trainer(tmp_path, None))
    with pytest.raises(InvalidRequestError, match="not finite"):
        with_references(plain, lambda pairs: torch.full((2 * len(pairs),), torch.nan), tmp_path / "r", model="tiny")
    assert not (tmp_path / "r").exists()


def test_training_learns_to_prefer(tmp_path: Path) -> None:
    trainer = trl_trainer(tmp_path, lora())
    objective, pairs, model = (
        DpoObjective(COLLATE, BETA, lambda model: model.disable_adapter()),
        pairs_of(trainer),
        trainer.model,
    )
    batch = objective.collate(pairs)
    reference = objective.references(model, batch)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses, accuracies = [], []
    for _ in range(15):
        loss = objective.loss(model.train(), batch) / objective.count(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        accuracies.append(objective.metrics(training=True)["rewards/accuracies"])
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert losses[-1] < 0.1
    assert accuracies[0] < 1
    assert accuracies[-1] == 1
    torch.testing.assert_close(objective.references(model, batch), reference)  # training left the reference as it was
    objective.loss(model.eval(), batch)
    assert objective.metrics(training=True) == {}
    assert objective.metrics(training=False)["rewards/margins"] > 1
