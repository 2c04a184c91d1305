import json

import numpy as np
import pytest
from scipy import stats

from bertorch import compare
from bertorch.resampling import Measure
from bertorch.significance import permutation_test, randomisation_test
from tests.folders_of_evaluations import classified, correlated, write_evaluation


def run(*arguments: str, path=None) -> dict:
    compare.main([*arguments, *(["--output_file", str(path)] if path else [])])
    return json.loads(path.read_text()) if path else {}


def right(table) -> np.ndarray:
    return np.array(table.columns["right"])


def test_two_classifiers(tmp_path, log_lines):
    tables = [classified(share, seed=seed) for seed, share in enumerate([0.8, 0.9])]
    names = [write_evaluation(tmp_path / name, table) for name, table in zip("ab", tables, strict=True)]
    result = run(*names, path=tmp_path / "result.json")
    won, lost = (right(tables[1]) & ~right(tables[0])).sum(), (right(tables[0]) & ~right(tables[1])).sum()
    (comparison,) = result["comparisons"]
    assert comparison["p"] == comparison["p_holm"] == pytest.approx(stats.binomtest(won, won + lost).pvalue)
    difference = right(tables[1]).mean() - right(tables[0]).mean()
    assert comparison["difference"] == pytest.approx(difference)
    low, high = comparison["interval"]
    assert low < difference < high
    for group, name, table in zip(result["groups"], names, tables, strict=True):
        assert group["name"] == name
        assert group["value"] == pytest.approx(right(table).mean())
        assert group["interval"][0] < group["value"] < group["interval"][1]
    assert (result["measure"], result["examples"], result["data"]) == ("accuracy", 200, "dev.txt")
    first, a, b, paired, test, warning = log_lines
    assert first == "accuracy of 200 examples in dev.txt"
    assert a.startswith(f"{names[0]}: {right(tables[0]).mean():.5f} [0.")
    assert b.startswith(f"{names[1]}: {right(tables[1]).mean():.5f} [0.")
    assert paired.startswith(f"{names[1]} - {names[0]}: +{difference:.5f} [+0.0")
    assert test == f"  exact McNemar test; right in one alone: {lost}, {won}"
    assert "another seed gives other ones" in warning


def test_another_measure(tmp_path):
    tables = [classified(share, seed=seed) for seed, share in enumerate([0.8, 0.85])]
    names = [write_evaluation(tmp_path / name, table) for name, table in zip("ab", tables, strict=True)]
    result = run(*names, "--measure", "macro_f1", "--draws", "500", "--seed", "3", path=tmp_path / "result.json")
    measure = Measure("macro_f1", ("gold", "predicted"), classes=2)
    columns = [table.arrays(measure) for table in tables]
    (comparison,) = result["comparisons"]
    assert comparison["p"] == pytest.approx(randomisation_test(measure, *columns, draws=500, seed=3).p)
    assert comparison["test"] == "randomisation test, 500 exchanges"


def test_correlations_of_several_models(tmp_path, log_lines):
    names = [
        write_evaluation(tmp_path / str(seed), correlated(noise, seed=seed), task="embedding")
        for seed, noise in enumerate([1.0, 0.3, 1.1])
    ]
    result = run(*names, "--draws", "400", path=tmp_path / "result.json")
    better, same = result["comparisons"]
    assert better["p"] == pytest.approx(1 / 401)
    assert better["p_holm"] == pytest.approx(2 / 401)
    assert same["p"] > 0.1
    assert [each["against"] for each in (better, same)] == [names[0]] * 2
    assert better["interval"][0] > 0 > same["interval"][0]
    assert sum("among 2" in line for line in log_lines) == 2


def test_groups_of_runs(tmp_path, monkeypatch, log_lines):
    monkeypatch.chdir(tmp_path)
    values = {}
    for name, share in (("base", 0.8), ("new", 0.9)):
        for seed in range(4):
            table = classified(share, seed=seed + 10 * (name == "new"))
            write_evaluation(tmp_path / f"{name}-{seed}" / "report", table)
            values.setdefault(name, []).append(right(table).mean())
    (tmp_path / "base-notes").write_text("a file, which is no run")
    result = run("base-*/report", "new-*/report", path=tmp_path / "result.json")
    assert [group["name"] for group in result["groups"]] == ["base-*/report", "new-*/report"]
    for group, expected in zip(result["groups"], values.values(), strict=True):
        assert [each["value"] for each in group["runs"]] == pytest.approx(expected)
        assert group["value"] == pytest.approx(np.mean(expected))
    (comparison,) = result["comparisons"]
    assert comparison["p"] == pytest.approx(permutation_test(values["base"], values["new"]).p)
    assert "all 70 splits of 4 + 4 runs; least possible p 0.029" in comparison["test"]
    assert log_lines[1].endswith(", mean of 4 runs")
    assert not any("another seed" in line for line in log_lines)


