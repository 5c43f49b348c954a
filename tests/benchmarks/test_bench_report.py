"""The tables and the plot of a run, from records whose figures are made up."""

from __future__ import annotations

import copy
import json
import pathlib
import sys

import made_up
import pytest

from bench import plot
from bench import report as report_module
from bench.axes import AXES, points
from bench.outcome import Collected, finish
from bench.report import report
from specdec.errors import OptionError

PNG = b"\x89PNG\r\n\x1a\n"


def table(text: str, heading: str) -> list[dict[str, str]]:
    """The rows of the table under a heading, by column."""
    lines = text.split(f"### {heading}\n\n")[1].split("\n\n")[0].splitlines()
    names, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == len(names) for row in rows)
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_a_row_says_the_point_the_ratios_and_what_was_possible() -> None:
    rows = table(report(made_up.data()), "Along each axis")
    (row,) = [r for r in rows if r["axis"] == "batch" and r["batch"] == "2" and r["side"] == "compiled model k=4"]
    gain = 1 + 0.6 * (1 - 1 / 8) / 2**0.3
    assert row["over generate()"] == f"{4 * gain:.2f} [{0.95 * 4 * gain:.2f}-{1.08 * 4 * gain:.2f}]"
    assert row["over static cache, torch.compile"].startswith(f"{4 * gain / 1.7:.2f} ")
    assert row["over the engine's own plain"].startswith(f"{gain:.2f} ")
    assert (row["at most possible"], row["acceptance length, or why none"]) == ("2.50", "3.40")


def test_a_baseline_that_cannot_run_says_why() -> None:
    rows = table(report(made_up.data()), "Along each axis")
    (row,) = [r for r in rows if r["batch"] == "8" and r["side"] == "assisted k=4"]
    assert row["over generate()"] == "none" and "one prompt at a time" in row["acceptance length, or why none"]


def test_kinds_have_a_table_of_their_own() -> None:
    data = made_up.data()
    info = data["benchmarks"][-1]["extra_info"]
    info["kinds"]["math"]["compiled suffix k=4"] |= {"ratio": 3.0, "low": 2.9, "high": 3.1}
    del info["kinds"]["code"]["compiled suffix auto"]
    rows = {row["over generate(); acceptance length"]: row for row in table(report(data), "By kind of prompt")}
    row = rows["compiled suffix k=4"]
    assert (row["code"], row["math"]) == ("1.50 [1.42-1.62]; 2.50", "3.00 [2.90-3.10]; 2.50")
    assert rows["compiled suffix auto"]["code"] == ""


def test_what_was_not_judged_is_told() -> None:
    data = made_up.data()
    assert "Not judged" not in report(data)
    data["benchmarks"][0]["extra_info"]["not_judged"] = ["compiled model auto"]
    assert "Not judged, since a text ended before a round could be timed: compiled model auto." in report(data)


def test_the_bounds_that_come_nearest_stand_first_and_say_what_was_found() -> None:
    data = made_up.data()
    worst = data["benchmarks"][3]["extra_info"]["bounds"][2]
    worst["ratio"] |= {"low": 9.0}
    worst["impossible"] = True
    data["benchmarks"][4]["extra_info"]["bounds"][0]["rounds"] = 1
    rows = table(report(data), "Nearest to what is possible")
    assert [rows[0]["verdict"], rows[0]["lowest ratio / highest bound"]] == ["impossible", f"{9 / 2.6:.2f}"]
    shares = [float(r["lowest ratio / highest bound"]) for r in rows]
    assert shares == sorted(shares, reverse=True)


def test_lines_hold_every_point_of_their_axis() -> None:
    infos = [b["extra_info"] for b in made_up.data()["benchmarks"]]
    by_k = plot.series("k", [i for i in infos if i["axis"] == "k"])
    assert [mark.x for mark in by_k["ours, compiled, draft model"]] == list(made_up.KS)
    assert {mark.x for mark in by_k["ours, compiled, no drafts"]} == {1, 8}, "a level line from end to end"
    by_batch = plot.series("batch", [i for i in infos if i["axis"] == "batch"])
    ours = by_batch["ours, compiled, draft model"]
    assert [mark.x for mark in ours] == [1, 2, 4, 8]
    assert ours[0].ratio == pytest.approx(4 * 1.6), "of auto, not of k=4"
    assert all(mark.low < mark.ratio < mark.high for mark in ours)
    assert [mark.x for mark in by_batch["transformers, assisted generation"]] == [1]


