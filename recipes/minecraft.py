"""Minecraft from OpenAI's contractor recordings (VPT, arXiv:2206.11795).

64 x 64 pixels as 256 codes, and a transformer of 97 M parameters over them.  The recordings have no
reward: controllers clone, and learn to reach frames.
"""

RUN = "runs/minecraft"
SOURCE = ("vpt", "--recordings", "PATH")

TOKENIZER = {
    "model": "vqvae",
    "model.downsample": 4,
    "model.patch_size": 2,
    "model.encoder_kernel": 3,
    "model.num_codebooks": 1,
    "model.codebook_size": 1024,
    "model.latent_dim": 256,
}
DYNAMICS = {
    "model": "llama",
    "model.clip_length": 12,
    # in a view that turns most codes change, and none is rare
    "model.changed_token_weight": 1.0,
    "model.transformer.dim": 576,
    "model.transformer.num_layers": 24,
    "model.transformer.num_heads": 9,
    "model.transformer.mlp_dim": 1536,
    "model.transformer.context_frames": 8,
    "model.transformer.activation_checkpointing": True,
    "train.steps": 100_000,
    "train.batch_size": 32,
    "train.grad_accum_steps": 4,
    "train.learning_rate": 3e-4,
}
CONTROLLER = {
    "methods": ("bc", "goal_policy"),
    "goal_policy": "discrete_goal_policy",
    "goal_policy_train.batch_size": 64,
    "goal_policy_train.learning_rate": 3e-4,
}
PLAY = {"fps": 20.0}
EVALUATE = {"horizons": (1, 2, 4, 8, 12, 16, 24, 32)}

SIZES = {
    "150m": {"dynamics": {"model.transformer.mlp_dim": 2816}},
    "high_res": {
        "preprocess_vpt": {"frame_format.resolution": 128},
        "tokenizer": {
            "model.image_size": (128, 128),
            "model.downsample": 8,
            "model.patch_size": 4,
        },
    },
    "debug": {
        "tokenizer": {
            "model.downsample": 8,
            "model.patch_size": 8,
            "model.encoder_kernel": 1,
            "model.channels": 192,
            "model.num_codebooks": 8,
            "model.codebook_size": 256,
            "model.latent_dim": 64,
            "model.vq_start_step": 60,
            "train.steps": 1000,
            "train.batch_size": 16,
            "train.learning_rate": 2e-3,
            "train.eval_every": 250,
        },
        "dynamics": {
            "num_eval_clips": 32,
            "model.clip_length": 5,
            "model.transformer.dim": 128,
            "model.transformer.num_layers": 4,
            "model.transformer.num_heads": 2,
            "model.transformer.mlp_dim": 384,
            "model.transformer.context_frames": 3,
            "model.transformer.activation_checkpointing": False,
            "train.steps": 240,
            "train.batch_size": 16,
            "train.grad_accum_steps": 1,
            "train.learning_rate": 2e-3,
            "train.eval_every": 80,
            "train.save_every": 40,
        },
        "controller": {
            "bc.steps": 60,
            "bc.batch_size": 64,
            "bc.learning_rate": 5e-4,
            "bc.eval_every": 10,
            "bc.warmup_steps": 10,
            "goal_policy_train.steps": 20,
            "goal_policy_train.batch_size": 8,
            "goal_policy_train.eval_every": 10,
            "goal_policy_train.save_every": 10,
            "goal_policy_train.warmup_steps": 5,
        },
        "play": {"steps": 12, "size": 128},
        "evaluate": {
            "num_clips": 48,
            "horizons": (1, 2, 4, 8, 16),
            "num_videos": 2,
            "play_frames": 60,
            "idm_steps": 150,
        },
    },
}
