"""The keys of report/metrics.json. What was not measured is null, never absent or zero."""

from __future__ import annotations

from typing import Any

TOKENIZER = (
    "n", "psnr", "ssim", "codes_used", "code_flip_rate", "patch_change_rate", "by_brightness"
)  # fmt: skip
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
REWARDS = (
    "n", "horizons", "correlation", "mae", "bias", "mean", "copy_last_correlation",
    "copy_last_mae", "continue_auc",
)  # fmt: skip
EVENTS = (
    "n", "steps", "rewards", "reward_f1", "reward_f1_low", "reward_f1_high", "reward_precision",
    "reward_recall", "always_f1", "ends", "continue_auc", "continue_auc_low", "continue_auc_high",
)  # fmt: skip
COUNTERFACTUALS = ("n", "horizons", "delta_psnr", "explained", "between_psnr", "left_out")
TASK = (
    "score", "low", "high", "success", "success_low", "success_high", "success_within_100",
    "success_within_200", "steps", "end_score", "coverage", "plan_seconds", "n",
)  # fmt: skip
TASK_POLICIES = (
    "best_of_n", "policy_prior", "planner", "distilled_policy", "canonical_policy", "flow_policy",
    "goal_policy", "actor_critic", "bc", "random", "noop", "scripted", "oracle_cem",
)  # fmt: skip
RETURNS = ("return", "low", "high", "median", "length", "terminated", "n")
RETURN_POLICIES = ("actor_critic", "bc", "random", "recorded")
GOAL = ("success", "low", "high", "n")
GOAL_PROTOCOLS = (
    "first_hit", "strict", "chunk_end", "offset50", "offset50_strict", "offset100",
    "offset100_strict",
)  # fmt: skip
GOAL_POLICIES = (
    "planner", "policy_prior", "goal_policy", "actor_critic", "bc", "random", "noop",
    "goal_agent_position", "oracle_cem",
)  # fmt: skip
GIVEN_GOAL_FIGURES = (
    "end_cost", "low", "high", "lowest_cost", "lowest_cost_low", "lowest_cost_high",
    "start_block_px", "block_px", "block_px_low", "block_px_high",
    "start_block_degrees", "block_degrees", "block_degrees_low", "block_degrees_high",
    "plan_seconds", "n",
)  # fmt: skip
GIVEN_GOAL_POLICIES = ("policy_prior", "planner", "goal_policy", "random", "noop")
PROBE = ("n", "linear", "mlp", "effective_rank", "latent_variance")
CONTROLLABILITY = (
    "n", "sources", "steps", "real", "reconstructed", "imagined", "shuffled_actions"
)  # fmt: skip
LATENT_ACTIONS = (
    "n", "sources", "num_codes", "used", "perplexity", "top_share", "frequencies", "clustering",
    "probe", "consistency", "effects", "delta_psnr", "label_budget",
)  # fmt: skip
IMITATION = (
    "n", "sources", "log_likelihood", "log_likelihood_low", "log_likelihood_high",
    "accuracy", "by_factor", "f1", "support",
)  # fmt: skip
IMITATION_POLICIES = ("goal_policy", "actor_critic", "bc", "most_frequent", "noop")
PLAY = ("n", "frames_per_second", "latency_ms_p50", "latency_ms_p95")


def empty_metrics() -> dict[str, Any]:
    """Give every key, with nothing measured yet."""
    return {
        "tokenizer": dict.fromkeys(TOKENIZER),
        "probe": dict.fromkeys(PROBE),
        "open_loop": dict.fromkeys(OPEN_LOOP),
        "rewards": dict.fromkeys(REWARDS),
        "events": dict.fromkeys(EVENTS),
        "counterfactuals": dict.fromkeys(COUNTERFACTUALS),
        "controllability": dict.fromkeys(CONTROLLABILITY),
        "latent_actions": dict.fromkeys(LATENT_ACTIONS),
        "imitation": {policy: dict.fromkeys(IMITATION) for policy in IMITATION_POLICIES},
        "task": {policy: dict.fromkeys(TASK) for policy in TASK_POLICIES},
        "goal": {
            protocol: {policy: dict.fromkeys(GOAL) for policy in GOAL_POLICIES}
            for protocol in GOAL_PROTOCOLS
        },
        "given_goal": {name: dict.fromkeys(GIVEN_GOAL_FIGURES) for name in GIVEN_GOAL_POLICIES},
        "returns": {policy: dict.fromkeys(RETURNS) for policy in RETURN_POLICIES},
        "return_curve": None,
        "play": dict.fromkeys(PLAY),
        "provenance": {},
    }
