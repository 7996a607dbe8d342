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
