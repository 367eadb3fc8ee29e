"""The real TRL on the CPU: its loss and gradients, TAWin's advantages, refusals, and a run that learns."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from tawin_kernels import ItemTrie, TAWin, group_advantages
from torch import Tensor

pytest.importorskip("trl", reason="needs TRL: pip install 'tawin[trl]'")

from peft import PromptTuningConfig, get_peft_model
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM
from trl import GRPOTrainer

from tawin.integrations.trl import TAWinGRPOTrainer, beam_rollout

from ...models import tiny_model
from .trainers import DATASET, GROUP, ITEMS, LORA, PROMPTS, QUIETLY, TRIE, VOCABULARY, generation_batch, make

pytestmark = QUIETLY


@pytest.fixture(scope="module", params=["full", "lora"])
def pair(request, tmp_path_factory) -> tuple[Any, Any, dict[str, Any]]:
    """Ours without TAWin and TRL's own, around the same model in training mode; and inputs of the loss."""
    model = tiny_model("qwen2", VOCABULARY)
    if request.param == "lora":
        torch.manual_seed(3)
        model = get_peft_model(model, LORA)
    folder = tmp_path_factory.mktemp("pair")
    ours = make(TAWinGRPOTrainer, folder, model, options={"tawin": None})
    theirs = make(GRPOTrainer, folder, model)
    for trainer in (ours, theirs):
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 2
    return ours, theirs, loss_inputs(theirs)


def loss_inputs(trainer: Any, *, seed: int = 0) -> dict[str, Any]:
    """A micro-batch of rows of several groups, with an old and a reference policy of their own."""
    generator = torch.Generator().manual_seed(seed)
    inputs = trainer._generate_and_score_completions(generation_batch())
    shape = inputs["completion_mask"].shape
    log_probs, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat((inputs["prompt_ids"], inputs["completion_ids"]), 1),
        torch.cat((inputs["prompt_mask"], inputs["completion_mask"]), 1),
        shape[1],
    )
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        inputs[name] = log_probs.detach() + 0.4 * torch.randn(shape, generator=generator)
    inputs["advantages"] = torch.randn(shape[0], generator=generator) * (torch.arange(shape[0]) % 3 != 1)
    rows = torch.randperm(shape[0], generator=generator)[:10]
    return {name: value[rows] if value.ndim else value for name, value in inputs.items()}


