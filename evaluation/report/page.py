"""One HTML page with a whole evaluation: metrics with their n and intervals, and images."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from data.io.files import atomic_write
from data.io.messages import counted
from evaluation.measures.reconstruction import BRIGHTNESS_BINS
from evaluation.protocols.goals import PROTOCOLS, at_offset
from evaluation.protocols.task import FIRST_SEED, MAX_STEPS, STEPS_WITHIN
from evaluation.report.action_tables import controllability, imitation
from evaluation.report.environment_tables import counterfactuals, events
from evaluation.report.latent_action_table import latent_actions
from evaluation.report.page_parts import films, whole_page
from evaluation.report.return_table import returns
from evaluation.report.summary import summary
from evaluation.report.tables import interval, number, own_rows, table
from evaluation.report.trained_on_note import trained_on_note

RETURN_CURVE = "Bars: 95% intervals over the whole episodes of a round."
CURVE_LABELS = {
    "psnr": "PSNR, model rollout (dB)",
    "copy_last_psnr": "PSNR, last true frame",
    "copy_last_reconstructed_psnr": "PSNR, last reconstructed frame",
    "shuffled_psnr": "PSNR, actions of another clip",
    "reconstruction_psnr": "PSNR, tokenizer alone",
    "delta_psnr": "delta-PSNR (dB)",
    "ssim": "SSIM, model rollout",
    "copy_last_ssim": "SSIM, last true frame",
    "agent_px": "agent error (px of 512)",
    "copy_last_agent_px": "agent, last true frame",
    "block_px": "block error (px of 512)",
    "copy_last_block_px": "block, last true frame",
    "block_degrees": "block error (degrees)",
    "copy_last_block_degrees": "block angle, last true frame",
}
REWARD_LABELS = {
    "correlation": "correlation r",
    "copy_last_correlation": "r, last true reward",
    "mae": "mean absolute error",
    "copy_last_mae": "error, last true reward",
    "bias": "predicted minus true",
    "mean": "true reward",
}
HIGHLIGHTED = {"psnr", "delta_psnr", "ssim", "agent_px", "block_px", "block_degrees"}


def write_report(folder: Path, title: str, metrics: dict[str, Any]) -> Path:
    """Write FOLDER/index.html from the metrics and the images in FOLDER/plots."""
    plots, open_loop = folder / "plots", metrics["open_loop"]
    curves = ["curves_pixels.png"] if open_loop["horizons"] else []
    states = ["curves_states.png"] if open_loop["agent_px"] else []
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=quiet>{escape(_about(metrics['provenance']))}</p>",
        *summary(metrics),
        "<p>Everything is measured on held-out episodes. Brackets are 95% intervals: a bootstrap "
        "over whole source episodes for images, over episodes for scores, Wilson's for shares. "
        "A dash stands for what was not measured. Bold rows and hatched bars are the world "
        "model's: what it predicts, and what acts by a search or by what was learned in it.</p>",
        *_trained_on(metrics["provenance"]),
        *_goals(metrics["goal"]),
        *_attempts(plots, metrics["goal"]),
        *_images(plots, _goal_images(metrics["goal"]), ""),
        *_task(metrics["task"], metrics["provenance"]),
        *_film(plots, metrics["task"]),
        *_images(plots, _if_measured(metrics["task"], "task.png"), ""),
        *_given_goal(metrics["given_goal"], metrics["provenance"]),
        *returns(metrics["returns"]),
        *_images(plots, _if_measured(metrics["returns"], "returns.png"), ""),
        *_images(plots, ["return_curve.png"] if metrics["return_curve"] else [], RETURN_CURVE),
        *_open_loop(open_loop),
        *(films(plots) if curves else []),
        *_images(plots, curves, "By horizon, with the no-change baselines."),
        *_images(plots, states, "Estimated from the images by the state estimator."),
        *_images(
            plots,
            ["video-*.png"] if curves else [],
            "True frames, model rollout, error, by steps after the last true frame.",
        ),
        *_rewards(metrics["rewards"]),
        *events(metrics["events"]),
        *counterfactuals(metrics["counterfactuals"]),
        *controllability(metrics["controllability"]),
        *latent_actions(metrics["latent_actions"]),
        *imitation(metrics["imitation"]),
        *_tokenizer(metrics["tokenizer"]),
        *_images(
            plots,
            ["reconstructions.png"] if metrics["tokenizer"]["n"] else [],
            "True frames, reconstruction, error.",
        ),
        *_probe(metrics["probe"]),
        *_play(metrics["play"]),
        "<h2>Provenance</h2>",
        _provenance(metrics["provenance"]),
    ]
    path = folder / "index.html"
    atomic_write(path, whole_page(title, body).encode())
    return path


def _about(provenance: dict[str, Any]) -> str:
    facts = (provenance.get(key) for key in ("run", "dataset", "device", "finished"))
    return " · ".join(str(fact) for fact in facts if fact)


def _trained_on(provenance: dict[str, Any]) -> list[str]:
    held_out = provenance.get("held_out_episodes")
    if held_out is None:  # a report of before it was measured
        return []
    note = trained_on_note(provenance["held_out_episodes_trained_on"], held_out)
    return [f"<p><b>{escape(note.capitalize())}.</b></p>"] if note else []


def _tokenizer(metrics: dict[str, Any]) -> list[str]:
    psnr = number(metrics["psnr"]) + interval(metrics, "psnr_low", "psnr_high")
    ssim = number(metrics["ssim"], 4) + interval(metrics, "ssim_low", "ssim_high", 4)
    head = ["PSNR (dB)", "SSIM", "codes used", "code flip rate", "patch change rate", "n (frames)"]
    codes_used = number(metrics["codes_used"])
    if metrics.get("codebook_size"):
        codes_used += f" <small>of {metrics['codebook_size']}</small>"
    change_rates = [number(metrics[key], 4) for key in ("code_flip_rate", "patch_change_rate")]
    row = [psnr, ssim, codes_used, *change_rates, number(metrics["n"])]
    parts = ["<h2>Tokenizer</h2>", table(head, [row])]
    if metrics["by_brightness"]:
        head = ["brightness of the frame", "PSNR (dB)", "SSIM", "n (frames)"]
        brightness_rows = [
            [f"{name}, {_brightness_range(name)}", number(row["psnr"]), number(row["ssim"], 4),
             number(row["n"])]
            for name, row in metrics["by_brightness"].items()
        ]  # fmt: skip
        parts.append(table(head, brightness_rows))
    return parts


def _brightness_range(name: str) -> str:
    low, high = BRIGHTNESS_BINS[name]
    return f"from {low}" if high > 1 else f"below {high}"


def _open_loop(metrics: dict[str, Any]) -> list[str]:
    parts = ["<h2>Open loop</h2>"]
    if not metrics["horizons"]:
        return [*parts, "<p>-</p>"]
    parts.append(
        f"<p>Clips from {counted(metrics['sources'], 'source')}; {metrics['context_frames']} "
        "true frames, then actions alone. PSNR is that of the mean squared error over clips; "
        "100 dB stands for equal.</p>"
    )
    rows, highlight = [], set()
    for key, label in CURVE_LABELS.items():
        values = metrics.get(key)
        if values is None:
            continue
        digits = 3 if "ssim" in key else 2 if "psnr" in key else 1
        lows, highs = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
        cells = []
        for index, value in enumerate(values):
            row = {"low": lows[index], "high": highs[index]} if lows and highs else {}
            interval_text = interval(row, digits=digits) if key in HIGHLIGHTED else ""
            cells.append(number(value, digits) + (f"<br>{interval_text}" if interval_text else ""))
        if key in HIGHLIGHTED:
            highlight.add(len(rows))
        rows.append([label, *cells, number(metrics["n"])])
    head = ["steps ahead", *map(str, metrics["horizons"]), "n (clips)"]
    parts.append(table(head, rows, highlight))
    lows = metrics.get("delta_psnr_low")
    if lows and lows[-1] is not None and lows[-1] <= 0:
        parts.append(
            f"<p>delta-PSNR's interval at {metrics['horizons'][-1]} steps holds 0, or is below: "
            f"the world does not hear its actions, as far as these clips show.</p>"
        )
    error = metrics.get("estimator_error")
    if error:
        means = [f"{k.replace('_', ' ')} {number(v)}" for k, v in error.items() if "p95" not in k]
        parts.append(f"<p>State estimator on held-out real frames: {', '.join(means)}.</p>")
    return parts


def _rewards(metrics: dict[str, Any]) -> list[str]:
    if not metrics["n"]:
        return []
    rows = []
    for key, label in REWARD_LABELS.items():
        cells = []
        for index, value in enumerate(metrics[key]):
            low, high = (metrics.get(f"{key}_{end}", [None] * (index + 1))[index]
                         for end in ("low", "high"))  # fmt: skip
            ends = interval({"low": low, "high": high}, digits=3) if low is not None else ""
            cells.append(number(value, 3) + (f"<br>{ends}" if ends else ""))
        rows.append([label, *cells, number(metrics["n"])])
    auc = metrics["continue_auc"]
    ends_note = f" Ends of episodes: AUC {number(auc, 3)}." if auc is not None else ""
    return [
        "<h2>Rewards along model rollouts</h2>",
        f"<p>Clips from {counted(metrics['sources'], 'source')}, actions alone.{ends_note}</p>",
        table(["steps ahead", *map(str, metrics["horizons"]), "n (clips)"], rows, {0}),
    ]


def _probe(metrics: dict[str, Any]) -> list[str]:
    if not metrics["n"]:
        return []
    names = list(metrics["linear"])
    rows = [
        [kind, *(number(metrics[kind][name], 3) for name in names), number(metrics["n"])]
        for kind in ("linear", "mlp")
    ]
    return [
        "<h2>Probes: the state in the latents</h2>",
        table(["correlation r", *(name.replace("_", " ") for name in names), "n (frames)"], rows),
        f"<p>Held-out frames; effective rank "
        f"{number(metrics['effective_rank'], 1)}, mean variance "
        f"{number(metrics['latent_variance'], 3)}.</p>",
    ]


def _task(policies: dict[str, Any], provenance: dict[str, Any]) -> list[str]:
    if not _measured(policies):
        return []
    parts = [
        f"<h2>Task: push the block onto the goal{_limit(provenance)}</h2>",
        f"<p>{escape(_task_protocol(provenance))}</p>",
    ]
    rows = []
    for name, row in policies.items():
        row = row or {}
        score = number(row.get("score"), 3) + interval(row, digits=3)
        success = number(row.get("success"), 3) + interval(row, "success_low", "success_high", 3)
        within = [number(row.get(f"success_within_{limit}"), 3) for limit in STEPS_WITHIN]
        rest = [
            number(row.get("steps"), 0),
            number(row.get("end_score"), 3),
            number(row.get("plan_seconds"), 3),
            number(row.get("n")),
        ]
        rows.append([name, score, success, *within, *rest])
    within = [f"within {limit} steps" for limit in STEPS_WITHIN]
    head = ["policy", "score", "success", *within, "steps", "score at the end",
            "seconds per plan", "n (episodes)"]  # fmt: skip
    return [*parts, table(head, rows, own_rows(policies))]


def _measured(policies: dict[str, Any]) -> bool:
    return any((row or {}).get("n") for row in policies.values())


def _limit(provenance: dict[str, Any]) -> str:
    """For the heading: an episode shorter than the protocol's is solved less often."""
    steps = provenance.get("task_max_steps", MAX_STEPS)
    return "" if steps == MAX_STEPS else f", in at most {steps} steps"


