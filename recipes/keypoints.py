"""Push-T as keypoints: a predictor over vectors, in whose world goals are planned for."""

from recipes import pusht

RUN = pusht.RUN
SOURCE = pusht.SOURCE

TOKENIZER = {
    "model": "keypoints",
    "train.steps": 3000,
    "train.learning_rate": 2.5e-3,
    "train.warmup_steps": 200,
    "train.eval_every": 1500,
    "train.save_every": 500,
    "train.cuda_graph": True,
}
DYNAMICS = {
    "model": "predictor",
    "model.transformer.num_layers": 4,
    "model.transformer.dropout": 0.0,
    "train.steps": 6000,
    "train.batch_size": 256,
    "train.learning_rate": 1.5e-3,
    "train.eval_every": 3000,
    "train.save_every": 500,
    "train.cuda_graph": True,
}
CONTROLLER = {  # few steps of what is not given the goal
    "methods": ("goal_policy", "bc", "actor_critic", "task_cost", "flow_policy"),
    "bc.steps": 2000,
    "bc.eval_every": 500,
    "bc.save_every": 500,
    "train.steps": 300,
    "train.eval_every": 100,
    "goal_policy_train.save_every": 500,
    "goal_policy_train.cuda_graph": True,
    "task_cost_train.save_every": 500,
    "task_cost_train.cuda_graph": True,
    "flow_policy_train.save_every": 500,
    "flow_policy_train.cuda_graph": True,
}
EVALUATE = pusht.EVALUATE

TOKENIZER_CPU = {
    "train.steps": 1200,
    "train.batch_size": 64,
    "train.eval_every": 600,
    "train.save_every": 100,
    "train.cuda_graph": False,
}
TOKENIZER_DEMO = TOKENIZER_CPU | {  # as good as 1200 steps of 64 frames, in less time
    "train.steps": 1600,
    "train.batch_size": 32,
    "train.learning_rate": 2e-3,
    "train.eval_every": 800,
}
DYNAMICS_CPU = {
    "model.transformer.num_layers": 4,
    "model.transformer.dropout": 0.0,
    "train.steps": 1800,
    "train.batch_size": 128,
    "train.learning_rate": 1.5e-3,
    "train.eval_every": 900,
    "train.save_every": 100,
    "train.cuda_graph": False,
}
DYNAMICS_DEMO = DYNAMICS_CPU | {  # better than 900 steps with AdamW, in less time
    "train.steps": 600,
    "train.batch_size": 256,
    "train.learning_rate": 2e-3,
    "train.optimizer": "muon",
    "train.eval_every": 600,
}
CONTROLLER_TASK_CPU = {
    "task_cost_train.steps": 2000,
    "task_cost_train.eval_every": 1000,
    "task_cost_train.save_every": 500,
    "task_cost_train.cuda_graph": False,
    "flow_policy.encoder.hidden_dim": 256,
    # as good as 4500 steps of 256 chunks, in less time
    "flow_policy_train.steps": 2250,
    "flow_policy_train.batch_size": 512,
    "flow_policy_train.learning_rate": 2.8e-3,
    "flow_policy_train.eval_every": 2250,
    "flow_policy_train.save_every": 500,
    "flow_policy_train.cuda_graph": False,
}
CONTROLLER_DEMO = CONTROLLER_TASK_CPU | {  # as good as 256 starts, in half the time
    "goal_policy_train.batch_size": 128,
}
CONTROLLER_TASK_CPU30 = CONTROLLER_TASK_CPU | {
    "task_cost_train.steps": 4000,
    "flow_policy.encoder.hidden_dim": 384,
    "flow_policy_train.steps": 5500,
    "flow_policy_train.batch_size": 256,
    "flow_policy_train.learning_rate": 1e-3,
    "flow_policy_train.eval_every": 5500,
}
CONTROLLER_TASK_DEBUG = {
    "task_cost.hidden_dim": 16,
    "task_cost_train.steps": 4,
    "task_cost_train.batch_size": 8,
    "task_cost_train.eval_every": 2,
    "task_cost_train.save_every": 1,
    "task_cost_train.cuda_graph": False,
    "flow_min_reward": 0.1,
    "flow_policy.encoder.hidden_dim": 16,
    "distilled_policy.expert.num_samples": 2,
    "distilled_policy.num_decisions": 2,
    "distilled_policy_train.steps": 2,
    "distilled_policy_train.batch_size": 4,
    "distilled_policy_train.eval_every": 2,
    "distilled_policy_train.save_every": 1,
    "canonical_policy.encoder.hidden_dim": 16,
    "canonical_policy_train.steps": 4,
    "canonical_policy_train.batch_size": 8,
    "canonical_policy_train.eval_every": 4,
    "canonical_policy_train.save_every": 1,
    "flow_policy_train.steps": 4,
    "flow_policy_train.batch_size": 8,
    "flow_policy_train.eval_every": 4,
    "flow_policy_train.save_every": 1,
    "flow_policy_train.cuda_graph": False,
}
DYNAMICS_DEBUG = {
    "num_eval_clips": 4,
    "model.clip_length": 7,
    "model.frameskip": 2,
    "model.transformer.dim": 32,
    "model.transformer.num_layers": 2,
    "model.transformer.num_heads": 2,
    "model.transformer.mlp_dim": 64,
    "model.transformer.context_frames": 2,
    "train.steps": 40,
    "train.batch_size": 4,
    "train.learning_rate": 1e-3,
    "train.eval_every": 20,
    "train.save_every": 10,
    "train.warmup_steps": 5,
    "train.cuda_graph": False,
}

SIZES = {
    "cpu": {
        "preprocess_pusht": pusht.PREPROCESS_CPU,
        "tokenizer": TOKENIZER_DEMO,
        "dynamics": DYNAMICS_DEMO,
        "controller": pusht.CONTROLLER_CPU | CONTROLLER_DEMO,
        "evaluate": pusht.EVALUATE_CPU,
    },
    "cpu30": {
        "preprocess_pusht": pusht.PREPROCESS_CPU30,
        "tokenizer": TOKENIZER_CPU | {"train.steps": 2400, "train.eval_every": 1200},
        "dynamics": DYNAMICS_CPU | {"train.steps": 5400, "train.eval_every": 2700},
        "controller": pusht.CONTROLLER_CPU30 | CONTROLLER_TASK_CPU30,
        "evaluate": pusht.EVALUATE_CPU30,
    },
    "debug": {
        "preprocess_pusht": pusht.PREPROCESS_DEBUG,
        "preprocess_gym": pusht.PREPROCESS_GYM_DEBUG,
        "tokenizer": {
            "model.channels": 16,
            "model.num_keypoints": 4,
            "model.num_res_blocks": 1,
            "train.steps": 40,
            "train.batch_size": 16,
            "train.learning_rate": 1e-3,
            "train.eval_every": 20,
            "train.save_every": 10,
            "train.warmup_steps": 5,
            "train.cuda_graph": False,
        },
        "dynamics": DYNAMICS_DEBUG,
        "controller": pusht.CONTROLLER_DEBUG | CONTROLLER_TASK_DEBUG,
        "play": pusht.PLAY_DEBUG,
        "evaluate": pusht.EVALUATE_DEBUG,
    },
    "high_res": pusht.HIGH_RES,
}