def loss_and_gradients(trainer: Any, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    loss = trainer.compute_loss(trainer.model, dict(inputs))
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kl", ["none", "plain", "corrected"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo"])
def test_loss_gradients_and_metrics_are_those_of_trl(pair, loss_type, level, kl):
    ours, theirs, inputs = pair
    for trainer in (ours, theirs):
        trainer.loss_type, trainer.importance_sampling_level = loss_type, level
        trainer.epsilon_high = 1.3 if loss_type == "cispo" else 0.2
        trainer.beta, trainer.args.use_bias_correction_kl = (0.0 if kl == "none" else 0.3), kl == "corrected"
    if kl == "none":
        inputs = {name: value for name, value in inputs.items() if name != "ref_per_token_logps"}
    loss, gradients = loss_and_gradients(ours, inputs)
    their_loss, their_gradients = loss_and_gradients(theirs, inputs)
    # fp32: two orders of summation.
    torch.testing.assert_close(loss, their_loss, atol=1e-6, rtol=1e-5)
    assert gradients.keys() == their_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], atol=1e-5, rtol=1e-4, msg=name)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
    metrics, their_metrics = ours._metrics["train"], theirs._metrics["train"]
    assert metrics.keys() == their_metrics.keys()
    for name in metrics.keys() - ({"entropy"} if kl == "none" else set()):  # else of the rows that were run
        assert metrics[name] == pytest.approx(their_metrics[name], abs=1e-5), name


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_in_evaluation_the_loss_is_that_of_trl(pair, loss_type):
    *trainers, inputs = pair
    losses = []
    for trainer in trainers:
        trainer.loss_type, trainer.importance_sampling_level = loss_type, "token"
        trainer.beta, trainer.epsilon_high = 0.0, 0.2
        trainer.model.eval()
        with torch.no_grad():
            losses.append(trainer.compute_loss(trainer.model, dict(inputs)))
        trainer.model.train()
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-5)
    assert losses[0].abs() > 1e-3


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("full", {"num_iterations": 2}),
        ("full", {"beta": 0.1, "loss_type": "grpo"}),
        ("full", {"num_iterations": 2, "loss_type": "cispo", "epsilon_high": 1.0}),
        ("lora", {"beta": 0.1, "num_iterations": 2, "loss_type": "dr_grpo", "scale_rewards": "batch"}),
    ],
)
def test_without_tawin_a_whole_run_is_that_of_trl(tmp_path, kind, changes):
    tiny_model("qwen2", VOCABULARY).save_pretrained(tmp_path / "model")  # TRL loads its reference from there
    runs = []
    for trainer_class, options in ((GRPOTrainer, {}), (TAWinGRPOTrainer, {"tawin": None})):
        if kind == "lora":
            options["peft_config"] = copy.deepcopy(LORA)
        trainer = make(
            trainer_class,
            tmp_path,
            str(tmp_path / "model"),
            options=options,
            max_steps=4,
            learning_rate=3e-3,
            model_init_kwargs={"dtype": "float32"},
            **changes,
        )
        start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
        runs.append((trainer, start))
    (theirs, start), (ours, _) = runs
    for line, their_line in zip(ours.state.log_history[:-1], theirs.state.log_history[:-1], strict=True):
        for name in ("loss", "reward", "kl", "clip_ratio/region_mean"):
            assert line.get(name) == pytest.approx(their_line.get(name), abs=1e-5), name
    moved = 0.0
    for name, parameter in ours.model.named_parameters():
        # Adam divides by the gradient's size, so that rounding of small gradients shows: a hundredth of a step.
        torch.testing.assert_close(parameter, theirs.model.get_parameter(name), atol=1e-4, rtol=0.0, msg=name)
        moved = max(moved, float((parameter - start[name]).detach().abs().max()))
    assert moved > 5e-3


def test_after_the_shuffle_every_row_has_its_advantage_of_the_group(tmp_path):
    tawin = TAWin(anchor=1.0, window=1.5)
    trainer = make(TAWinGRPOTrainer, tmp_path, options={"tawin": tawin})
    trainer.model.train()
    trainer._prepare_inputs(generation_batch())
    parts = trainer._buffered_inputs
    assert len(parts) == 4 and all(len(part["group_ids"]) == 6 for part in parts)
    rows = {name: torch.cat([part[name] for part in parts]) for name in ("group_ids", "beam_scores", "advantages")}
    completions = [
        ids[mask.bool()].tolist()
        for part in parts
        for ids, mask in zip(part["completion_ids"], part["completion_mask"], strict=True)
    ]
    assert not torch.equal(rows["group_ids"], rows["group_ids"].sort().values)
    assert any(count % GROUP for count in Counter(parts[0]["group_ids"].tolist()).values())  # groups straddle parts
    live = 0
    for group in range(6):
        of_group = (rows["group_ids"] == group).nonzero()[:, 0]
        assert len(of_group) == GROUP
        rewards = torch.tensor([[float(completions[row] == ITEMS[DATASET[group]["target"]]) for row in of_group]])
        expected = group_advantages(rewards, rows["beam_scores"][None, of_group], tawin=tawin)
        # fp32 of the same formula.
        torch.testing.assert_close(rows["advantages"][of_group], expected[0], atol=1e-6, rtol=1e-6)
        live += bool(expected.any())
    assert live > 0
    assert sorted(trainer._logs["advantages"]) == pytest.approx(sorted(rows["advantages"].tolist()))


