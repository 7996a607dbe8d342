"""An image autoencoder of diffusers as tokenizer: latent diffusion's VAE (arXiv:2112.10752) or a
tiny one of its latents, pretrained or made here.

Its encoder stays as it is and its decoder is tuned to the frames, or all of it is trained.

Letters: B frames, H W pixels, h w cells of the latents, P = h w patches, D latent channels.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from data.batch import Batch
from data.io.messages import shortened
from data.ranges import CheckedConfig, Range
from models.external_weights import (
    asked_for,
    built,
    check_encoder,
    check_finite,
    check_folder,
    check_hash,
    check_unnamed,
    frozen_key,
    leave_out,
    named_weights,
    part_of,
    weights_hash,
)
from models.method import ExternalWeightsError, Losses
from models.tokenizers import backbones
from models.tokenizers.tokenizer import LatentSpec, Tokenizer

KINDS = ("AutoencoderKL", "AutoencoderTiny")
RANDOM = backbones.RANDOM
NOUN = "image autoencoder"  # what an error says that it looked for
MOST_NOISE = 20.0  # of the log-variance, as latent diffusion clips it
INSTALL = "pip install -r requirements-encoders.txt"
Architecture = dict[str, Any]
"""A config of diffusers as plain values; `_class_name` names the kind."""


@dataclass(frozen=True)
class ImageVaeConfig(CheckedConfig):
    ADDED: ClassVar[frozenset[str]] = frozenset({"revision", "sha256"})
    image_size: Annotated[tuple[int, int], Range(1, 4096)] = (64, 64)
    """Height and width of a frame, in pixels."""
    pretrained: str = "stabilityai/sd-vae-ft-mse"
    """An AutoencoderKL or AutoencoderTiny of diffusers, on the Hugging Face hub or in a local
    folder; `random` is an untrained AutoencoderKL of the sizes below."""
    subfolder: str = ""
    """Where it is in a repository of a whole pipeline, such as vae."""
    revision: str = ""
    """A branch, tag or commit on the hub; a checkpoint holds the commit."""
    sha256: str = ""
    """Hash of the encoder's weights, set from them where they are the hub's and stay as they
    are; a checkpoint then names them instead of holding them."""
    tuning: Literal["decoder", "full"] = "decoder"
    """What is trained: the decoder, or both with the latents' KL to a normal distribution."""
    kl_weight: Annotated[float, Range(0, 1)] = 1e-6
    """Weight of that KL, of an AutoencoderKL."""
    channels: Annotated[int, Range(8, 1024)] = 64
    """Of `random`: channels at full resolution, a multiple of 8."""
    downsamples: Annotated[int, Range(1, 5)] = 3
    """Of `random`: how often the resolution is halved."""
    latent_dim: Annotated[int, Range(1, 64)] = 4
    """Of `random`: channels of the latents."""
    architecture: str = ""
    """The autoencoder's config as JSON, set from the weights; a checkpoint holds it."""

    def check(self) -> None:
        super().check()
        if not self.pretrained.strip():
            raise ValueError(
                "--model.pretrained is empty; give a local folder, a name on the hub, or random"
            )
        if Path(self.subfolder).is_absolute() or ".." in Path(self.subfolder).parts:
            raise ValueError(
                f"--model.subfolder {self.subfolder} leaves {self.pretrained}; give a folder in it"
            )
        if self.channels % 8:
            raise ValueError(f"--model.channels {self.channels} is no multiple of 8")


