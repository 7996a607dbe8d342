"""Push-T as codes: a VQ-VAE, a transformer over tokens, and an actor-critic in imagination."""

RUN = "runs/pusht"
SOURCE = ("pusht",)

TOKENIZER = {"model": "vqvae"}
DYNAMICS = {
    "model": "llama",
    "model.transformer.dim": 384,
    "model.transformer.num_layers": 8,
    "model.transformer.num_heads": 6,
    "model.transformer.mlp_dim": 1024,
}
EVALUATE = {"horizons": (1, 2, 3, 4, 6, 8, 12, 16, 25)}

# What the other systems on Push-T share: episodes, and training and measuring controllers.
PREPROCESS_CPU = {"episodes": 480}
CONTROLLER_CPU = {
    "bc.steps": 700,
    "bc.batch_size": 256,
    "bc.learning_rate": 1e-3,
    "bc.eval_every": 100,
    "bc.save_every": 100,
    "train.steps": 40,
    "train.batch_size": 48,
    "train.eval_every": 20,
    "train.save_every": 20,
    "train.log_every": 5,
    "train.warmup_steps": 10,
    # gradients through a world are expensive
    "goal_policy_train.steps": 300,
    "goal_policy_train.batch_size": 256,
    "goal_policy_train.eval_every": 100,
    "goal_policy_train.save_every": 50,
    "goal_policy_train.cuda_graph": False,
    "num_processes": 2,
}
EVALUATE_CPU = {
    "num_processes": 2,
    "horizons": (1, 2, 3, 4, 6, 8, 12, 16),
    "estimator_steps": 250,
    "idm_steps": 900,
    "task_episodes": 50,
    "search_episodes": 0,
    "oracle_episodes": 0,
    "task_without": ("goal_policy", "bc", "actor_critic"),
    "goal_offsets": (25,),
    "goal_pairs": 30,
    "pair_seeds": (0,),
    "oracle_pairs": 30,
    "oracle_samples": 48,
    "oracle_iterations": 4,
    "planner.num_samples": 200,
    "planner.iterations": 10,
    "planner.num_elites": 20,
}
PREPROCESS_CPU30 = {"episodes": 960}
CONTROLLER_CPU30 = CONTROLLER_CPU | {
    "goal_policy_train.steps": 6000,
    "goal_policy_train.eval_every": 1000,
    "goal_policy_train.compile": "auto",
}
EVALUATE_CPU30 = EVALUATE_CPU | {
    "task_without": (),
    "goal_offsets": (25, 50),
    "goal_pairs": 100,
    "pair_seeds": (0, 1, 2),
    "task_episodes": 100,
    "search_episodes": 12,
    "oracle_episodes": 4,
}
PREPROCESS_DEBUG = {"episodes": 6}
PREPROCESS_GYM_DEBUG = {"default_episodes": 6}
CONTROLLER_DEBUG = {
    "min_reward": 0.1,
    "goal_policy.max_goal_offset": 10,  # short recordings have room for no more
    "bc.steps": 20,
    "bc.batch_size": 16,
    "bc.eval_every": 10,
    "bc.save_every": 5,
    "train.steps": 4,
    "train.batch_size": 4,
    "train.eval_every": 2,
    "train.save_every": 1,
    "goal_policy_train.steps": 4,
    "goal_policy_train.batch_size": 4,
    "goal_policy_train.eval_every": 2,
    "goal_policy_train.save_every": 1,
    "goal_policy_train.cuda_graph": False,
}
PLAY_DEBUG = {"steps": 12, "size": 128}
EVALUATE_DEBUG = {
    "num_clips": 8,
    "horizons": (1, 2, 4),
    "estimator_steps": 4,
    "idm_steps": 4,
    "imitation_frames": 32,
    "num_videos": 1,
    "play_frames": 10,
    "task_episodes": 2,
    "search_episodes": 2,
    "oracle_episodes": 1,
    "task_max_steps": 6,
    "return_episodes": 4,
    "return_max_steps": 50,
    "task_planner.num_samples": 4,
    "task_planner.iterations": 2,
    "task_planner.warm_start_iterations": 1,
    "task_planner.num_elites": 2,
    "goal_pairs": 2,
    "pair_seeds": (0,),
    "oracle_pairs": 2,
    "oracle_samples": 4,
    "oracle_iterations": 2,
    "planner.num_samples": 4,
    "planner.iterations": 2,
    "planner.num_elites": 2,
}
HIGH_RES = {
    "preprocess_pusht": {"resolution": 96},
    "tokenizer": {"model.image_size": (96, 96)},
}

TOKENIZER_CPU = {
    "model.num_res_blocks": 1,
    "train.steps": 950,
    "train.batch_size": 64,
    "train.eval_every": 475,
    "train.save_every": 100,
}
DYNAMICS_CPU = {
    "model.clip_length": 6,
    "model.transformer.dim": 128,
    "model.transformer.num_layers": 6,
    "model.transformer.num_heads": 2,
    "model.transformer.mlp_dim": 384,
    "model.transformer.context_frames": 3,
    "train.steps": 900,
    "train.batch_size": 16,
    "train.learning_rate": 2e-3,
    "train.eval_every": 450,
    "train.save_every": 100,
}

SIZES = {
    "cpu": {
        "preprocess_pusht": PREPROCESS_CPU,
        "tokenizer": TOKENIZER_CPU,
        "dynamics": DYNAMICS_CPU,
        "controller": CONTROLLER_CPU,
        "evaluate": EVALUATE_CPU,
    },
    "cpu30": {
        "preprocess_pusht": PREPROCESS_CPU30,
        "tokenizer": TOKENIZER_CPU | {"train.steps": 1900, "train.eval_every": 950},
        "dynamics": DYNAMICS_CPU | {"train.steps": 2700, "train.eval_every": 1350},
        "controller": CONTROLLER_CPU30,
        "evaluate": EVALUATE_CPU30,
    },
    "debug": {
        "preprocess_pusht": PREPROCESS_DEBUG,
        "preprocess_gym": PREPROCESS_GYM_DEBUG,
        "tokenizer": {
            "model.channels": 32,
            "model.codebook_size": 64,
            "model.latent_dim": 8,
            "model.num_res_blocks": 1,
            "model.vq_start_step": 10,
            "train.steps": 40,
            "train.batch_size": 16,
            "train.eval_every": 20,
            "train.save_every": 10,
            "train.warmup_steps": 5,
        },
        "dynamics": {
            "num_eval_clips": 4,
            "model.clip_length": 4,
            "model.transformer.dim": 32,
            "model.transformer.num_layers": 2,
            "model.transformer.num_heads": 2,
            "model.transformer.mlp_dim": 64,
            "model.transformer.context_frames": 3,
            "train.steps": 40,
            "train.batch_size": 4,
            "train.eval_every": 20,
            "train.save_every": 10,
            "train.warmup_steps": 5,
        },
        "controller": CONTROLLER_DEBUG,
        "play": PLAY_DEBUG,
        "evaluate": EVALUATE_DEBUG,
    },
    "high_res": HIGH_RES,
}
