"""Beams as completions of the real TRL, and rewards for the right item."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tawin_kernels import ItemTrie

from tawin import beam_search, cli, load_catalog

pytest.importorskip("trl", reason="needs TRL: pip install 'tawin[trl]'")

from trl import GRPOTrainer

from tawin.integrations.trl import beam_rollout, item_reward

from .trainers import GROUP, ITEMS, PROMPTS, QUIETLY, TOKENIZER, TRIE, make

pytestmark = QUIETLY


class TestBeamRollout:
    def test_gives_the_beams_of_beam_search_and_their_log_probs(self, tmp_path):
        trainer = make(GRPOTrainer, tmp_path)
        prompts = [prompt for prompt in [*PROMPTS[:3], PROMPTS[1]] for _ in range(GROUP)]
        output = trainer.rollout_func(prompts, trainer)
        for group, prompt in enumerate([*PROMPTS[:3], PROMPTS[1]]):
            ids = TOKENIZER(prompt)["input_ids"]
            found = beam_search(
                trainer.model.eval(), torch.tensor([ids]), torch.ones(1, len(ids)).long(), _unshared(), GROUP
            )
            rows = slice(group * GROUP, (group + 1) * GROUP)
            assert output["prompt_ids"][rows] == [ids] * GROUP
            assert output["completion_ids"][rows] == [
                tokens[mask].tolist() for tokens, mask in zip(found.token_ids[0], found.mask[0], strict=True)
            ]
            # Another batch, another order of summation.
            assert output["beam_scores"][rows] == pytest.approx(found.scores[0].tolist(), abs=1e-4)
            assert output["beam_ranks"][rows] == list(range(GROUP))
        for ids, logprobs, score in zip(
            output["completion_ids"], output["logprobs"], output["beam_scores"], strict=True
        ):
            assert len(logprobs) == len(ids)
            assert sum(logprobs) == pytest.approx(score, abs=1e-4)

    def test_searches_each_distinct_prompt_once_and_leaves_the_mode_alone(self, tmp_path):
        trainer = make(GRPOTrainer, tmp_path, options={"rollout_func": beam_rollout(TRIE, prompts_at_once=2)})
        trainer.model.train()
        prompts = [prompt for prompt in [*PROMPTS[:3], PROMPTS[1]] for _ in range(GROUP)]
        whole = beam_rollout(TRIE)(prompts, trainer)
        seen = []
        trainer.model.get_input_embeddings().register_forward_hook(
            lambda _m, inputs, _o: seen.append(inputs[0].numel())
        )
        assert trainer.rollout_func(prompts, trainer)["completion_ids"] == whole["completion_ids"]
        tokens = sum(len(TOKENIZER(prompt)["input_ids"]) for prompt in PROMPTS[:3])
        appended = 3 * GROUP * (TRIE.max_depth - 1)  # a search never runs the last token
        assert sum(seen) <= tokens + 2 * appended + PROMPT_PADDING
        assert trainer.model.training

    def test_two_at_once_find_what_one_finds_and_leave_the_mode_alone(self, tmp_path):
        trainer = make(GRPOTrainer, tmp_path, num_generations_eval=2)
        trainer.model.train()
        trainer.model.model.layers[0].mlp.eval()  # a frozen part
        before = [module.training for module in trainer.model.modules()]
        prompts = [[prompt for prompt in part for _ in range(GROUP)] for part in (PROMPTS[:3], PROMPTS[3:5])]
        expected = [trainer.rollout_func(part, trainer) for part in prompts]
        mine, results = threading.get_ident(), []

        def pause(*_: object) -> None:
            if threading.get_ident() == mine:
                results.append(thread.submit(trainer.rollout_func, prompts[1], trainer).result(timeout=60))

        hook = trainer.model.model.layers[1].mlp.register_forward_pre_hook(pause)
        with ThreadPoolExecutor(1) as thread:
            found = trainer.rollout_func(prompts[0], trainer)
        hook.remove()
        for output, theirs in [(found, expected[0]), *((result, expected[1]) for result in results)]:
            assert output["completion_ids"] == theirs["completion_ids"]
            assert output["beam_scores"] == pytest.approx(theirs["beam_scores"], abs=1e-5)
        assert len(results) >= TRIE.max_depth
        assert [module.training for module in trainer.model.modules()] == before

    def test_takes_conversations(self, tmp_path):
        tokenizer = copy.deepcopy(TOKENIZER)
        tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        trainer = make(GRPOTrainer, tmp_path, options={"processing_class": tokenizer})
        messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:2] for _ in range(GROUP)]
        texts = [prompt for prompt in PROMPTS[:2] for _ in range(GROUP)]
        assert trainer.rollout_func(messages, trainer) == trainer.rollout_func(texts, trainer)

    @pytest.mark.parametrize("prompts", [PROMPTS[:GROUP], [PROMPTS[0]] * (GROUP + 1)])
    def test_refuses_groups_that_are_not_whole(self, tmp_path, prompts):
        trainer = make(GRPOTrainer, tmp_path)
        with pytest.raises(ValueError, match="prompts: expected whole groups in every process, each prompt 4 times"):
            trainer.rollout_func(prompts, trainer)

    def test_refuses_a_broken_model(self, tmp_path):
        trainer = make(GRPOTrainer, tmp_path)
        with torch.no_grad():
            trainer.model.lm_head.weight[:] = torch.nan
        with pytest.raises(ValueError, match="expected finite log-probs"):
            trainer.rollout_func([PROMPTS[0]] * GROUP, trainer)

    def test_refuses_what_is_no_trie(self):
        with pytest.raises(TypeError, match="trie: expected an ItemTrie, got list"):
            beam_rollout(ITEMS)
        with pytest.raises(ValueError, match="prompts_at_once: expected an int of at least 1, got 0"):
            beam_rollout(TRIE, prompts_at_once=0)


PROMPT_PADDING = 4  # prompts of one, two and three tokens in a batch of two


def _unshared() -> ItemTrie:
    """The catalogue with one item a sequence: what the distinct sequences are."""
    return ItemTrie.from_sequences([item for i, item in enumerate(ITEMS) if i != 5])


class TestItemReward:
    def test_goes_by_the_items_of_the_tokens(self):
        rewards = item_reward(TRIE)(
            completion_ids=[ITEMS[2], ITEMS[2], ITEMS[3], ITEMS[20], ITEMS[20][:2], [*ITEMS[22], 1], [39], ITEMS[22]],
            target=[2, 5, 2, 20, 20, 22, 22, 22],
        )
        # 2 and 5 share a sequence; a prefix, an item and more, and an unknown token are no item.
        assert rewards == [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]

    def test_takes_several_targets_a_row_from_the_column_that_is_named(self):
        reward = item_reward(TRIE, "likes")
        assert reward(completion_ids=[ITEMS[1], ITEMS[1], ITEMS[1]], likes=[[0, 1], [4], []]) == [1.0, 0.0, 0.0]

    def test_a_catalogue_knows_targets_by_the_logs_own_ids(self, tmp_path):
        """As text or as numbers; the number of an item in the folder, given by first sight, is no id."""
        log = tmp_path / "log.csv"
        rows = [f"u{user},{sku},{time}" for user in range(4) for time, sku in enumerate(("30", "10", "x", "20"))]
        log.write_text("\n".join(["user_id,item_id,timestamp", *rows]))
        cli.main(["prepare", "csv", str(log), str(tmp_path / "data"), "--min-interactions", "1"])
        catalog = load_catalog(tmp_path / "data", item_tokens="item")
        tokens = {name: [int(token)] for name, token in zip(catalog.names, catalog.token_ids[:, 0], strict=True)}
        completions = [tokens["10"], tokens["10"], tokens["x"], tokens["30"], tokens["20"]]
        rewards = item_reward(catalog)(completion_ids=completions, target=["10", 10, ["30", "x"], "10", [20]])
        assert rewards == [1.0, 1.0, 1.0, 0.0, 1.0]
        with pytest.raises(ValueError, match=r"target: expected ids of the log, like .*, got '1'"):
            item_reward(catalog)(completion_ids=[tokens["10"]], target=[1])
        assert beam_rollout(catalog)._trie is catalog.trie

    def test_refuses_a_missing_column_and_items_that_there_are_not(self):
        with pytest.raises(ValueError, match=r"expected a column of the dataset, got 'target'; there are \['item'\]"):
            item_reward(TRIE)(completion_ids=[ITEMS[0]], item=[0])
        with pytest.raises(ValueError, match=r"target: expected items in \[0, 23\), got 23..23"):
            item_reward(TRIE)(completion_ids=[ITEMS[0]], target=[23])
        for row in (None, 3.0, "3", [1.5]):  # as of a table with gaps, whose integers have become floats
            with pytest.raises(
                ValueError, match="target: expected an item's number or a list of them in each row, got"
            ):
                item_reward(TRIE)(completion_ids=[ITEMS[0]], target=[row])
