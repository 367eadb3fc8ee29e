"""The catalogue: items to tokens and back, prompts and labels, saving and loading."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tawin.catalog.catalog import Catalog, build_catalog, load_catalog, make_tokenizer
from tawin.catalog.semantic_ids import build_semantic_ids
from tawin.catalog.tokenizer import train_title_tokenizer
from tawin.config import CatalogConfig, SyntheticConfig
from tawin.data.dataset import DataError, Dataset, Items, save_dataset, training_sequences
from tawin.data.ragged import Ragged
from tawin.data.synthetic import make_synthetic

REAL_DATA = Path(os.environ.get("TAWIN_DATA", Path(__file__).parents[4] / "shared" / "data"))

TITLES: list[str | None] = ["red lamp", None, "red lamp", "crème, brûlée <eos>", "  "]
IDS: list[tuple[int, ...]] = [(1, 2), (1, 3), (1, 2), (0, 2), (4, 4)]
DATASET = Dataset(
    name="made",
    user_ids=np.array([7]),
    sequences=[np.array([0, 1, 2, 3, 4])],
    items=Items(np.array([50, 20, 10, 30, 40]), titles=TITLES, semantic_ids=IDS),
)


def text_tokenizer(**special: Any) -> PreTrainedTokenizerFast:
    tokenizer = train_title_tokenizer(["red lamp", "crème brûlée"], 300)
    for name, value in special.items():
        setattr(tokenizer, name, value)
    return tokenizer


def catalog_of(dataset: Dataset = DATASET, tokenizer: Any = None, **options: Any) -> Catalog:
    config = CatalogConfig(**options)
    training = training_sequences(dataset)
    ids = None
    if config.item_tokens == "semantic_id":
        ids = build_semantic_ids(dataset, config, training_sequences=training)
    if tokenizer is None:
        tokenizer = make_tokenizer(dataset, config, ids)
    return build_catalog(dataset, tokenizer, config, training_sequences=training, semantic_ids=ids)


def tokens_of(catalog: Catalog, item: int) -> list[int]:
    return [token for token in catalog.token_ids[item].tolist() if token >= 0]


def require_same(first: Catalog, second: Catalog) -> None:
    assert first.item_ids.tolist() == second.item_ids.tolist()
    assert first.titles == second.titles
    assert first.semantic_ids == second.semantic_ids
    assert torch.equal(first.token_ids, second.token_ids)
    assert torch.equal(first.item_nodes, second.item_nodes)
    assert torch.equal(first.trie.edge_tokens, second.trie.edge_tokens)
    assert (first.prefix, first.pad_token, first.end_token) == (second.prefix, second.pad_token, second.end_token)


def test_only_items_that_share_an_id_are_longer() -> None:
    catalog = catalog_of()
    # <pad> <bos> <eos> <a_0> <a_1> <a_4> <b_2> <b_3> <b_4> <c_0> <c_1>
    assert catalog.token_ids.tolist() == [[4, 6, 9], [4, 7, -1], [4, 6, 10], [3, 6, -1], [5, 8, -1]]
    assert catalog.token_ids.dtype == torch.int64
    assert catalog.semantic_ids == [(1, 2, 0), (1, 3), (1, 2, 1), (0, 2), (4, 4)]
    assert (catalog.prefix, catalog.pad_token, catalog.end_token) == ((1,), 0, None)
    assert (catalog.num_items, catalog.max_item_length) == (5, 3)
    assert len(catalog.item_nodes.unique()) == 5


def test_items_may_be_left_sharing_an_id() -> None:
    catalog = catalog_of(separate_shared_ids=False)
    assert catalog.semantic_ids == IDS
    assert catalog.token_ids.shape == (5, 2)
    assert catalog.item_nodes[0] == catalog.item_nodes[2]
    assert catalog.trie.items_at(int(catalog.item_nodes[0])).tolist() == [0, 2]


@pytest.mark.parametrize("item_tokens", ["item", "semantic_id", "title"])
def test_the_node_of_an_item_is_where_the_trie_ends_it(item_tokens: str) -> None:
    catalog = catalog_of(item_tokens=item_tokens)
    for item, node in enumerate(catalog.item_nodes.tolist()):
        assert item in catalog.trie.items_at(node).tolist()


def test_an_item_may_be_one_token_named_after_its_id() -> None:
    catalog = catalog_of(item_tokens="item")
    assert catalog.token_ids.tolist() == [[3], [4], [5], [6], [7]]  # behind <pad> <bos> <eos>
    assert (catalog.semantic_ids, catalog.prefix, catalog.end_token) == (None, (1,), None)
    assert (catalog.trie.max_depth, catalog.trie.max_children) == (1, 5)
    tokenizer = text_tokenizer()
    size = len(tokenizer)
    given = catalog_of(tokenizer=tokenizer, item_tokens="item")
    assert given.token_ids.flatten().tolist() == list(range(size, size + 5))
    assert tokenizer.convert_ids_to_tokens([size, size + 4]) == ["<item_50>", "<item_40>"]


def test_a_folder_loads_with_one_token_an_item_with_and_without_a_tokenizer(tmp_path: Path) -> None:
    save_dataset(DATASET, tmp_path)
    assert load_catalog(tmp_path, item_tokens="item").token_ids.tolist() == [[3], [4], [5], [6], [7]]
    tokenizer = text_tokenizer()
    size = len(tokenizer)
    assert load_catalog(tmp_path, tokenizer, item_tokens="item").token_ids.min() == size


def test_a_title_is_the_tokenizers_own_tokens_and_the_end_token() -> None:
    tokenizer = text_tokenizer()
    size = len(tokenizer)
    catalog = catalog_of(tokenizer=tokenizer, item_tokens="title")
    assert len(tokenizer) == size
    assert catalog.semantic_ids is None and catalog.end_token == tokenizer.eos_token_id
    read = [tokenizer.decode(tokens_of(catalog, item)) for item in range(5)]
    assert read == [" red lamp<eos>", " item 20<eos>", " red lamp<eos>", " crème, brûlée <eos><eos>", " item 40<eos>"]
    assert all(tokens_of(catalog, item).count(catalog.end_token) == 1 for item in range(5))
    assert catalog.item_nodes[0] == catalog.item_nodes[2]
    assert len(catalog.item_nodes.unique()) == 4


def test_without_a_model_title_mode_trains_a_tokenizer_on_the_titles() -> None:
    catalog = catalog_of(item_tokens="title")
    assert catalog.prefix == (1,) and catalog.end_token == 2
    assert int(catalog.token_ids.max()) < 2048


def test_title_mode_is_refused_where_no_item_has_a_title() -> None:
    items = Items(DATASET.items.item_ids, semantic_ids=IDS)
    bare = Dataset("bare", DATASET.user_ids, DATASET.sequences, items)
    for tokenizer in (None, text_tokenizer()):
        with pytest.raises(DataError, match=r"bare: column 'title': item_tokens 'title' needs titles"):
            catalog_of(bare, tokenizer, item_tokens="title")


def test_codes_become_new_tokens_of_a_given_tokenizer() -> None:
    tokenizer = text_tokenizer()
    size = len(tokenizer)
    catalog = catalog_of(tokenizer=tokenizer)
    assert len(tokenizer) == size + 8
    assert catalog.token_ids[0].tolist() == tokenizer.convert_tokens_to_ids(["<a_1>", "<b_2>", "<c_0>"])
    assert int(catalog.token_ids.max()) == len(tokenizer) - 1


def test_an_instruction_stands_before_every_history() -> None:
    tokenizer = text_tokenizer()
    catalog = catalog_of(tokenizer=tokenizer, instruction="Next:")
    assert tokenizer.decode(list(catalog.prefix)) == "<bos>Next:"
    input_ids, attention_mask = catalog.encode_histories([np.array([1])])
    assert input_ids[0].tolist() == [*catalog.prefix, *tokens_of(catalog, 1)]
    assert attention_mask.all()


def test_an_instruction_is_refused_without_a_tokenizer_that_can_read_it() -> None:
    with pytest.raises(ValueError, match=r"an instruction needs one that reads any text"):
        catalog_of(instruction="Next:")


@pytest.mark.parametrize(
    ("special", "prefix", "pad_token"),
    [({}, (1,), 0), ({"bos_token": None}, (2,), 0), ({"pad_token": None}, (1,), 2)],
)
def test_the_prefix_and_the_padding_make_do_with_the_special_tokens_there_are(
    special: dict[str, Any], prefix: tuple[int, ...], pad_token: int
) -> None:
    catalog = catalog_of(tokenizer=text_tokenizer(**special))
    assert (catalog.prefix, catalog.pad_token) == (prefix, pad_token)


def test_given_ids_are_used_as_they_are_and_must_be_one_an_item() -> None:
    ids = [(item,) for item in range(5)]
    tokenizer = make_tokenizer(DATASET, CatalogConfig(), ids)
    arguments: dict[str, Any] = {"training_sequences": [], "semantic_ids": ids}
    assert build_catalog(DATASET, tokenizer, CatalogConfig(), **arguments).semantic_ids == ids
    with pytest.raises(ValueError, match=r"semantic_ids: expected one an item, 5, got 4"):
        build_catalog(DATASET, tokenizer, CatalogConfig(), training_sequences=[], semantic_ids=ids[:4])
    with pytest.raises(ValueError, match=r"semantic_ids: expected the ids of all items"):
        make_tokenizer(DATASET, CatalogConfig(), None)


def test_titles_and_ids_are_found_by_item() -> None:
    catalog = catalog_of()
    assert [catalog.title(item) for item in range(5)] == ["red lamp", "item 20", "red lamp", TITLES[3], "item 40"]
    assert [catalog.index_of(item_id) for item_id in (50, np.int64(20), 40)] == [0, 1, 4]
    with pytest.raises(ValueError, match=r"item_id: expected an item .*\(5 items with ids from 10 to 50\), got 51"):
        catalog.index_of(51)


def test_a_catalogue_moves_with_its_trie() -> None:
    moved = catalog_of().to("meta")
    assert {tensor.device.type for tensor in (moved.token_ids, moved.item_nodes, moved.trie.edge_tokens)} == {"meta"}
    assert moved.title(0) == "red lamp"


@pytest.mark.parametrize("item_tokens", ["item", "semantic_id", "title"])
@settings(max_examples=50, deadline=None)
@given(histories=st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=5))
def test_histories_are_the_prefix_and_the_items_tokens_left_padded(
    item_tokens: str, histories: list[list[int]]
) -> None:
    catalog = CATALOGS[item_tokens]
    input_ids, attention_mask = catalog.encode_histories([np.array(history, dtype=np.int64) for history in histories])
    expected = [
        [*catalog.prefix, *(token for item in history for token in tokens_of(catalog, item))] for history in histories
    ]
    width = max(map(len, expected))
    assert input_ids.dtype == attention_mask.dtype == torch.int64
    assert input_ids.tolist() == [[catalog.pad_token] * (width - len(row)) + row for row in expected]
    assert attention_mask.tolist() == [[0] * (width - len(row)) + [1] * len(row) for row in expected]


@pytest.mark.parametrize("item_tokens", ["item", "semantic_id", "title"])
@settings(max_examples=50, deadline=None)
@given(
    windows=st.lists(
        st.lists(st.integers(0, 4), min_size=1, max_size=6).flatmap(
            lambda window: st.tuples(st.just(window), st.integers(0, len(window)))
        ),
        min_size=1,
        max_size=5,
    )
)
def test_windows_have_labels_at_the_tokens_of_their_targets_only(
    item_tokens: str, windows: list[tuple[list[int], int]]
) -> None:
    catalog = CATALOGS[item_tokens]
    input_ids, attention_mask, labels = catalog.encode_windows(
        [np.array(window) for window, _ in windows], [first for _, first in windows]
    )
    for row, (window, first) in enumerate(windows):
        tokens, expected = list(catalog.prefix), [-100] * len(catalog.prefix)
        for place, item in enumerate(window):
            tokens += tokens_of(catalog, item)
            expected += tokens_of(catalog, item) if place >= first else [-100] * len(tokens_of(catalog, item))
        padding = input_ids.shape[1] - len(tokens)
        assert input_ids[row].tolist() == tokens + [catalog.pad_token] * padding
        assert attention_mask[row].tolist() == [1] * len(tokens) + [0] * padding
        assert labels[row].tolist() == expected + [-100] * padding


@pytest.mark.parametrize("item_tokens", ["item", "semantic_id", "title"])
def test_ragged_sequences_are_encoded_as_the_same_arrays_are(item_tokens: str) -> None:
    catalog = CATALOGS[item_tokens]
    values = np.array([4, 0, 2, 1, 3], dtype=np.int8)  # too small a type for the number of a large catalogue's items
    ragged = Ragged(values, np.array([3, 0, 1, 5]), np.array([5, 2, 4, 5]))
    arrays = [sequence.astype(np.int64) for sequence in ragged]
    for ours, expected in (
        (catalog.encode_histories(ragged), catalog.encode_histories(arrays)),
        (catalog.encode_windows(ragged, np.arange(4)), catalog.encode_windows(arrays, [0, 1, 2, 3])),
    ):
        assert all(torch.equal(first, second) for first, second in zip(ours, expected, strict=True))


with pytest.MonkeyPatch.context() as few_tokens:  # so that titles differ in length
    few_tokens.setattr("tawin.catalog.catalog.TITLE_VOCABULARY", 300)
    CATALOGS = {mode: catalog_of(item_tokens=mode) for mode in ("item", "semantic_id", "title")}


def test_items_outside_the_catalogue_are_not_encoded() -> None:
    catalog = CATALOGS["semantic_id"]
    for item in (-1, 5):
        with pytest.raises(ValueError, match=r"histories: expected dense item indexes 0..4, got"):
            catalog.encode_histories([np.array([0]), np.array([2, item])])
        with pytest.raises(ValueError, match=r"windows: expected dense item indexes 0..4, got"):
            catalog.encode_windows([np.array([2, item])], [1])
    with pytest.raises(ValueError, match=r"histories: expected at least one, got none"):
        catalog.encode_histories([])
    with pytest.raises(ValueError, match=r"first_targets: expected one a window, 1, got 2"):
        catalog.encode_windows([np.array([0, 1])], [1, 1])
    with pytest.raises(ValueError, match=r"first_targets: expected indexes into the windows, 0 or more, got -1"):
        catalog.encode_windows([np.array([0, 1])], [-1])


@pytest.mark.parametrize("item_tokens", ["item", "semantic_id", "title"])
def test_a_saved_catalogue_loads_as_it_was(tmp_path: Path, item_tokens: str) -> None:
    catalog = CATALOGS[item_tokens]
    catalog.save(tmp_path / "run" / "catalog")
    require_same(Catalog.load(tmp_path / "run" / "catalog"), catalog)
    require_same(load_catalog(tmp_path / "run" / "catalog"), catalog)
    assert sorted(path.name for path in (tmp_path / "run" / "catalog").iterdir()) == ["catalog.json", "items.parquet"]


def test_a_catalogue_of_the_format_before_prompts_had_templates_loads(tmp_path: Path) -> None:
    catalog = CATALOGS["title"]
    catalog.save(tmp_path)
    header = {"format": 1, "prefix": [1], "pad_token": 0, "end_token": 2}
    (tmp_path / "catalog.json").write_text(json.dumps(header))
    items = pq.read_table(tmp_path / "items.parquet")
    pq.write_table(items.drop_columns(["history_tokens"]), tmp_path / "items.parquet")
    require_same(Catalog.load(tmp_path), catalog)


def test_the_same_catalogue_may_be_saved_again_and_another_one_may_not(tmp_path: Path) -> None:
    CATALOGS["title"].save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    CATALOGS["title"].save(tmp_path)
    with pytest.raises(DataError, match=r"holds another catalogue, of 5 items"):
        CATALOGS["semantic_id"].save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_catalogue_of_other_tokens_for_the_same_items_is_another_one(tmp_path: Path) -> None:
    CATALOGS["semantic_id"].save(tmp_path)
    other = catalog_of(tokenizer=text_tokenizer())
    assert (other.semantic_ids, other.prefix) == (CATALOGS["semantic_id"].semantic_ids, CATALOGS["semantic_id"].prefix)
    with pytest.raises(DataError, match=r"holds another catalogue"):
        other.save(tmp_path)


def test_a_data_folder_is_not_overwritten_by_a_catalogue(tmp_path: Path) -> None:
    save_dataset(DATASET, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError, match=r"or this very catalogue, but what is there is no catalogue"):
        CATALOGS["semantic_id"].save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, r"catalog.json: expected the keys .* with format 2"),
        ({"format": 1}, r"catalog.json: expected the keys .* with format 2"),
        ({"more": 2}, r"catalog.json: expected the keys"),
        ({"prefix": []}, r"prefix: expected a list of at least one token in \[0, 2 \*\* 31\), got \[\]"),
        ({"prefix": [1.5]}, r"prefix: expected"),
        ({"suffix": None}, r"suffix: expected a list of tokens in \[0, 2 \*\* 31\), got None"),
        ({"empty": []}, r"empty: expected a list of at least one token"),
        ({"separator": [2**70]}, r"separator: expected a list of tokens in \[0, 2 \*\* 31\), got \[11805"),
        ({"pad_token": -1}, r"expected tokens in \[0, 2 \*\* 31\) as pad_token and end_token"),
        ({"pad_token": 2**31}, r"expected tokens in \[0, 2 \*\* 31\) as pad_token and end_token"),
        ({"end_token": "x"}, r"expected tokens in \[0, 2 \*\* 31\) as pad_token and end_token"),
    ],
)
def test_a_changed_header_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    CATALOGS["semantic_id"].save(tmp_path)
    header = json.loads((tmp_path / "catalog.json").read_text())
    (tmp_path / "catalog.json").write_text(json.dumps({**header, **changes}))
    with pytest.raises(DataError, match=message):
        Catalog.load(tmp_path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("item_id", [1, 1, 2, 3, 4], r"column 'item_id': expected each id once"),
        ("token_ids", [[4], [4, 5], [6], [7], [8]], r"items.parquet: column 'token_ids': .*prefix"),
        ("token_ids", [[4], [-5], [6], [7], [8]], r"items.parquet: column 'token_ids'"),
        ("token_ids", [[4], [], [6], [7], [8]], r"items.parquet: column 'token_ids'"),
        ("token_ids", [[4], None, [6], [7], [8]], r"column 'token_ids': expected a list in every row"),
        ("token_ids", ["a", "b", "c", "d", "e"], r"column 'token_ids': expected lists of integers"),
        ("semantic_id", [[1], None, [1], [1], [1]], r"column 'semantic_id': expected a list in every row"),
        ("title", [1, 2, 3, 4, 5], r"column 'title': expected strings"),
    ],
)
def test_changed_items_are_refused(tmp_path: Path, column: str, values: list[Any], message: str) -> None:
    CATALOGS["semantic_id"].save(tmp_path)
    table = pq.read_table(tmp_path / "items.parquet")
    table = table.set_column(table.column_names.index(column), column, pa.array(values))
    pq.write_table(table, tmp_path / "items.parquet")
    with pytest.raises(DataError, match=message):
        Catalog.load(tmp_path)


def test_a_catalogue_without_items_or_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"catalog.json: expected the JSON file that Catalog.save writes"):
        Catalog.load(tmp_path)
    CATALOGS["semantic_id"].save(tmp_path)
    pq.write_table(pq.read_table(tmp_path / "items.parquet").slice(0, 0), tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items.parquet: expected at least one item, got none"):
        Catalog.load(tmp_path)


def test_a_data_folder_loads_as_the_catalogue_that_training_builds(tmp_path: Path) -> None:
    dataset = make_synthetic(SyntheticConfig(num_users=100, num_items=40, num_clusters=5), 0)
    save_dataset(dataset, tmp_path)
    require_same(load_catalog(tmp_path), catalog_of(dataset))
    require_same(load_catalog(tmp_path, item_tokens="title"), catalog_of(dataset, item_tokens="title"))
    two_levels = load_catalog(tmp_path, levels=2, codes=10)
    require_same(two_levels, catalog_of(dataset, levels=2, codes=10))
    assert two_levels.max_item_length == 2


def test_ids_of_a_loaded_catalogue_come_from_the_named_vectors(tmp_path: Path) -> None:
    dataset = make_synthetic(SyntheticConfig(num_users=100, num_items=40, num_clusters=5), 0)
    save_dataset(dataset, tmp_path / "data")
    vectors = np.random.default_rng(0).normal(size=(40, 3))
    np.save(tmp_path / "vectors.npy", vectors)
    loaded = load_catalog(tmp_path / "data", vectors=tmp_path / "vectors.npy")
    require_same(loaded, catalog_of(dataset, vectors=str(tmp_path / "vectors.npy")))
    assert loaded.semantic_ids != load_catalog(tmp_path / "data").semantic_ids
    np.save(tmp_path / "vectors.npy", np.where(vectors > 2, np.nan, vectors))
    with pytest.raises(DataError, match=r"vectors.npy: expected finite float32 numbers, got NaN"):
        load_catalog(tmp_path / "data", vectors=tmp_path / "vectors.npy")


def test_a_saved_catalogue_refuses_a_tokenizer_that_lacks_its_tokens(tmp_path: Path) -> None:
    tokenizer = text_tokenizer()
    catalog_of(tokenizer=tokenizer).save(tmp_path)
    assert load_catalog(tmp_path, tokenizer).num_items == 5
    with pytest.raises(ValueError, match=r"tokenizer: expected the one that .* was built with, token \d+ included"):
        load_catalog(tmp_path, text_tokenizer())


def test_a_folder_whose_ids_are_rebuilt_is_as_one_without_ids(tmp_path: Path) -> None:
    made = make_synthetic(SyntheticConfig(num_users=60, num_items=40, num_clusters=4), 0)
    save_dataset(made, tmp_path / "without")
    items = Items(made.items.item_ids, made.items.titles, semantic_ids=[(item % 7, item % 5) for item in range(40)])
    save_dataset(Dataset("made", made.user_ids, made.sequences, items), tmp_path / "with")
    require_same(load_catalog(tmp_path / "with", rebuild_ids=True), load_catalog(tmp_path / "without"))
    with pytest.raises(ValueError, match=r"rebuild_ids: expected False where items are no semantic ids, got True"):
        load_catalog(tmp_path / "with", item_tokens="title", rebuild_ids=True)


@pytest.mark.parametrize("name", ["toys", "yelp", "industrial", "office"])
def test_real_catalogues_give_every_item_a_sequence_of_its_own(name: str) -> None:
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"no real data: {REAL_DATA / name} (set TAWIN_DATA to the folder that holds it)")
    catalog = load_catalog(REAL_DATA / name)
    assert len(catalog.item_nodes.unique()) == catalog.num_items
    together = load_catalog(REAL_DATA / name, separate_shared_ids=False)
    distinct = {"toys": 11_924, "yelp": 19_201, "industrial": 3_670, "office": 3_444}[name]
    assert len(together.item_nodes.unique()) == distinct


@pytest.mark.parametrize("name", ["industrial", "office"])
def test_real_titles_share_tokens_only_where_they_are_equal(name: str) -> None:
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"no real data: {REAL_DATA / name} (set TAWIN_DATA to the folder that holds it)")
    catalog = load_catalog(REAL_DATA / name, item_tokens="title")
    titles = [catalog.title(item) for item in range(catalog.num_items)]
    assert len(catalog.item_nodes.unique()) == len(set(titles))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("seed", -1),
        ("seed", "x"),
        ("levels", 1.5),
        ("codes", "8"),
        ("separate_shared_ids", "no"),
        ("rebuild_ids", "yes"),
        ("item_tokens", "name"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_refused_by_name(argument: str, value: object, tmp_path: Path) -> None:
    save_dataset(make_synthetic(SyntheticConfig(num_users=20, num_items=12, num_clusters=3), 0), tmp_path)
    with pytest.raises((TypeError, ValueError), match=f"{argument}: expected"):
        load_catalog(tmp_path, **{argument: value})  # type: ignore[arg-type]
