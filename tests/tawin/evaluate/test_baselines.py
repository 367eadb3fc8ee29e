import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tawin.data.dataset import Examples
from tawin.data.ragged import Ragged
from tawin.evaluate.baselines import COUNTS, ITEM_KNN, NEAREST_VECTOR, POPULARITY, build_baselines

ITEMS = 9
SEQUENCES = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=12), min_size=1, max_size=6)


def ragged(sequences):
    return Ragged.of([np.array(sequence, dtype=np.int64) for sequence in sequences])


def examples_of(histories, targets):
    return Examples(np.arange(len(targets)), ragged(histories), np.array(targets, dtype=np.int64))


def slow_popularity(training, history):
    return [float(sum(sequence.count(item) for sequence in training)) for item in range(ITEMS)]


def slow_counts(training, history):
    popular = [max(1.0, value) for value in slow_popularity(training, history)]
    scores = [0.0] * ITEMS
    for age, taken in enumerate(history[::-1][:5]):
        for sequence in training:
            for first in range(len(sequence)):
                for second in range(first + 1, min(first + 6, len(sequence))):
                    pair, weight = (sequence[first], sequence[second]), 0.5**age / (second - first)
                    if pair[0] == taken:
                        scores[pair[1]] += weight / (popular[taken] ** 0.5 * popular[pair[1]] ** 0.3)
                    if pair[1] == taken:
                        scores[pair[0]] += 0.5 * weight / (popular[taken] ** 0.5 * popular[pair[0]] ** 0.3)
    return scores


def slow_item_knn(training, history):
    users = [{user for user, sequence in enumerate(training) if item in sequence} for item in range(ITEMS)]
    scores = [0.0] * ITEMS
    for age, taken in enumerate(history[::-1][:10]):
        for item in set(range(ITEMS)) - {taken}:
            norm = max(1, len(users[item])) * max(1, len(users[taken]))
            scores[item] += 0.8**age * len(users[item] & users[taken]) / norm**0.5
    return scores


@settings(deadline=None, max_examples=60)
@given(SEQUENCES, st.lists(st.integers(0, ITEMS - 1), max_size=12))
@pytest.mark.parametrize(
    ("name", "slow"), [(POPULARITY, slow_popularity), (COUNTS, slow_counts), (ITEM_KNN, slow_item_knn)]
)
def test_scores_are_those_of_a_loop_over_pairs(name, slow, training, history):
    scores = build_baselines(ragged(training), ITEMS).scores[name](ragged([history, history[:1]]))

    np.testing.assert_allclose(scores[0], slow(training, history), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores[1], slow(training, history[:1]), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(SEQUENCES, st.lists(st.integers(0, ITEMS - 1), max_size=8), st.integers(0, ITEMS - 1), st.booleans())
@pytest.mark.parametrize("name", [POPULARITY, COUNTS, ITEM_KNN])
def test_the_rank_is_the_place_in_a_list_with_ties_by_popularity_then_index(
    name, training, history, target, exclude_history
):
    baselines = build_baselines(ragged(training), ITEMS)
    scores, popularity = (baselines.scores[key](ragged([history]))[0] for key in (name, POPULARITY))
    kept = [item for item in range(ITEMS) if not (exclude_history and item in history)]
    ranked = sorted(kept, key=lambda item: (-scores[item], -popularity[item], item))

    rank = baselines.ranks(name, examples_of([history], [target]), exclude_history=exclude_history)

    assert rank.tolist() == [ranked.index(target) if target in kept else -1]


def test_the_nearest_vector_is_that_of_the_last_item_and_not_the_item_itself():
    vectors = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 2.0], [-1.0, 0.0]])
    baselines = build_baselines(ragged([[0, 1, 2, 3]]), 4, vectors)

    ranks = baselines.ranks(NEAREST_VECTOR, examples_of([[2, 0]] * 4, [0, 1, 2, 3]), exclude_history=False)

    # Item 3 is as far as can be, and so is the last item itself: the two tie, and the lower index comes first.
    assert ranks.tolist() == [2, 0, 1, 3]


def test_chunks_of_users_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    sequences = [random.integers(0, ITEMS, size=random.integers(1, 9)) for _ in range(40)]
    examples = Examples(np.arange(40), Ragged.of(sequences), random.integers(0, ITEMS, size=40))
    baselines = build_baselines(Ragged.of(sequences), ITEMS)
    whole = baselines.ranks(COUNTS, examples, exclude_history=True)

    monkeypatch.setattr("tawin.evaluate.baselines.CELLS", 3 * ITEMS)

    assert baselines.ranks(COUNTS, examples, exclude_history=True).tolist() == whole.tolist()