def test_a_row_that_no_function_rewards_is_neither_positive_nor_negative(tmp_path):
    def partial(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [None if i % GROUP == 1 else float(i % GROUP == 3) for i in range(len(completion_ids))]

    tawin = TAWin(anchor=1.0)
    trainer = make(TAWinGRPOTrainer, tmp_path, options={"tawin": tawin, "reward_funcs": partial})
    output = trainer._generate_and_score_completions(generation_batch())
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    valid = torch.tensor([[True, False, True, True]])
    expected = group_advantages(rewards, output["beam_scores"][None, :GROUP], tawin=tawin, valid=valid)
    torch.testing.assert_close(output["advantages"][:GROUP], expected[0])


def test_the_loss_runs_live_rows_only_and_never_the_lm_head(tmp_path):
    trainer = make(TAWinGRPOTrainer, tmp_path, options={"tawin": TAWin()})
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    inputs = loss_inputs(trainer)
    rows_run: list[int] = []
    trainer.model.get_decoder().register_forward_pre_hook(
        lambda _module, _args, options: rows_run.append(len(options["input_ids"])), with_kwargs=True
    )
    trainer.model.lm_head.register_forward_pre_hook(lambda *_: pytest.fail("logits were made"))
    trainer.compute_loss(trainer.model, inputs).backward()
    live = int((inputs["advantages"] != 0).sum())
    assert rows_run == [live] and 0 < live < 10


def test_a_micro_batch_without_an_advantage_has_a_loss_and_a_gradient_of_zero(tmp_path):
    trainer = make(TAWinGRPOTrainer, tmp_path, options={"tawin": TAWin()})
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    inputs = loss_inputs(trainer)
    loss, gradients = loss_and_gradients(trainer, inputs | {"advantages": torch.zeros(10)})
    assert loss == 0.0
    assert gradients and not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_puts_the_right_items_first(tmp_path, kind):
    options = {"tawin": TAWin.for_top_k(1)} | ({"peft_config": LORA} if kind == "lora" else {})
    trainer = make(
        TAWinGRPOTrainer,
        tmp_path,
        options=options,
        max_steps=16,
        learning_rate=2e-2 if kind == "lora" else 5e-3,
        num_generations=8,
        num_generations_eval=1,
        per_device_train_batch_size=48,
        gradient_accumulation_steps=1,
        steps_per_generation=None,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    # With one beam the reward is Recall@1.
    assert after["eval_reward"] == after["eval_tawin/hit_rate"]
    assert after["eval_reward"] >= before["eval_reward"] + 0.3
    assert trainer.state.log_history[1]["tawin/largest_weight"] > 1.5


@pytest.mark.parametrize("trainer_class", [GRPOTrainer, TAWinGRPOTrainer])
def test_mixed_precision_with_a_reference_runs(tmp_path, trainer_class):
    tiny_model("qwen2", VOCABULARY).save_pretrained(tmp_path / "model")
    changes = {"bf16": True, "beta": 0.1, "max_steps": 2, "num_iterations": 2, "sync_ref_model": True}
    trainer = make(trainer_class, tmp_path, str(tmp_path / "model"), model_init_kwargs={"dtype": "float32"}, **changes)
    trainer.train()
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    # Policy, old policy and reference have the same head: where they are the same, nothing is clipped or apart.
    assert trainer.state.log_history[0]["clip_ratio/region_mean"] == 0.0
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0.0, abs=1e-6)


class TestRefusals:
    @pytest.mark.parametrize(
        "changes",
        [
            {"loss_type": "sapo"},
            {"loss_type": "vespo"},
            {"loss_type": "luspo", "importance_sampling_level": "sequence"},
            {"top_entropy_quantile": 0.5},
            {"entropy_coef": 0.01},
            {"delta": 2.0},
            {"use_adaptive_entropy": True},
            {"epsilon_high": 0.9, "loss_type": "cispo"},
            {"epsilon_high": None, "loss_type": "cispo"},  # TRL's default: epsilon, 0.2
            {"epsilon": -0.1},
            {"beta": -0.1, "use_bias_correction_kl": False},
            {"mask_truncated_completions": True},
            {"off_policy_mask_threshold": 0.5},
            {"cast_lm_head_to_fp32": True},
        ],
        ids=str,
    )
    def test_an_option_that_the_loss_does_not_know(self, tmp_path, changes):
        model = str(tmp_path / "model")
        tiny_model("qwen2", VOCABULARY).save_pretrained(model)  # TRL loads its reference from there
        with pytest.raises(ValueError, match=f"args.{next(iter(changes))}: expected"):
            make(TAWinGRPOTrainer, tmp_path, model, **changes)

    @pytest.mark.parametrize(
        "name, model",
        [
            ("final_logit_softcapping", lambda: tiny_model("gemma2", VOCABULARY, attention="eager")),
            ("logit_scale", lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.0625))),
            ("logits_scaling", lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0))),
        ],
    )
    def test_a_head_that_does_more_than_a_product(self, tmp_path, name, model):
        with pytest.raises(ValueError, match=f"{name} = .* changes the logits"):
            make(TAWinGRPOTrainer, tmp_path, model())
        trainer = make(GRPOTrainer, tmp_path, model())
        with pytest.raises(ValueError, match=f"{name} = .* changes the logits"):
            trainer.rollout_func([PROMPTS[0]] * GROUP, trainer)

    def test_virtual_tokens(self, tmp_path):
        model = get_peft_model(tiny_model("qwen2", VOCABULARY), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2))
        with pytest.raises(ValueError, match="expected LoRA or full weights, got virtual tokens"):
            make(TAWinGRPOTrainer, tmp_path, model)

    def test_a_token_beyond_the_vocabulary(self, tmp_path):
        trie = ItemTrie.from_sequences([[3 + i, 4] for i in range(5)] + [[VOCABULARY, 1]])
        with pytest.raises(ValueError, match=r"trie: expected tokens in \[0, 40\), .* got 40"):
            make(TAWinGRPOTrainer, tmp_path, options={"rollout_func": beam_rollout(trie)})

    def test_more_generations_than_items(self, tmp_path):
        with pytest.raises(ValueError, match=r"args\.num_generations: expected at most 22, the distinct sequences"):
            make(TAWinGRPOTrainer, tmp_path, num_generations=23, per_device_train_batch_size=23)

    def test_a_temperature_that_beams_do_not_have(self, tmp_path):
        with pytest.raises(ValueError, match=r"args\.temperature: expected 1.0"):
            make(TAWinGRPOTrainer, tmp_path, temperature=0.7)

    def test_completions_that_are_too_short_for_an_item(self, tmp_path):
        with pytest.raises(ValueError, match=r"args\.max_completion_length: expected at least 3"):
            make(TAWinGRPOTrainer, tmp_path, max_completion_length=2)

    def test_tawin_without_scores(self, tmp_path):
        with pytest.raises(ValueError, match="rollout_func: expected beam_rollout"):
            make(TAWinGRPOTrainer, tmp_path, options={"rollout_func": None})
        beams = beam_rollout(TRIE)

        def without_scores(prompts: list[Any], trainer: Any) -> dict[str, Any]:
            output = beams(prompts, trainer)
            return {name: output[name] for name in ("prompt_ids", "completion_ids", "logprobs")}

        trainer = make(TAWinGRPOTrainer, tmp_path, options={"rollout_func": without_scores})
        with pytest.raises(ValueError, match="expected a field 'beam_scores'"):
            trainer._generate_and_score_completions(generation_batch())

    def test_what_is_no_tawin(self, tmp_path):
        with pytest.raises(TypeError, match="tawin: expected a TAWin or None, got bool"):
            make(TAWinGRPOTrainer, tmp_path, options={"tawin": True})


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
