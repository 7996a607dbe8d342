"""The keys of report/metrics.json. What was not measured is null, never absent or zero."""

from __future__ import annotations

from typing import Any

TOKENIZER = ("n", "psnr", "ssim", "codes_used", "codes_changing", "patches_changing")
STATES = ("agent_px", "block_px", "block_degrees")
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
    *STATES,
    *(f"copy_last_{name}" for name in STATES),
    "estimator_error",
)
TASK = ("score", "low", "high", "success", "n")
TASK_POLICIES = ("controller", "cloning", "random", "still", "scripted")
GOAL = ("success", "low", "high", "n")
GOAL_PROTOCOLS = ("first_hit", "strict", "chunk_end", "far", "far_strict")
GOAL_POLICIES = (
    "planner", "amortised", "controller", "cloning", "random", "still", "agent_only", "simulator",
)  # fmt: skip
PROBE = ("n", "linear", "mlp", "rank", "variance")
PLAY = ("n", "frames_per_second", "latency_ms_p50", "latency_ms_p95")


def blank() -> dict[str, Any]:
    """Every key, with nothing measured yet."""
    return {
        "tokenizer": dict.fromkeys(TOKENIZER),
        "probe": dict.fromkeys(PROBE),
        "open_loop": dict.fromkeys(OPEN_LOOP),
        "task": {policy: dict.fromkeys(TASK) for policy in TASK_POLICIES},
        "goal": {
            protocol: {policy: dict.fromkeys(GOAL) for policy in GOAL_POLICIES}
            for protocol in GOAL_PROTOCOLS
        },
        "play": dict.fromkeys(PLAY),
        "provenance": {},
    }
