"""Live groups are dealt out evenly; ../test_distributed.py has two processes do it."""

from __future__ import annotations

import torch

from tawin.rl.groups import Groups
from tawin.rl.rebalance import balanced
from tawin.run.processes import Processes


def groups_of(lengths: list[int], live: list[bool], token: int) -> Groups:
    """Groups of two completions; prompts of the given lengths are filled with `token`."""
    longest = max(lengths)
    mask = (torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]).long()
    rewards = torch.tensor(live).float()[:, None] * torch.tensor([1.0, 0.0])
    count = len(lengths)
    return Groups(
        input_ids=token * mask,
        attention_mask=mask,
        token_ids=torch.full((count, 2, 2), token),
        rewards=rewards,
        scores=torch.zeros(count, 2),
        hits=torch.tensor(live),
    )


class OneOf(Processes):
    """A process whose fellows' groups are known beforehand."""

    fellows: tuple[object, ...] = ()

    def gather(self, value: object) -> list[object]:  # type: ignore[override]
        return [*self.fellows[: self.rank], value, *self.fellows[self.rank :]]


def sent_by(groups: list[Groups]) -> object:
    """What a process hands to the others."""
    sent: list[object] = []

    class Recording(Processes):
        def gather(self, value: object) -> list[object]:  # type: ignore[override]
            sent.append(value)
            return [value]

    balanced(groups, Recording(rank=0, count=2))
    return sent[0]


def test_one_process_keeps_its_live_groups() -> None:
    (live,) = balanced([groups_of([3, 2, 1], [True, False, True], 7)], Processes())
    assert live.attention_mask.sum(1).tolist() == [3, 1]


def test_every_live_group_goes_to_one_process_long_and_short_prompts_alike() -> None:
    batches = [
        [groups_of([5, 4, 3, 9], [True, True, True, False], 7), groups_of([2], [True], 7)],
        [groups_of([8, 1], [False, True], 8), groups_of([3, 3], [False, False], 8)],
    ]
    sent = [sent_by(own) for own in batches]
    dealt = []
    for rank, own in enumerate(batches):
        process = OneOf(rank=rank, count=2)
        object.__setattr__(process, "fellows", tuple(part for other, part in enumerate(sent) if other != rank))
        dealt.append(balanced(own, process))
    lengths = [[part.attention_mask.sum(1).tolist() for part in own] for own in dealt]
    assert lengths == [[[5, 3], []], [[4, 1], [2]]]  # the second batch's one group goes to the second process
    for own in dealt:
        for part in own:
            assert bool(part.live.all())
            assert torch.equal(part.input_ids, part.attention_mask * part.token_ids[:, 0, :1])
    assert dealt[1][0].input_ids.shape[1] == 4  # padding that no prompt needs is gone