class ImageVae(Tokenizer):
    """Frames to the means of a VAE's latents, one vector a cell, and latents to frames."""

    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, config: ImageVaeConfig) -> None:
        super().__init__()
        self.config = config = self._load(config)
        self.image_size = config.image_size
        spec: Architecture = json.loads(config.architecture)
        self.scale, self.shift = spec.get("scaling_factor") or 1.0, spec.get("shift_factor") or 0.0
        self.dim = int(spec["latent_channels"])
        self.is_kl = spec["_class_name"] == "AutoencoderKL"
        self.latents = LatentSpec("continuous", self._grid(config), self.dim)
        if config.tuning == "decoder":
            self.encoder.requires_grad_(False)
            self.needs = frozenset({"frames", "latents"})
        if config.sha256:
            leave_out(self, "encoder")

    def train(self, mode: bool = True) -> ImageVae:
        super().train(mode)
        if self.config.tuning == "decoder":
            self.encoder.eval()
        return self

    def convert_weights(
        self, state: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Take the decoder of a run with the same encoder, and both where both are trained."""
        if "pretrained" in config:
            stays = self.config.tuning == "decoder"
            check_encoder(self.encoder, self.config, part_of(state, "encoder"), config, stays)
        return state, []

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, P, D)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.tuning == "full"):
            return self._as_patches(self._moments(frames)[:, : self.dim])

    def decode(self, latents: Tensor) -> Tensor:
        """(B, P, D) -> (B, 3, H, W) uint8."""
        drawn = self._draw(latents).float()
        return ((drawn + 1).clamp(0, 2) * 127.5).round().to(torch.uint8)

    def loss(self, batch: Batch) -> Losses:
        """Squared error of pixels from 0 to 1, times 100; where all is trained, of a sample of the
        latents, and their KL."""
        (frames,) = batch.require("frames")
        frames = frames.flatten(0, -4)
        losses: Losses = {}
        if self.config.tuning == "decoder":
            (latents,) = batch.require("latents")
            drawn = self._draw(latents.flatten(0, -3))
        elif not self.is_kl:
            drawn = self._draw(self.encode(frames))
        else:
            mean, log_variance = self._moments(frames).float().chunk(2, dim=1)
            log_variance = log_variance.clamp(-30, MOST_NOISE)
            sampled = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            drawn = self._draw(self._as_patches(sampled))
            kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum((1, 2, 3)).mean()
            losses = {"kl": 100 * self.config.kl_weight * kl}
        target = frames.float() / 127.5 - 1
        error = nn.functional.mse_loss(drawn.float(), target) / 4  # of pixels from 0 to 1
        return {"reconstruction": 100 * error} | losses

    def latents_key(self, fingerprint: str) -> str:
        """The encoder by id, revision and hash where it stays as it is: a decoder that is trained
        longer leaves the latents as they are."""
        config = self.config
        if config.tuning == "full":
            return fingerprint
        read = (config.image_size, config.subfolder, config.architecture)
        return frozen_key(config.pretrained, config.revision, self.encoder, *read)

    def _moments(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, D or more, h, w): means first."""
        return self.encoder(frames.float() / 127.5 - 1)

    def _as_patches(self, x: Tensor) -> Tensor:
        return rearrange((x - self.shift) * self.scale, "B D h w -> B (h w) D")

    def _draw(self, latents: Tensor) -> Tensor:
        """(B, P, D) -> (B, 3, H, W), about -1 to 1."""
        rows, columns = self.latents.grid
        x = rearrange(latents, "B (h w) D -> B D h w", h=rows, w=columns)
        return self.decoder(x / self.scale + self.shift)

    def _grid(self, config: ImageVaeConfig) -> tuple[int, int]:
        """Cells of a frame's latents; ValueError where its size does not divide."""
        height, width = config.image_size
        factor = 2 ** (len(json.loads(config.architecture)["block_out_channels"]) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"frames of {height} x {width} pixels do not divide into cells of {factor} x "
                f"{factor}, which {config.pretrained} encodes; give preprocess.py a --resolution "
                f"of a multiple of {factor}"
            )
        return height // factor, width // factor

    def _load(self, config: ImageVaeConfig) -> ImageVaeConfig:
        """Make both halves; return the config with what the weights say."""
        name = config.pretrained
        read = partial(_read, subfolder=config.subfolder)
        if config.architecture:  # of a checkpoint
            self.encoder, self.decoder = _parts(built(_build, config.architecture))
            is_meta = any(p.is_meta for p in self.encoder.parameters())  # only shapes are wanted
            if config.sha256 and not is_meta:
                self.encoder = named_weights(
                    lambda name, revision: _parts(read(name, revision))[0],
                    name, config.revision, config.sha256,
                )  # fmt: skip
            return config
        if name == RANDOM:
            check_unnamed(name, config.revision, config.sha256)
            vae = _build(_random(config))
        else:
            commit = ""
            if backbones.is_folder(name):
                check_folder(name, config.revision)
            else:
                resolve = partial(backbones.resolve_commit, noun=NOUN)
                commit = asked_for(RANDOM, resolve, name, config.revision)
            vae = asked_for(RANDOM, read, name, commit)
            check_finite(vae, name)
            found = weights_hash(_parts(vae)[0])
            check_hash(found, config.sha256 or found, name)
            named = commit and config.tuning == "decoder"
            config = replace(config, revision=commit, sha256=found if named else "")
        self.encoder, self.decoder = _parts(vae)
        plain = {k: v for k, v in vae.config.items() if k != "_name_or_path"}
        return replace(config, architecture=json.dumps(plain))


def _random(config: ImageVaeConfig) -> Architecture:
    widths = [config.channels * min(2**level, 4) for level in range(config.downsamples + 1)]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": 1,
        "latent_channels": config.latent_dim,
        "norm_num_groups": 8,
        "scaling_factor": 1.0,
        "mid_block_add_attention": False,
    }