def test_the_same_command_gives_the_same_numbers(tmp_path):
    names = [write_evaluation(tmp_path / name, classified(0.8, seed=ord(name))) for name in "ab"]
    first, again = (
        run(*names, "--measure", "macro_f1", "--draws", "300", path=tmp_path / f"{number}.json") for number in range(2)
    )
    assert first == again


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    names = [write_evaluation(tmp_path / name, classified(0.8, seed=1)) for name in ("run[1]", "b")]
    result = run(*names, path=tmp_path / "result.json")
    assert result["groups"][0]["runs"][0]["folder"] == names[0]


def mistake(log_lines, *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        compare.main(list(arguments))
    assert exit_.value.code == 2
    return log_lines[-1]


def test_what_cannot_be_compared(tmp_path, log_lines):
    a = write_evaluation(tmp_path / "a", classified(0.8, seed=1))
    other_file = write_evaluation(tmp_path / "file", classified(0.8, seed=1), digest="e")
    assert "expected an evaluation of the file that" in mistake(log_lines, a, other_file)
    scores = write_evaluation(tmp_path / "scores", correlated(1, seed=1), task="embedding")
    assert "expected a report with accuracy, got one of the task embedding with spearman" in mistake(
        log_lines, a, scores
    )
    assert "expected a report with f1, got one of the task classification with accuracy, macro_f1" in mistake(
        log_lines, a, scores, "--measure", "f1"
    )
    labels = classified(0.8, seed=1)
    measures = {
        "accuracy": labels.measures["accuracy"],
        "macro_f1": Measure("macro_f1", ("gold", "predicted"), classes=3),
    }
    more = write_evaluation(tmp_path / "more", labels._replace(measures=measures))
    assert "expected macro_f1 over the same labels" in mistake(log_lines, a, more, "--measure", "macro_f1")
    fewer = write_evaluation(tmp_path / "fewer", classified(0.8, seed=1, count=100))
    assert "were lines skipped by --on_bad_line?" in mistake(log_lines, a, fewer)
    assert "expected each folder once" in mistake(log_lines, a, str(tmp_path / "a" / ".." / "a"))
    assert "expected a pattern of folders" in mistake(log_lines, a, str(tmp_path / "no*"))
    missing = mistake(log_lines, a, str(tmp_path / "nowhere"))
    assert "expected the report.json of a folder that bertorch.evaluate --output_dir wrote, got: No such" in missing


def test_one_folder_is_too_few(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        compare.main(["runs/*"])
    assert exit_.value.code == 2
    assert "expected two or more folders or quoted patterns to compare" in " ".join(capsys.readouterr().err.split())


def test_nothing_is_replaced(tmp_path, log_lines):
    names = [write_evaluation(tmp_path / name, classified(0.8, seed=1)) for name in "ab"]
    path = tmp_path / "result.json"
    path.write_text("mine")
    assert "expected no file of this name, got one" in mistake(log_lines, *names, "--output_file", str(path))
    run(*names, "--overwrite", path=path)
    assert json.loads(path.read_text())["comparisons"][0]["p"] == 1


def test_no_evaluation_that_is_read_is_replaced(tmp_path, log_lines):
    names = [write_evaluation(tmp_path / name, classified(0.8, seed=1)) for name in "ab"]
    for file in ("a/report.json", "b/predictions.jsonl"):
        before = (tmp_path / file).read_bytes()
        for given in (names, [str(tmp_path / "*")]):
            told = mistake(log_lines, *given, names[0], "--output_file", str(tmp_path / file), "--overwrite")
            assert f"{file}: expected another file for the output, got one that is read" in told
        assert (tmp_path / file).read_bytes() == before
