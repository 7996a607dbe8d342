"""Videos without actions (Genie): a causal tokenizer, latent actions, MaskGIT dynamics."""

from recipes import pusht

RUN = "runs/genie"
SOURCE = pusht.SOURCE


def _blocks(name: str, dim: int, num_layers: int, num_heads: int, mlp_dim: int) -> dict[str, int]:
    """The size of a transformer of the model."""
    sizes = {"dim": dim, "num_layers": num_layers, "num_heads": num_heads, "mlp_dim": mlp_dim}
    return {f"model.{name}.{key}": value for key, value in sizes.items()}


# one GPU, 10 minutes
TOKENIZER = {
    "model": "st_vivit",
    **_blocks("encoder", 256, 3, 8, 768),
    **_blocks("decoder", 256, 5, 8, 768),
    "train.steps": 6000,
    "train.batch_size": 64,
    "train.learning_rate": 1e-3,
    "train.eval_every": 1000,
}
DYNAMICS = {
    "model": "genie",
    **_blocks("transformer", 512, 8, 8, 1536),
    "model.transformer.context_frames": 8,
    "model.clip_length": 12,
    "model.latent_actions.channels": 64,
    "model.latent_action_steps": 2000,
    "train.steps": 8000,
    "train.batch_size": 64,
    "train.learning_rate": 5e-4,
    "train.eval_every": 1000,
}
# short blocks, planned anew before they are used up: with a true simulator in the world's place
# they reach twice as many goals as one long block
EVALUATE_PLANNER = {
    "code_planner.action_block": 2,
    "code_planner.horizon": 3,
    "code_planner.beam_width": 4,
    "receding_horizon": 4,
}
EVALUATE = pusht.EVALUATE | EVALUATE_PLANNER

SIZES = {
    "cpu": {
        "preprocess_pusht": pusht.PREPROCESS_CPU,
        "tokenizer": {
            **_blocks("encoder", 192, 2, 6, 512),
            **_blocks("decoder", 192, 3, 6, 512),
            "model.decoder.context_frames": 1,
            "model.clip_length": 2,
            "train.steps": 950,
            "train.batch_size": 32,
            "train.learning_rate": 2e-3,
            "train.optimizer": "muon",
            "train.eval_every": 475,
            "train.save_every": 50,
        },
        "dynamics": {
            **_blocks("transformer", 128, 4, 4, 384),
            "num_eval_clips": 32,
            "model.transformer.context_frames": 3,
            "model.clip_length": 6,
            "model.sampling_steps": 1,
            "model.all_masked": 1.0,  # as in that one pass
            "model.latent_actions.channels": 32,
            "model.latent_actions.linear_length": 1.0,
            "model.latent_actions.carry": 0.6,
            "model.latent_actions.motion_alone": True,
            "model.latent_actions.decay": 0.99,
            "model.latent_action_steps": 600,
            "train.steps": 4500,
            "train.batch_size": 8,
            "train.learning_rate": 4e-3,
            "train.optimizer": "muon",
            "train.eval_every": 2250,
            "train.compile": "auto",
            "train.save_every": 50,
        },
        "evaluate": pusht.EVALUATE_CPU | EVALUATE_PLANNER,
    },
    "debug": {
        "preprocess_pusht": pusht.PREPROCESS_DEBUG,
        "tokenizer": {
            **_blocks("encoder", 32, 1, 2, 64),
            **_blocks("decoder", 32, 1, 2, 64),
            "train.steps": 40,
            "train.batch_size": 4,
            "train.eval_every": 20,
            "train.save_every": 10,
            "train.warmup_steps": 5,
        },
        "dynamics": {
            "num_eval_clips": 4,
            **_blocks("transformer", 32, 2, 2, 64),
            "model.latent_action_steps": 20,
            "model.latent_actions.channels": 8,
            "model.latent_actions.num_layers": 1,
            "model.transformer.context_frames": 3,
            "model.clip_length": 4,
            "model.sampling_steps": 2,
            "model.latent_actions.vq_start_step": 10,
            "train.steps": 40,
            "train.batch_size": 4,
            "train.learning_rate": 1e-3,
            "train.eval_every": 20,
            "train.save_every": 10,
            "train.warmup_steps": 5,
        },
        "play": pusht.PLAY_DEBUG,
        "evaluate": pusht.EVALUATE_DEBUG,
    },
    # the case study of the paper (appendix F), but for the convolutions of the latent actions
    "coinrun": {
        "tokenizer": {
            "model.patch_size": 4,
            "model.num_codebooks": 1,
            "model.levels": (8, 8, 4, 4),
            "model.encoder_sees_frame": True,
            **_blocks("encoder", 512, 8, 8, 2048),
            **_blocks("decoder", 512, 8, 8, 2048),
            "model.encoder.context_frames": 16,
            "model.decoder.context_frames": 16,
            "model.clip_length": 16,
            "train.steps": 300_000,
            "train.batch_size": 48,
            "train.learning_rate": 3e-4,
            "train.warmup_steps": 10_000,
            "train.schedule": "constant",
            "train.weight_decay": 1e-4,
            "train.beta2": 0.9,
            "train.eval_every": 10_000,
        },
        "dynamics": {
            **_blocks("transformer", 512, 12, 8, 2048),
            "model.transformer.context_frames": 16,
            "model.clip_length": 16,
            "model.sampling_steps": 25,
            "model.latent_actions.num_actions": 6,
            "model.latent_actions.dim": 32,
            "model.latent_actions.channels": 128,
            "model.latent_action_steps": 0,
            "train.steps": 200_000,
            "train.batch_size": 36,
            "train.learning_rate": 3e-5,
            "train.warmup_steps": 5000,
            "train.weight_decay": 1e-4,
            "train.beta2": 0.9,
            "train.eval_every": 10_000,
        },
    },
    "high_res": pusht.HIGH_RES,
}