def _library() -> Any:
    try:
        import diffusers  # takes seconds to import
    except ImportError as problem:
        raise ValueError(
            f"--model image_vae needs {problem.name}; install it with: {INSTALL}"
        ) from None
    diffusers.utils.logging.set_verbosity_error()
    return diffusers


def _build(spec: Architecture) -> Any:
    """Build an autoencoder with random weights, for those of a checkpoint."""
    _check(spec, "its architecture")
    return getattr(_library(), spec["_class_name"]).from_config(spec)


def _read(name: str, commit: str, subfolder: str) -> Any:
    """Read an autoencoder with its weights; `commit` is empty for a folder.  ExternalWeightsError
    where there is none, one of a kind that is not known, or some of its weights are missing."""
    diffusers = _library()
    where, path = {"revision": commit} if commit else {}, name
    if subfolder and backbones.is_folder(name):
        path = str(Path(name, subfolder))  # diffusers looks for its config in `name` first
        if not Path(path).is_dir():
            raise ValueError(f"{name} has no folder {subfolder}; mend --model.subfolder")
    elif subfolder:
        where["subfolder"] = subfolder
    try:
        spec = diffusers.AutoencoderKL.load_config(path, **where)
        try:
            _check(spec, f"{path}/config.json")
        except ValueError as problem:
            more = "" if subfolder else "; of a pipeline, --model.subfolder says where it is"
            raise ExternalWeightsError(f"{problem}{more}") from None
        vae, info = getattr(diffusers, spec["_class_name"]).from_pretrained(
            path, **where, torch_dtype=torch.float32, output_loading_info=True
        )
        if missing := info["missing_keys"]:  # diffusers leaves such ones random
            raise ValueError(f"its file has no {sorted(missing)[0]}")
    except ExternalWeightsError:
        raise
    except Exception as problem:  # of the network, of files
        raise backbones.unreadable(path, commit, problem, NOUN) from None
    return vae


def _check(spec: Any, what: str) -> None:
    """Raise ValueError where `what` is no config of an autoencoder, or has no numbers to scale
    latents with."""
    if not isinstance(spec, dict):
        raise ValueError(f"{what} holds {shortened(repr(spec))} and no fields; get it again")
    if (kind := spec.get("_class_name")) not in KINDS:
        found = f"holds a {kind}" if kind else "has no _class_name"
        raise ValueError(f"{what} {found}, and an {NOUN} is one of {', '.join(KINDS)}")
    for key, least in (("scaling_factor", 0.0), ("shift_factor", -math.inf)):
        value = spec.get(key)
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= least:
            wanted = "a number above 0" if least == 0 else "a finite number"
            raise ValueError(f"{key} of {what} is {value!r}; make it {wanted}")


def _parts(vae: Any) -> tuple[nn.Module, nn.Module]:
    """The encoder to means (and log-variances), (B, D or 2 D, h, w), and the decoder."""
    before = getattr(vae, "quant_conv", None) or nn.Identity()
    after = getattr(vae, "post_quant_conv", None) or nn.Identity()
    return nn.Sequential(vae.encoder, before), nn.Sequential(after, vae.decoder)