def _task_protocol(provenance: dict[str, Any]) -> str:
    seed = provenance.get("seeds", {}).get("task", FIRST_SEED)
    steps = provenance.get("task_max_steps", MAX_STEPS)
    goal = provenance.get("task_goal")
    is_published = (seed, steps, goal) == (FIRST_SEED, MAX_STEPS, None)
    name = (
        "Diffusion Policy's protocol" if is_published else "A trial of Diffusion Policy's protocol"
    )
    return (
        f"{name}: starts of seeds from {seed}, the same for every policy, at most {steps} steps"
        f"{_towards(goal)}. "
        "The score is the mean highest reward, min(coverage / 0.95, 1); success is a coverage of "
        "0.95 at any step, which ends the episode. Steps: median until success. best_of_n, "
        "policy_prior and planner choose among imagined futures, by the learned cost of the task. "
        "The other policies of frames act without a search: distilled_policy, canonical_policy, "
        "flow_policy, goal_policy, actor_critic and bc. scripted and oracle_cem see true states."
    )


def _towards(goal: Sequence[float] | str | None) -> str:
    if goal == "random":
        return ", towards a goal that each seed draws anywhere"
    return f", towards the goal {' '.join(f'{x:g}' for x in goal)} (x y degrees)" if goal else ""


def _film(plots: Path, policies: dict[str, Any]) -> list[str]:
    """Embed the video of the first policy that was measured now and has one."""
    for name, row in policies.items():
        path = plots / f"task-{name}.mp4"
        if (row or {}).get("n") and path.exists():
            data = base64.b64encode(path.read_bytes()).decode()
            return [
                f'<figure><video controls muted loop src="data:video/mp4;base64,{data}"></video>'
                f"<p class=quiet>Episodes of {name}: failures first, then the slowest. A "
                "striped green border: success.</p></figure>"
            ]
    return []


