"""TRL's GRPOTrainer with TAWin: beams of a catalogue as completions, a reward for the right item, the window's loss.

Run: pip install -e '.[trl]' && python examples/trl_grpo.py        (about 15 seconds on a CPU, nothing to download)
"""

import tempfile

from datasets import Dataset
from tawin_kernels import ItemTrie, TAWin
from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed
from trl import GRPOConfig

from tawin.catalog.tokenizer import make_semantic_tokenizer
from tawin.integrations.trl import TAWinGRPOTrainer, beam_rollout, item_reward

CODES = 8
# A synthetic catalogue: item 8 a + b is spelled <a_a><b_b>; who took it takes item 8 (a + 1) + b + 3 next (mod 8 each).
tokenizer = make_semantic_tokenizer([f"<{level}_{code}>" for level in "ab" for code in range(CODES)])
items = [f"<a_{a}><b_{b}>" for a in range(CODES) for b in range(CODES)]
targets = [CODES * ((a + 1) % CODES) + (b + 3) % CODES for a in range(CODES) for b in range(CODES)]
trie = ItemTrie.from_sequences(tokenizer(items)["input_ids"])
users = Dataset.from_dict({"prompt": items, "target": targets})

set_seed(0)
model = Qwen2ForCausalLM(
    Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        eos_token_id=tokenizer.eos_token_id,
    )
)
args = GRPOConfig(
    output_dir=tempfile.mkdtemp(prefix="trl_grpo_"),
    num_generations=16,  # beams a prompt
    num_generations_eval=1,  # the reward of the first beam is Recall@1
    per_device_train_batch_size=256,
    per_device_eval_batch_size=64,
    max_completion_length=trie.max_depth,
    max_steps=40,
    learning_rate=1e-2,
    gradient_checkpointing=False,
    use_cpu=True,
    bf16=False,
    report_to="none",
    save_strategy="no",
    disable_tqdm=True,
    logging_steps=20,
)
trainer = TAWinGRPOTrainer(
    model,
    reward_funcs=item_reward(trie),
    args=args,
    train_dataset=users,
    eval_dataset=users,
    processing_class=tokenizer,
    rollout_func=beam_rollout(trie),
    tawin=TAWin.for_top_k(3),
)
before = trainer.evaluate()["eval_reward"]
trainer.train()
after = trainer.evaluate()["eval_reward"]
print(f"reward of the first beam: {before:.3f} before, {after:.3f} after")
