import pytest

from bertorch import figures

pytest.importorskip("matplotlib")


def test_characters_that_no_font_has_are_told_in_the_log(log_lines, monkeypatch):
    monkeypatch.setattr(figures, "_font_with", lambda characters: None)
    shown, _ = figures.readable_names(["seed", "种子"], "run", longest=3)
    assert shown == ["run 1", "run 2"]
    assert log_lines == ["no installed font has 子种; each run is numbered instead", "run 1: seed", "run 2: 种子"]


def test_another_font_helps_out(tmp_path, monkeypatch):
    """A character that a font of matplotlib's own has, and its default one has not."""
    from matplotlib import font_manager, rc_context
    from matplotlib.figure import Figure

    monkeypatch.chdir(tmp_path)
    default = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    stix = font_manager.get_font(font_manager.findfont(font_manager.FontProperties("STIXGeneral"))).get_charmap()
    name = next(chr(code) for code in sorted(stix.keys() - default.keys()) if chr(code).isalpha())
    shown, fonts = figures.readable_names([name], "run", longest=90)
    assert shown == [name]
    assert len(fonts) == 2
    figure = Figure()
    with rc_context({"font.family": fonts}):
        figure.text(0.5, 0.5, name)
        figures.write_png(figure, "name.png")  # a missing character would be a warning, which is an error here


def test_a_reliability_diagram(tmp_path):
    bins = [{"probability": 0.5, "accuracy": 0.25, "examples": 4}, {"probability": 0.9, "accuracy": 1.0, "examples": 6}]
    path = tmp_path / "reliability.png"
    figures.draw_reliability(bins, 0.16, str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