def _goals(protocols: dict[str, Any]) -> list[str]:
    protocols = {key: rows for key, rows in protocols.items() if _measured(rows)}
    if not protocols:
        return []
    parts = [
        "<h2>Goal reaching</h2><p>Protocols are not comparable with each other. planner, "
        "policy_prior and goal_policy act by the world model; actor_critic and bc are not given "
        "the goal; oracle_cem plans in the true simulator: what a perfect model would reach with "
        "that search.</p>"
    ]
    for protocol, policies in protocols.items():
        rows = []
        for name, row in policies.items():
            success = number(row["success"], 3) + interval(row, digits=3)
            rows.append([name, success, number(row["n"]), number(row.get("plan_seconds"), 3)])
        head = [escape(protocol), "success", "n (pairs)", "seconds per plan"]
        parts.append(table(head, rows, own_rows(policies)))
    return parts


def _given_goal(policies: dict[str, Any], provenance: dict[str, Any]) -> list[str]:
    measured = {name: row for name, row in policies.items() if row["n"]}
    if not measured:
        return []
    rows = []
    for name, row in measured.items():
        end = number(row["end_cost"], 3) + interval(row, digits=3)
        low, high = "lowest_cost_low", "lowest_cost_high"
        lowest = number(row["lowest_cost"], 3) + interval(row, low, high, 3)
        errors = [
            f"{number(row[f'start_{key}'], 1)} to {number(row[key], 1)}"
            + interval(row, f"{key}_low", f"{key}_high", 1)
            if row[key] is not None
            else "-"
            for key in ("block_px", "block_degrees")
        ]
        rows.append([name, end, lowest, *errors, number(row["plan_seconds"], 3), number(row["n"])])
    head = ["policy", "cost at the end", "lowest cost", "block (px)", "block (degrees)",
            "seconds per plan", "n (episodes)"]  # fmt: skip
    given = " ".join(provenance.get("given_goal") or ())
    return [
        f"<h2>Towards a given goal: {escape(given)}</h2><p>In the simulator, from starts of the "
        "task protocol. Costs are those that the planners lower, of true frames, as shares of the "
        "start's; errors of the block are those at the start and at the end.</p>",
        table(head, rows, own_rows(measured)),
    ]


