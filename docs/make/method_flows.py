"""What docs/make/shape_figures.py draws of each method: rows of what flows, top to bottom.

Letters as in the models: B rows, T frames.  Shapes and weights are read from the method itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from controller_flows import CONTROLLER_FLOWS
from drawing import GREEN, INK, ORANGE, Flow, Node, Via
from models.layers.views import SLOTS
from shape_figures import actions, dynamics, frames, tokenizer, trace

FRAME = Node("frame", "(B, 3, 64, 64) uint8", GREEN)
DRAWN = Node("frame, drawn", "(B, 3, 64, 64) uint8", ORANGE)


# -- tokenizers ---------------------------------------------------------------------------------


def vqvae() -> Flow:
    model = tokenizer("pusht cpu")
    t, codes = trace(model, ["encoder"], lambda: model.encode(frames()))
    spec = model.latents
    return Flow(
        f"VQ-VAE: a frame becomes {codes.shape[1]} codes, and is drawn from them",
        [FRAME, Node("vectors", t.shape("encoder")), Node("latents", t.shape(codes), ORANGE),
         DRAWN],
        [Via(f"encoder, {t.weights('encoder')}"),
         Via("the nearest", f"{spec.num_codebooks} codebooks of {spec.codebook_size}", INK),
         Via(f"decoder, {t.weights('decoder')}")],
        notes=[f"Each of {spec.num_patches} patches is {spec.num_codebooks} codes: a code changes "
               "where pixels do."],
    )  # fmt: skip


def keypoints() -> Flow:
    model = tokenizer("keypoints cpu")
    t, latents = trace(model, ["heatmap_head"], lambda: model.encode(frames()))
    drawn, _ = trace(model, ["decoder_in"], lambda: model.decode(latents))
    _, _, height, width = drawn.given["decoder_in"].shape
    maps = f"(B, {model.decoder_in.in_channels}, {height}, {width})"
    points = latents.shape[-1] // 2
    return Flow(
        f"Keypoints: heat maps, of which each one's center is a point; {points} points are drawn",
        [FRAME, Node(f"{points} heat maps", t.shape("heatmap_head")),
         Node("latents: x, y of each", t.shape(latents), ORANGE),
         Node(f"{len(model.config.gaussian_stds)} Gaussians a point", maps), DRAWN],
        [Via("convolutions", t.weights("stem", "fine", "coarse", "fuse", "heatmap_head"), INK),
         Via("softmax, its mean"), Via("drawn at the points"),
         Via("decoder", t.weights("decoder_in", "decoder"), INK)],
        notes=["What is no point is in a learned background image."],
    )  # fmt: skip


def jepa() -> Flow:
    model = tokenizer("lewm cpu")
    t, latents = trace(model, ["encoder", "proj"], lambda: model.encode(frames()))
    block = actions(1, model.config.predictor.frameskip)
    after = model.predict(latents[:, None], block)[:, 0]
    return Flow(
        "Joint embedding: latents 5 frames later are predicted from these and the actions",
        [FRAME, Node("features", t.shape("encoder")), Node("latents", t.shape(latents), ORANGE),
         Node("latents 5 frames later", t.shape(after), ORANGE)],
        [Via(f"encoder, {t.weights('encoder')}"), Via("projection, batch norm"),
         Via(f"predictor, {t.weights('predictor')}", "5 actions (B, 5, 2)")],
        notes=["The target is the latents of the true later frame.",
               "SIGReg keeps the latents normally distributed: no collapse."],
    )  # fmt: skip


def image_vae() -> Flow:
    model = tokenizer("flexible vae", pretrained="random")
    t, latents = trace(model, ["encoder"], lambda: model.encode(frames()))
    return Flow(
        "Image autoencoder: a VAE's means are the latents, and its own decoder draws them",
        [FRAME, Node("means and variances", t.shape("encoder")),
         Node("latents: means", t.shape(latents), ORANGE), DRAWN],
        [Via(f"encoder, {t.weights('encoder')}"), Via("the first half"),
         Via(f"decoder, {t.weights('decoder')}")],
        notes=["Shapes are those of an untrained one, --model.pretrained random."],
    )  # fmt: skip


def frozen_encoder() -> Flow:
    model = tokenizer("dinov2 cpu", pretrained="random")
    t, latents = trace(model, [], lambda: model.encode(frames()))
    size = model.config.input_size
    return Flow(
        "Frozen encoder: features of a pretrained backbone are the latents",
        [FRAME, Node("scaled, normalized", f"(B, 3, {size}, {size})", GREEN),
         Node("latents: patch features", t.shape(latents), ORANGE), DRAWN],
        [Via("as it was trained"), Via("backbone, frozen", t.weights("backbone"), INK),
         Via("decoder, trained", t.weights("decoder"), INK)],
        notes=["Shapes of DINOv2-small. No gradient reaches the backbone."],
    )  # fmt: skip


def iwm() -> Flow:
    model = tokenizer("iwm equivariant cpu")
    patches, width = model.latents.num_patches, model.latents.dim
    seen = int(model.config.visible * patches)
    hidden = int(model.config.predicted * patches)
    t, _ = trace(model, [], lambda: model.encode(frames()))
    return Flow(
        "Image world model: latents of another view are predicted, given how it differs",
        [(Node("source view", f"{seen} of {patches} patches seen", GREEN),
          Node("target view", f"{patches} patches", GREEN)),
         (Node("latents", f"(B, {seen}, {width})", ORANGE),
          Node("target latents", f"(B, {patches}, {width})", ORANGE)),
         (Node("predicted, masked", f"(B, {hidden}, {width})", ORANGE),
          Node("target, the same", f"(B, {hidden}, {width})", ORANGE))],
        [Via(f"encoder, {t.weights('encoder')}; its average on the right"),
         Via(f"predictor, {t.weights('predictor')}; a choice on the right")],
        notes=[f"Of the target {hidden} masked patches are predicted. The predictor also reads the "
               f"{SLOTS} numbers of the difference.",
               "The loss is the squared error between the last two."],
    )  # fmt: skip


def iwm_actions() -> Flow:
    model = tokenizer("iwm_actions cpu")
    patches, config = model.latents.num_patches, model.config
    shape = f"(B, {patches}, {model.latents.dim})"
    t, _ = trace(model, [], lambda: model.encode(frames()))
    return Flow(
        "Image world model of recordings: the next frame's latents are predicted under actions",
        [Node("frame", "(B, 3, 64, 64) uint8", GREEN),
         Node("answers of wide filters", f"(B, {patches}, {2 * config.num_filters})"),
         Node("latents", shape, ORANGE), Node("predicted latents", shape, ORANGE)],
        [Via("random filters, 20 pixels wide", "means and maxima of each patch", INK),
         Via(f"main components, {t.weights('encoder')}"),
         Via(f"predictor, {t.weights('predictor')}", f"{config.frameskip} actions (B, 5, 2)")],
        notes=[f"A learned map makes {SLOTS} numbers of the actions.",
               "The loss is the squared error of the prediction, and what the latents lose of the "
               "answers."],
    )  # fmt: skip


def st_vivit() -> Flow:
    model = tokenizer("genie cpu")
    t, codes = trace(model, ["encoder", "encoder_out"], lambda: model.encode_clip(frames(2)))
    spec, levels = model.latents, " x ".join(map(str, model.config.levels))
    return Flow(
        "ST-ViViT: clips become codes by rounding, and each frame is drawn from the past",
        [Node("clip", "(B, 2, 3, 64, 64) uint8", GREEN), Node("tokens", t.shape("encoder")),
         Node("numbers", t.shape("encoder_out")), Node("latents", t.shape(codes), ORANGE),
         Node("clip, drawn", "(B, 2, 3, 64, 64) uint8", ORANGE)],
        [Via(f"encoder, {t.weights('encoder_in', 'encoder')}"), Via("linear"),
         Via("rounded (FSQ)", f"{levels} levels", INK),
         Via(f"decoder, {t.weights('decoder_in', 'decoder', 'decoder_out')}")],
        notes=[f"{spec.num_patches} patches of {spec.num_codebooks} codes, each one of "
               f"{spec.codebook_size:,}. Nothing can collapse."],
    )  # fmt: skip


# -- dynamics -----------------------------------------------------------------------------------


def _codes(model: Any, count: int) -> torch.Tensor:
    spec = model.latents
    return torch.randint(spec.codebook_size, (2, count, spec.tokens_per_frame))


def _vectors(model: Any, count: int) -> torch.Tensor:
    return torch.randn(2, count, model.latents.num_patches, model.latents.dim)


AGAIN = "Dashed: in a rollout the prediction is the next input."


def llama() -> Flow:
    _, model = dynamics("pusht cpu")
    past = _codes(model, model.context)
    state = model.start(past, actions(model.context - 1))
    t, after = trace(model, ["transformer"], lambda: model.step(state, actions()))
    spec = model.latents
    return Flow(
        "Transformer over codes: all codes of the next frame in one pass",
        [Node(f"codes of {model.context} frames", t.shape(past), ORANGE),
         Node("tokens: action and patches", f"(B, {model.context} x {1 + spec.num_patches}, "
              f"{model.config.transformer.dim})"),
         Node("logits of the next codes", f"(B, {spec.tokens_per_frame}, {spec.codebook_size})"),
         Node("next codes", t.shape(after.latents), ORANGE)],
        [Via("codebook vectors", "actions (B, 3, 2)"),
         Via(f"transformer, {t.weights('transformer')}"), Via("likeliest, or sampled")],
        again=(3, 0, AGAIN), notes=["A code that stays is helped by a learned bonus."],
    )  # fmt: skip


def predictor() -> Flow:
    _, model = dynamics("keypoints cpu")
    count, dim = model.context_frames, model.config.transformer.dim
    past = _vectors(model, model.context)
    state = model.start(past, actions(model.context - 1))
    t, after = trace(model, ["delta_head"], lambda: model.step(state, actions()))
    skip = model.frameskip
    return Flow(
        "Predictor: a block of latents and actions to the change of the latents",
        [Node(f"{count} context frames", f"(B, {count}, 1, {model.latents.dim})", ORANGE),
         Node("a token a frame", f"(B, {count}, {dim})"),
         Node("change of the latents", t.shape("delta_head")),
         Node("next latents", t.shape(after.latents), ORANGE)],
        [Via("linear, a sum", f"actions (B, {count}, {skip}, 2)"),
         Via(f"transformer, {t.weights('transformer')}"), Via("added to the last")],
        again=(3, 0, AGAIN),
        notes=[f"Context frames are {skip} actions apart; 1 to {skip} actions may be given."],
    )  # fmt: skip


def rssm() -> Flow:
    _, model = dynamics("dreamer cpu")
    return _rssm(model, "frame", DRAWN)


def rssm_latents() -> Flow:
    _, model = dynamics("keypoints cpu rssm cpu")
    shape = f"(B, 1, {model.latents.dim})"
    return _rssm(model, "latent", Node("latents, drawn", shape, ORANGE))


def _rssm(model: Any, read: str, drawn: Node) -> Flow:
    config = model.config
    z = f"{config.num_groups} x {config.num_classes}"
    t, _ = trace(model, [], lambda: None)
    full = config.deter_dim + config.num_groups * config.num_classes
    return Flow(
        "RSSM: a recurrent state, and what the frame adds to it",
        [Node("state: h and z", f"(B, {config.deter_dim}) and (B, {z})", ORANGE),
         Node("next h", f"(B, {config.deter_dim})", ORANGE),
         (Node("prior of z", f"(B, {z})"), Node("posterior of z", f"(B, {z})")),
         Node("next state", f"(B, 1, {full})", ORANGE), drawn],
        [Via(f"GRU, {t.weights('cell.gru')}", "action (B, 2)"),
         Via(f"heads; the {read} enters at the right"),
         Via("z from either"), Via(f"decoder, {t.weights('decoder')}")],
        again=(3, 0, "Dashed: in imagination no frame enters, and z is the prior's."),
        notes=["The KL teaches the prior what the posterior will say.",
               "Reward and continue are read from the state, too."],
    )  # fmt: skip


def maskgit() -> Flow:
    _, model = dynamics("genie cpu maskgit cpu")
    past = _codes(model, 2)
    state = model.start(past, actions(1))
    t, after = trace(model, ["transformer"], lambda: model.step(state, actions()))
    return _masked(model, t, after, "action (B, 2)", "MaskGIT: masked codes of the next frame")


def _masked(model: Any, t: Any, after: Any, action: str, title: str) -> Flow:
    spec, passes = model.latents, model.config.sampling_steps
    return Flow(
        f"{title}, the surest first",
        [(Node("next codes, masked", f"(B, {spec.tokens_per_frame})"),
          Node("codes of the past", f"(B, {model.context}, {spec.tokens_per_frame})", ORANGE)),
         Node("tokens of a frame", f"(B, {1 + spec.num_patches}, {model.config.transformer.dim})"),
         Node("logits", f"(B, {spec.tokens_per_frame}, {spec.codebook_size})"),
         Node("next codes", t.shape(after.latents), ORANGE)],
        [Via("", ""), Via(f"transformer, {t.weights('transformer')}", action),
         Via("the surest stay", f"{passes} passes", INK)],
        again=(3, 0, AGAIN),
        notes=["What is not sure is masked again, until no code is left."],
    )  # fmt: skip


def genie() -> Flow:
    _, model = dynamics("genie cpu")
    latent = model.latent_actions
    t, vectors = trace(model, [], lambda: latent.vectors(frames(2)))
    side = 64 // latent.config.downsample
    return Flow(
        "Genie's latent actions: one of 8 codes from which the second frame follows",
        [(Node("frame t", "(B, 3, 64, 64)", GREEN), Node("frame t + 1", "(B, 3, 64, 64)", GREEN)),
         Node("two numbers", t.shape(vectors[:, 0])),
         Node("latent action", f"one of {latent.config.num_actions} codes", ORANGE),
         Node("frame t + 1, predicted", f"(B, 3, {side}, {side})", ORANGE)],
        [Via("", ""), Via("the nearest", f"codebook of {latent.config.num_actions}", INK),
         Via(f"decoder, {t.weights('latent_actions.decoder')}", "frame t")],
        notes=[f"The encoder has {t.weights('latent_actions.encoder')} weights. MaskGIT then "
               "learns which codes", "follow from the past and this action."],
    )  # fmt: skip


def iwm_dynamics() -> Flow:
    _, model = dynamics("iwm equivariant cpu")
    past = _vectors(model, model.context)
    state = model.start(past, actions(model.context - 1))
    t, after = trace(model, ["to_slots"], lambda: model.step(state, actions()))
    return Flow(
        "IWM under recorded actions: the tokenizer's predictor, with actions for views",
        [Node("2 context frames", f"(B, 2, {model.latents.num_patches}, {model.latents.dim})",
              ORANGE),
         Node(f"{SLOTS} numbers in a view's place", f"(B, {t.given['to_slots'].shape[-1]})"),
         Node("next latents", t.shape(after.latents), ORANGE)],
        [Via("a learned map", "5 actions (B, 5, 2)"),
         Via(f"predictor, {t.weights('predictor')}")],
        again=(2, 0, AGAIN), notes=["It begins with the tokenizer's weights, and with no change."],
    )  # fmt: skip


def language_model() -> Flow:
    _, model = dynamics("flexible cpu")
    past = _vectors(model, model.context)
    state = model.start(past, actions(model.context - 1))
    t, after = trace(model, ["delta_head"], lambda: model.step(state, actions()))
    count, width = model.context_frames, model.backbone.config.hidden_size
    return Flow(
        "A language model as dynamics: a frame is a token, and the actions after it are one",
        [Node(f"{count} context frames", f"(B, {count}, 1, {model.latents.dim})", ORANGE),
         Node("tokens: frame, actions, frame ...", f"(B, {2 * count}, {width})"),
         Node("change, at action tokens", t.shape("delta_head")),
         Node("next latents", t.shape(after.latents), ORANGE)],
        [Via("linear", f"actions (B, {count}, 5, 2)"),
         Via(f"backbone, {t.weights('backbone')}"), Via("added to the last")],
        again=(3, 0, AGAIN), notes=["No table of words, and no head over words."],
    )  # fmt: skip


FLOWS: dict[str, Callable[[], Flow]] = {
    "vqvae": vqvae, "keypoints": keypoints, "frozen_encoder": frozen_encoder,
    "image_vae": image_vae, "jepa": jepa,
    "iwm": iwm, "iwm_actions": iwm_actions, "st_vivit": st_vivit,
    "llama": llama, "predictor": predictor,
    "iwm_dynamics": iwm_dynamics, "rssm": rssm, "maskgit": maskgit, "genie": genie,
    "rssm_latents": rssm_latents, "language_model": language_model, **CONTROLLER_FLOWS,
}  # fmt: skip
"""By the name of the registry."""
