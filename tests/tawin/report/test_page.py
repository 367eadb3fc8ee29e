"""Reports of small run folders in the true format: the page is parsed, its images decoded, its numbers looked up."""

import re
from io import BytesIO

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from tawin.config import KS, Config, GRPOConfig, TAWinConfig
from tawin.metrics import ranking_metrics
from tawin.report.change import gains
from tawin.report.figures import FIGURES
from tawin.report.page import write_report
from tawin.run.folder import RanksByUser, RunFolder

from .pages import Page, figures_at, make_run


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The report of one finished run: its folder and the parsed page."""
    folder = make_run(tmp_path_factory.mktemp("single") / "demo", best={str(k): 0.05 * k for k in KS})
    page = write_report([folder])
    assert page == folder / "report.html"
    return folder, Page(page.read_text(encoding="utf-8"))


def test_the_page_holds_everything_it_shows_and_loads_nothing(single):
    _, page = single
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "href"]
    sources = [value for _, name, value in page.attributes if name in ("src", "srcset")]
    assert sources and all(value.startswith("data:image/png;base64,") for value in sources)
    assert "url(" not in page.text and "@import" not in page.text  # the style is text to the parser
    assert ("meta", "content", "width=device-width, initial-scale=1") in page.attributes


def test_every_figure_is_embedded_for_light_and_dark_pages_and_lies_beside_the_page(single):
    folder, page = single
    images = page.images
    assert len(images["light"]) == len(images["dark"]) == len(FIGURES)
    for file, light, dark in zip(FIGURES, images["light"], images["dark"], strict=True):
        assert (folder / file).read_bytes() == light
        light_pixels, dark_pixels = imread(BytesIO(light)), imread(BytesIO(dark))
        assert light_pixels.shape == dark_pixels.shape
        assert light_pixels[..., :3].mean() > 0.8 > 0.3 > dark_pixels[..., :3].mean()
        assert light_pixels[..., :3].std() > 0.05, f"{file} is blank"


def test_results_are_listed_with_the_relative_change(single):
    _, page = single
    assert ["metric", "SFT", "GRPO", "change"] in page.rows
    assert ["recall@3", "0.0300", "0.0375", "+25.0 %"] in page.rows  # test
    assert ["ndcg@10", "0.2000", "0.2500", "+25.0 %"] in page.rows  # valid


def test_the_model_stands_under_what_needs_no_training(tmp_path):
    folder = make_run(tmp_path / "demo")
    counts = {"valid": figures_at(0.1), "test": figures_at(0.4)}
    RunFolder.open(folder).add_results(baselines={"counts": counts})
    page = Page(write_report([folder]).read_text(encoding="utf-8"))
    rows = [row[-5:] for row in page.rows]
    at = rows.index(["counts", "0.0400", "0.1200", "0.2000", "0.4000"])
    assert rows[at + 1 : at + 3] == [
        ["SFT", "0.0100", "0.0300", "0.0500", "0.1000"],
        ["after GRPO", "0.0125", "0.0375", "0.0625", "0.1250"],
    ]


def with_ranks(folder, before, after, user_ids=None):
    """The same run with ranks by user; its results are then made of them."""
    run = RunFolder.open(folder)
    for stage, ranks in (("sft", before), ("grpo", after)):
        ids = np.arange(len(ranks)) if user_ids is None else np.array(user_ids)
        found = RanksByUser(ids, np.array(ranks))
        run.save_ranks(stage, {"valid": found, "test": found})
        figures = ranking_metrics(np.array(ranks))
        run.add_results(**{stage: {"valid": figures, "test": figures}})
    return folder


def test_the_page_begins_with_what_rl_changed_and_its_interval_over_users(tmp_path):
    before, after = [0, 5, -1, 3] * 25, [0, 2, -1, 2] * 25  # Recall@3: .25, then .75
    folder = with_ranks(make_run(tmp_path / "demo"), before, after)
    page = Page(write_report([folder]).read_text(encoding="utf-8"))
    gains = np.array([0.0, 1.0, 0.0, 1.0] * 25)
    error = 1.959964 * gains.std(ddof=1) / 10
    expected = (
        "RL changed test Recall@3 by +0.5000, from 0.2500 to 0.7500; 95 % interval over 100 users "
        f"{0.5 - error:+.4f} to {0.5 + error:+.4f}: above 0: a gain."
    )
    assert expected in page.text
    assert page.text.index(expected) < page.text.index("recall@1")


def test_a_change_that_users_do_not_show_is_called_one(tmp_path):
    folder = with_ranks(make_run(tmp_path / "demo"), [0, 9, -1, 1], [0, 1, -1, 9])
    page = Page(write_report([folder]).read_text(encoding="utf-8"))
    assert "by +0.0000, from 0.5000 to 0.5000" in page.text
    assert "0 lies within: these users show no change" in page.text


def test_a_users_change_over_several_seeds_is_one(tmp_path):
    """Whoever was evaluated twice is no two users."""
    first = with_ranks(make_run(tmp_path / "a", seed=1), [5, 5, 5], [0, 0, 5], user_ids=[7, 8, 9])
    second = with_ranks(make_run(tmp_path / "b", seed=2), [5, 5, 5], [0, 5, 5], user_ids=[7, 8, 4])
    page = Page(write_report([first, second]).read_text(encoding="utf-8"))
    error = 1.959964 * np.array([1.0, 0.5, 0.0, 0.0]).std(ddof=1) / 2
    difference = (2 / 3 + 1 / 3) / 2
    assert f"over 4 users {difference - error:+.4f} to {difference + error:+.4f}" in page.text


def test_a_run_without_ranks_or_without_rl_says_so(tmp_path):
    page = Page(write_report([make_run(tmp_path / "old")]).read_text(encoding="utf-8"))
    assert "without an interval: no ranks by user were kept" in page.text
    page = Page(write_report([make_run(tmp_path / "half", after=None)]).read_text(encoding="utf-8"))
    assert "RL has not been evaluated yet" in page.text


@pytest.mark.parametrize("metric", ["recall@1", "recall@3", "ndcg@3", "ndcg@10"])
def test_what_users_gain_has_the_metric_as_its_mean(metric):
    ranks = np.random.default_rng(0).integers(-1, 14, size=200)
    found = RanksByUser(np.arange(200), ranks)
    assert gains(found, metric).mean() == pytest.approx(ranking_metrics(ranks)[metric], abs=1e-12)


def test_the_tables_of_twelve_rows_are_folded(single):
    folder, _ = single
    html = (folder / "report.html").read_text(encoding="utf-8")
    for part in ("Test", "Valid"):
        assert f"<details><summary>{part}</summary><div" in html


def test_data_users_and_seconds_are_told(single):
    _, page = single
    seconds = "sft 12.3, sft evaluation 1,234.5"
    assert ["demo", "0", "synthetic", "complete", "valid 1,000, test 2,345", seconds] in page.rows
    assert "repeat_share 0.271" in page.text
    assert "group_size: 16" in page.text


def test_the_same_runs_give_the_same_page(single, tmp_path):
    folder, _ = single
    assert write_report([folder], tmp_path).read_bytes() == (folder / "report.html").read_bytes()


def test_the_report_leaves_matplotlib_as_it_was(single, tmp_path):
    before = dict(matplotlib.rcParams)
    write_report([single[0]], tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_runs_that_differ_in_their_seed_alone_are_averaged(tmp_path):
    recalls = [(0.20, 0.24), (0.22, 0.27), (0.27, 0.30)]
    folders = [make_run(tmp_path / f"run-{i}", seed=i, before=b, after=a) for i, (b, a) in enumerate(recalls)]
    page = Page(write_report(folders).read_text(encoding="utf-8"))
    before, after = np.array(recalls).T / 2  # test recall@10
    expected = [f"{values.mean():.4f} ± {values.std(ddof=1):.4f}" for values in (before, after)]
    assert ["recall@10", *expected, f"{100 * (after.mean() / before.mean() - 1):+.1f} %"] in page.rows
    assert [row[1] for row in page.rows if row[0].startswith("run-")] == ["0", "1", "2"]
    assert page.tags.count("details") == 3  # test, valid, options


def test_runs_with_different_options_stand_side_by_side_with_the_options_that_differ(tmp_path):
    tawin = make_run(tmp_path / "tawin", after=0.3)
    plain = make_run(tmp_path / "plain", seed=7, grpo=GRPOConfig(tawin=TAWinConfig(enabled=False)))
    out = tmp_path / "new" / "comparison"
    page = Page(write_report([tawin, plain], out).read_text(encoding="utf-8"))
    assert ["recall@10", "tawin", "0.1000", "0.1500", "+50.0 %"] in page.rows
    assert ["plain", "0.1000", "0.1250", "+25.0 %"] in page.rows  # under the same heading
    start = page.rows.index(["option", "tawin", "plain"])
    assert page.rows[start + 1 :] == [["grpo.tawin.enabled", "True", "False"]]
    assert {path.name for path in out.iterdir()} == {"report.html", *FIGURES}


def test_a_hostile_name_config_or_data_set_stays_text(tmp_path):
    attack = "<script>alert(1)</script>"
    names = ["<script>alert(2)<", "$\\frac{$", "_hidden & \"quoted\" 'name'"]  # a slash cannot be in a folder's name
    folders = [make_run(tmp_path / name, data=attack + name, model='"><b>', dataset=attack) for name in names]
    html = write_report(folders).read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags and "b" not in page.tags
    assert attack in page.text and '"><b>' in page.text
    for name in names:
        assert any(row[0] == name for row in page.rows)
    single = Page(write_report(folders[:1]).read_text(encoding="utf-8"))
    assert "script" not in single.tags and f"tawin: {names[0]}" in single.text


def test_names_that_are_no_plain_line_of_text_are_made_one(tmp_path):
    folders = [make_run(tmp_path / name) for name in ("two\nlines", "not utf-8 \udcff")]
    page = Page(write_report(folders).read_text(encoding="utf-8"))
    assert {"two lines", "not utf-8 \\udcff"} <= {row[0] for row in page.rows}


def test_a_half_written_last_line_is_left_out(tmp_path):
    folder = make_run(tmp_path / "run", after=None)
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"stage": "grpo", "step": 41, "rewa')
    page = Page(write_report([folder]).read_text(encoding="utf-8"))
    assert ["run", "0", "synthetic", "not complete: grpo step 40"] in [row[:4] for row in page.rows]
    assert ["recall@3", "0.0300", "-", "-"] in page.rows


@pytest.mark.parametrize("damage", ["{half", "[1, 2]", '{"step": 3}', '{"stage": "sft", "step": "3"}', "\x00"])
def test_a_damaged_line_in_the_middle_is_refused_with_its_number(tmp_path, damage):
    folder = make_run(tmp_path / "run", steps=2)
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], damage, *lines[1:]]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected a JSON object with 'stage' and 'step'"):
        write_report([folder])
    assert not (folder / "report.html").exists()


def test_a_run_that_has_only_begun_has_a_page_and_its_weight_window(tmp_path):
    RunFolder.create(tmp_path / "run", Config())
    page = Page(write_report([tmp_path / "run"]).read_text(encoding="utf-8"))
    assert ["run", "0", "?", "not complete: nothing logged yet", "none yet", "none yet"] in page.rows
    assert len(page.images["light"]) == 1
    assert (tmp_path / "run" / "tawin_window.png").exists() and not (tmp_path / "run" / "recall.png").exists()


def test_runs_of_one_name_are_told_apart_and_a_folder_given_twice_counts_once(tmp_path):
    first, second = (make_run(tmp_path / parent / "run", steps=2) for parent in "ab")
    page = Page(write_report([first, second, first]).read_text(encoding="utf-8"))
    assert [row[0] for row in page.rows if row[0].endswith("/run") and "complete" in row] == ["a/run", "b/run"]
    assert "tawin: a/run and 1 more seed" in page.text


def test_a_folder_that_is_no_run_is_refused_by_name_and_nothing_is_written(tmp_path):
    run, other = make_run(tmp_path / "run", steps=1), tmp_path / "other"
    other.mkdir()
    for folder in (other, tmp_path / "missing"):
        with pytest.raises(ValueError, match=f"{re.escape(str(folder))}: expected a run folder .*config.yaml"):
            write_report([run, folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="out: expected a folder, got the file"):
        write_report([run], run / "config.yaml")
    with pytest.raises(ValueError, match="run_folders: expected at least one"):
        write_report([])