@pytest.mark.parametrize("axes", [("k",), ("context", "batch", "sampling"), ("strategy",)])
def test_the_plot_is_drawn_of_what_there_is(tmp_path: pathlib.Path, axes: tuple[str, ...]) -> None:
    data = made_up.data(("bfloat16", "float32") if axes == ("k",) else ("bfloat16",))
    data["benchmarks"] = [b for b in data["benchmarks"] if b["extra_info"]["axis"] in axes]
    path = tmp_path / "deep" / "plot.png"
    assert plot.write(data, path) == f"wrote {path}"
    assert path.read_bytes().startswith(PNG)


def test_without_matplotlib_it_is_said(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'specdec-hf[report]'" in plot.write(made_up.data(), tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())


def test_a_record_without_axes_has_no_plot(tmp_path: pathlib.Path) -> None:
    assert plot.write({"benchmarks": []}, tmp_path / "plot.png").startswith("no plot: ")


def test_a_run_ends_with_tables_and_with_files_where_asked(tmp_path: pathlib.Path) -> None:
    data, collected = made_up.data(), Collected()
    for b in data["benchmarks"]:
        collected.add(b["name"], b["extra_info"])
    printed = list(finish(collected, data["machine_info"], None))
    assert "\n".join(printed) + "\n" == report(data)
    said = list(finish(collected, data["machine_info"], tmp_path / "out"))
    assert said[: len(printed)] == printed and len(said) == len(printed) + 2
    assert (tmp_path / "out" / "report.md").read_text(encoding="utf-8") == report(data)
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(PNG)
    kept = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report(kept) == report(data)


def test_the_command_reads_a_saved_record(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record, picture = tmp_path / "out.json", tmp_path / "out.png"
    record.write_text(json.dumps(made_up.data()), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["report", str(record), "--plot", str(picture)])
    report_module.main()
    said = capsys.readouterr()
    assert said.out == report(made_up.data()) and str(picture) in said.err
    assert picture.read_bytes().startswith(PNG)


def test_records_of_older_runs_are_still_read() -> None:
    """Without bounds, kinds, models and context, as they were before."""
    info = copy.deepcopy(made_up.data()["benchmarks"][0]["extra_info"]) | {"kind": "generate"}
    for new in ("bounds", "kinds", "models", "device", "prompt_files", "context", "round_ms", "missing", "ours"):
        del info[new]
    text = report({"benchmarks": [{"extra_info": info}]})
    assert len(table(text, "Speed")) == len(info["ratios"])
    assert len(table(text, "Each side by itself")) == len(info["sides"])


def test_each_axis_leaves_the_base_point_by_one_setting() -> None:
    every = points(",".join(AXES))
    assert len({p.name for p in every}) == len(every)
    for point in every:
        assert (point.batch != 1) + (point.context is not None) + (point.temperature != 0) <= 1
    assert [p.temperature for p in points("sampling")] == [0.8, 0.0], "its base point, where no other axis has it"
    assert [p.temperature for p in points("batch,sampling") if p.axis == "sampling"] == [0.8]
    with pytest.raises(OptionError, match="'depth' is no axis"):
        points("k,depth")


def test_greedy_decoding_stands_beside_sampling_wherever_it_was_measured() -> None:
    infos = [b["extra_info"] for b in made_up.data()["benchmarks"]]
    marks = plot.series("sampling", plot.points_of(infos, "sampling"))["ours, compiled, n-gram"]
    assert [mark.x for mark in marks] == [0.0, 0.8]


def test_benchmarks_of_another_kind_do_no_harm(tmp_path: pathlib.Path) -> None:
    collected = Collected()
    collected.add("other", {"kind": "something else", "folder": tmp_path})
    assert list(finish(collected, {}, None)) == ["unknown CPU; 1 benchmarks."]
