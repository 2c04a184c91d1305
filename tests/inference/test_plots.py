import pytest

from bertorch.figures import draw_confusion

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    "labels", [["a", "b"], ["正面", "负面"], ["$x$", "$\\frac$"], ["_", "a" * 200], list(map(str, range(21)))]
)
def test_labels_of_all_kinds_are_drawn(labels, tmp_path):
    path = tmp_path / "confusion.png"
    draw_confusion([[column + row for column in range(len(labels))] for row in range(len(labels))], labels, str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_cells_are_coloured_by_the_share_of_their_row(tmp_path):
    """Read back from the picture: 9 of 10 is dark, 1 of 10 and 0 of 10 are light, whatever the size of the row."""
    from matplotlib import image

    path = tmp_path / "confusion.png"
    draw_confusion([[900, 100], [1, 9]], ["a", "b"], str(path))
    blue = image.imread(path)[..., :3].mean(-1)
    height, width = blue.shape
    left, right, top, bottom = 0.3, 0.55, 0.2, 0.6  # inside the cells, beside their numbers
    cells = [[blue[int(height * y), int(width * x)] for x in (left, right)] for y in (top, bottom)]
    assert cells[0][0] == pytest.approx(cells[1][1])
    assert cells[0][1] == pytest.approx(cells[1][0])
    assert cells[0][0] < 0.5 < cells[0][1]
