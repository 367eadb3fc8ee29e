"""GRPO with TAWin in a loop written by hand: torch and tawin_kernels, nothing else. python examples/raw_pytorch.py

A shop has 64 items, each a word of three tokens. Whoever bought item i buys item i + 17 next, but nobody says so: a
small GRU that starts from noise proposes 16 items a user, and hears only which of them was bought. Seconds on one core.
"""

import torch
from tawin_kernels import ItemTrie, TAWin, beam_step, tawin_grpo_loss

torch.manual_seed(0)
torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
B, G, L, V, H = 64, 16, 3, 12, 64  # prompts, completions a prompt, tokens an item, vocabulary, hidden size

items = torch.arange(B)
words = torch.stack([items // 16, 4 + items // 4 % 4, 8 + items % 4], dim=-1)  # [B, L], four tokens a level
trie = ItemTrie.from_sequences(words)
bought, wanted = words, words.roll(-17, dims=0)  # [B, L] each: one user for every item

embedding, gru = torch.nn.Embedding(V, H), torch.nn.GRU(H, H, batch_first=True)
lm_head_weight = torch.nn.Parameter(torch.randn(V, H) / H**0.5)
optimizer = torch.optim.Adam([*embedding.parameters(), *gru.parameters(), lm_head_weight], lr=5e-3)


def states(token_ids):
    """Of completions [B, W, T] behind their prompts, the states that predict the token after each: [B, W, 1 + T, H]."""
    text = torch.cat([bought[:, None].expand(-1, token_ids.shape[1], -1), token_ids.clamp(min=0)], dim=-1)
    return gru(embedding(text.flatten(0, 1)))[0].unflatten(0, text.shape[:2])[:, :, L - 1 :]


@torch.no_grad()
def rollout():
    """The G likeliest items of each user, best first: token ids [B, G, L] and log p [B, G]."""
    token_ids, nodes, scores = words.new_empty(B, 1, 0), words.new_zeros(B, 1), torch.zeros(B, 1)
    for _ in range(L):
        scores, tokens, nodes, parents = beam_step(states(token_ids)[:, :, -1], lm_head_weight, trie, nodes, scores, G)
        token_ids = torch.cat([token_ids.take_along_dim(parents[..., None], dim=1), tokens[..., None]], dim=-1)
    return token_ids, scores


for update in range(41):
    token_ids, scores = rollout()
    rewards = (token_ids == wanted[:, None]).all(-1).float()  # [B, G]
    if update % 20 == 0:
        print(f"update {update:2d}: the first proposal is bought by {rewards[:, 0].mean():.0%} of the users")
    hidden, mask = states(token_ids[..., :-1]), token_ids >= 0  # [B, G, L, H], [B, G, L]
    result = tawin_grpo_loss(hidden, lm_head_weight, token_ids, mask, rewards, scores, tawin=TAWin.for_top_k(1))
    optimizer.zero_grad()
    result.loss.backward()
    optimizer.step()
