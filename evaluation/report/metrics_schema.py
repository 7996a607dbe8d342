"""The keys of report/metrics.json. What was not measured is null, never absent or zero."""

from __future__ import annotations

from typing import Any

TOKENIZER = ("n", "psnr", "ssim", "codes_used", "codes_changing", "patches_changing", "bands")
STATE_ERRORS = ("agent_px", "block_px", "block_degrees")
OPEN_LOOP = (
    "n",
    "horizons",
    "psnr",
    "ssim",
    "copy_last_psnr",
    "copy_last_reconstructed_psnr",
    "reconstruction_psnr",
    "shuffled_psnr",
    "delta_psnr",
    *STATE_ERRORS,
    *(f"copy_last_{name}" for name in STATE_ERRORS),
    "estimator_error",
)
TASK = ("score", "low", "high", "success", "n")
TASK_POLICIES = ("controller", "cloning", "random", "still", "scripted")
GOAL = ("success", "low", "high", "n")
GOAL_PROTOCOLS = ("first_hit", "strict", "chunk_end", "far", "far_strict")
GOAL_POLICIES = (
    "planner", "guided", "amortised", "controller", "cloning", "random", "still", "agent_only",
    "simulator",
)  # fmt: skip
PROBE = ("n", "linear", "mlp", "rank", "variance")
CONTROLLABILITY = (
    "n", "sources", "steps", "real", "reconstructed", "imagined", "other_actions"
)  # fmt: skip
IMITATION = (
    "n", "sources", "log_likelihood", "log_likelihood_low", "log_likelihood_high",
    "agreement", "by_factor", "f1", "presses",
)  # fmt: skip
IMITATION_POLICIES = ("goals", "controller", "cloning", "most_frequent", "no_op")
PLAY = ("n", "frames_per_second", "latency_ms_p50", "latency_ms_p95")


def empty_metrics() -> dict[str, Any]:
    """Every key, with nothing measured yet."""
    return {
        "tokenizer": dict.fromkeys(TOKENIZER),
        "probe": dict.fromkeys(PROBE),
        "open_loop": dict.fromkeys(OPEN_LOOP),
        "controllability": dict.fromkeys(CONTROLLABILITY),
        "imitation": {policy: dict.fromkeys(IMITATION) for policy in IMITATION_POLICIES},
        "task": {policy: dict.fromkeys(TASK) for policy in TASK_POLICIES},
        "goal": {
            protocol: {policy: dict.fromkeys(GOAL) for policy in GOAL_POLICIES}
            for protocol in GOAL_PROTOCOLS
        },
        "play": dict.fromkeys(PLAY),
        "provenance": {},
    }
