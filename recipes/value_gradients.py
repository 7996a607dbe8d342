"""An actor-critic that is rewarded by what a task's cost falls, by gradients through the world
(stochastic value gradients, arXiv:1510.09142).  It changes the recipe before it, whose clone and
cost it starts from: --preset keypoints value_gradients."""

CONTROLLER = {
    "model": "dreamer",
    "methods": ("actor_critic",),
    "model.rewards": "task_cost",
    "model.actor_gradient": "dynamics",
    # the clone's shape
    "model.policy.num_modes": 5,
    "model.policy.min_std": 0.05,
    "model.policy.dropout": 0.1,
    "model.discount": 0.99,
    "model.min_return_scale": 0.05,
    "model.bc_weight": 0.02,
    "model.entropy": 1e-3,
    "train.steps": 500,
    "train.batch_size": 128,
    "train.learning_rate": 3e-4,
    "train.eval_every": 500,
    "train.ema_decay": 0.98,
}

SIZES = {
    "debug": {
        "controller": {
            "train.steps": 4,
            "train.batch_size": 4,
            "train.eval_every": 2,
            "train.save_every": 1,
        },
    },
}