def _play(metrics: dict[str, Any]) -> list[str]:
    head = ["frames/s", "latency p50 (ms)", "p95 (ms)", "n (frames)"]
    keys = ("frames_per_second", "latency_ms_p50", "latency_ms_p95")
    row = [number(metrics[key], 1) for key in keys]
    return [
        "<h2>Play: one stream, decoding included</h2>",
        table(head, [[*row, number(metrics["n"])]]),
    ]


def _attempts(plots: Path, protocols: dict[str, Any]) -> list[str]:
    """Strips of the planner, of the offsets at which it was measured."""
    offsets = {PROTOCOLS[k].goal_offset for k, rows in protocols.items() if rows["planner"]["n"]}
    parts = []
    for offset in sorted(offsets):
        named = next(name for name, p in PROTOCOLS.items() if p is at_offset(offset))
        caption = (
            f"Attempts of the planner at goals {offset} steps away: failures first. Reached and "
            f"failed are by the protocol {named}."
        )
        parts += _images(plots, [f"goal-{offset}-videos.png"], caption)
    return parts


def _if_measured(policies: dict[str, Any], image: str) -> list[str]:
    return [image] if _measured(policies) else []


def _goal_images(protocols: dict[str, Any]) -> list[str]:
    return [f"goal-{key}.png" for key, rows in protocols.items() if _measured(rows)]


def _images(plots: Path, patterns: list[str], caption: str) -> list[str]:
    """Embed the images that match. A caller names none whose metrics were not measured now: such a
    file is of an earlier evaluation."""
    images = []
    for path in [path for pattern in patterns for path in sorted(plots.glob(pattern))]:
        data = base64.b64encode(path.read_bytes()).decode()
        images.append(f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">')
    return [f"<figure>{''.join(images)}<p class=quiet>{caption}</p></figure>"] if images else []


def _provenance(values: dict[str, Any], prefix: str = "") -> str:
    rows: list[list[str]] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name}.{key}" if name else str(key))
        else:
            rows.append([escape(name), escape("-" if value is None else str(value))])

    walk(values, prefix)
    return table(["name", "value"], rows)
