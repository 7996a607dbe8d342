from pathlib import Path

from evaluation.report import plots


def test_only_decibels_are_cut_off(monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.update({path.name: figure}))
    psnr, errors = [70.0, 30.0], [70.0, 110.0]
    plots.pixel_curves({"horizons": [1, 2], "psnr": psnr}, Path("pixels"))
    plots.state_curves({"horizons": [1, 2], "agent_px": errors}, Path("states"))
    assert list(drawn["pixels"].axes[0].lines[0].get_ydata()) == [plots.MAX_AXIS_PSNR, 30]
    assert list(drawn["states"].axes[0].lines[0].get_ydata()) == errors


def test_a_gain_near_zero_looks_like_none(monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.update({path.name: figure}))
    for name, gain in (("none", [0.0006, -0.0003]), ("much", [2.0, 9.0])):
        plots.pixel_curves({"horizons": [1, 2], "delta_psnr": gain}, Path(name))
    low, high = drawn["none"].axes[2].get_ylim()
    assert low <= -0.5 and high >= 0.5
    assert drawn["much"].axes[2].get_ylim()[1] > 9


def test_bars_say_what_their_axis_is_and_hatch_what_acts_by_the_world(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    row = {"success": 0.5, "low": 0.4, "high": 0.6, "n": 20}
    rows = {"planner": row, "noop": row, "goal_policy": row, "random": None}
    plots.bar_chart(rows, "success", "goal", Path("goal"), axis="share of goals")
    plots.bar_chart(rows, "success", "goal", Path("goal"))
    assert [figure.axes[0].get_xlabel() for figure in drawn] == ["share of goals", "success"]
    assert [bar.get_hatch() for bar in drawn[0].axes[0].patches] == ["//", "", "//"]
