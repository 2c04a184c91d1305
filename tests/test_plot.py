import json
import sys
from pathlib import Path

import pytest

from bertorch import figures, plot

PNG = b"\x89PNG\r\n\x1a\n"


def write(folder: Path, *lines: dict) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def lines(metric: str = "accuracy") -> list[dict]:
    return [
        {"step": 2, "loss": 0.9, "rate": 2e-4},
        {"step": 3, "metric": f"dev_{metric}", f"dev_{metric}": 0.5, "dev_loss": 0.8},
        {"step": 4, "loss": 0.7, "rate": 1e-4, "head_rate": 1e-3},
        {"step": 6, "metric": f"dev_{metric}", f"dev_{metric}": 0.75, "dev_loss": 0.6},
    ]


def drawn(figure) -> dict[str, list[list[tuple[float, float]]]]:
    """The points of each line, by the title of its panel."""
    return {
        axes.get_title(): [list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()]
        for axes in figure.get_axes()
    }


@pytest.fixture(autouse=True)
def _skip_without_matplotlib(request):
    if "missing" not in request.node.name:
        pytest.importorskip("matplotlib")


def test_each_panel_has_its_numbers(tmp_path):
    runs = [plot.Run.read(write(tmp_path / name, *lines())) for name in ("a", "b")]
    figure = plot.draw(runs)
    assert drawn(figure) == {
        "loss of a training batch, dashed: of the dev examples": [[(2, 0.9), (4, 0.7)], [(3, 0.8), (6, 0.6)]] * 2,
        "learning rate, dashed: of the head": [[(2, 2e-4), (4, 1e-4)], [(4, 1e-3)]] * 2,
        "dev accuracy": [[(3, 0.5), (6, 0.75)]] * 2,
    }
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [str(tmp_path / name) for name in ("a", "b")]
    colours = [handle.get_color() for handle in legend.legend_handles]
    assert [line.get_color() for line in figure.get_axes()[2].get_lines()] == colours == ["C0", "C1"]
    assert figure.get_axes()[-1].get_xlabel() == "step"


def test_a_run_without_evaluations_has_two_panels(tmp_path):
    run = plot.Run.read(write(tmp_path, lines()[0]))
    assert drawn(plot.draw([run])) == {"loss of a training batch": [[(2, 0.9)], []], "learning rate": [[(2, 2e-4)], []]}


def test_runs_of_different_tasks_and_more_than_there_are_plain_colours(tmp_path):
    runs = [plot.Run.read(write(tmp_path / str(n), *lines("F1" if n else "accuracy"))) for n in range(12)]
    figure = plot.draw(runs)
    assert "dev F1, accuracy" in drawn(figure)
    assert len({str(line.get_color()) for line in figure.get_axes()[2].get_lines()}) == 12


@pytest.mark.parametrize("name", ["_hidden", "$x$ and $", "种子1", "long" * 60, "line\nbreak"])
def test_the_command_draws_whatever_the_name_of_the_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path(name), *lines())
    plot.main([name, f"{name}/metrics.jsonl"])
    assert Path("plot.png").read_bytes().startswith(PNG)


def mistake(capsys_lines, *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        plot.main(list(arguments))
    assert exit_.value.code == 2
    return capsys_lines[-1]


def test_mistakes_end_with_exit_code_2(tmp_path, log_lines):
    run = write(tmp_path / "run", *lines())
    there = tmp_path / "there.png"
    there.write_text("mine")
    assert "expected no file of this name, got one" in mistake(log_lines, run, "--output", str(there))
    assert there.read_text() == "mine"
    assert "metrics.jsonl: expected the metrics.jsonl of a run, got: No such file" in mistake(log_lines, str(tmp_path))
    output = ["--output", str(tmp_path / "new.png")]
    assert "got none yet" in mistake(log_lines, write(tmp_path / "new"), *output)
    assert "metrics.jsonl:1: expected a JSON object with a step" in mistake(
        log_lines, write(tmp_path / "other", {"a": 1}), *output
    )
    nowhere = str(tmp_path / "nowhere" / "new.png")
    assert "expected a file that can be written, got: No such file" in mistake(log_lines, run, "--output", nowhere)
    plot.main([run, "--output", str(there), "--overwrite"])
    assert there.read_bytes().startswith(PNG)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "new", "other", "there.png"}


def test_a_missing_package_is_named(log_lines, monkeypatch):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    assert "bertorch.plot needs matplotlib; install it by: pip install matplotlib" in mistake(log_lines, "run")


def test_it_can_be_imported_without_the_missing_package(monkeypatch, log_lines):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "bertorch.plot")
    import bertorch.plot as without

    assert without is not plot
