"""MaskGIT dynamics (arXiv:2202.04200, as in Genie, arXiv:2402.15391): the next frame's codes are
all masked, and predicted over a few steps, the surest first.

A frame's block is [the action that led to it, its patches].  Only the predicted frame is masked; it
sees complete frames before it (MAGI, arXiv:2501.12389), whose keys and values are computed once.
Each of its patches is given what the frame before shows there, so that it need not be looked up.

Letters: B clips, T frames, C context frames, W predicted frames of a clip, P patches, N codes a
frame, G codebooks of K codes, S tokens of a frame (1 + P), D width, A action numbers.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.dynamics.dynamics import Dynamics, State
from models.layers.codes_in_turn import CodesInTurn
from models.layers.embeddings import ActionEmbedding, PointerEmbedding
from models.layers.sampling import Sampling
from models.layers.space_time import FrameCache, SpaceTimeTransformer, grid_positions
from models.layers.transformer import RmsNorm, TransformerConfig
from models.method import CompileFn, Losses
from models.tokenizers.codes import CodebookEmbedding, HasCodebooks
from models.tokenizers.tokenizer import LatentSpec

COMPARED_WINDOWS = 8  # of a batch, on which the gap between actions is measured
DEAF_GAP = 0.05  # nats, mean of the logged steps that are looked back at
LOOK_BACK = 10  # logged steps


@dataclass(frozen=True)
class MaskGitConfig(CheckedConfig):
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    clip_length: Annotated[int, Range(2, 10**4)] = 6
    """Frames of a training clip; those after the context are predicted."""
    min_mask_rate: Annotated[float, Range(0, 1)] = 0.5
    """A predicted frame's patches are masked at a rate between this and 1."""
    all_masked: Annotated[float, Range(0, 1)] = 0.5
    """Share of predicted frames that are masked whole, as before the first pass of a rollout.
    Codes that are shown tell where things went, and then the action says nothing new."""
    changed_token_weight: Annotated[float, Range(above=0, high=10**6)] = 10.0
    """Weight of the codes of a patch that changes; those of an unchanged one have 1.  Most are
    unchanged, and copying would be right nearly everywhere."""
    token_noise: Annotated[float, Range(0, 1)] = 0.02
    """Share of the past's codes that are replaced by random ones, so that errors of a rollout are
    survived."""
    short_past: Annotated[float, Range(0, 1)] = 0.2
    """Share of clips whose first frames are repeats of a later one, as where a world is entered
    with fewer frames than it can use."""
    sampling_steps: Annotated[int, Range(1, 1000)] = 8
    """Passes over a predicted frame; each keeps the patches that it is surest of, at least one."""

    def check(self) -> None:
        super().check()
        context = self.transformer.context_frames
        if context < 2:
            raise ValueError(
                f"--transformer.context-frames {context} leaves no frame to predict the next one "
                f"from; give 2 or more"
            )
        if self.clip_length < context:
            raise ValueError(
                f"--clip-length {self.clip_length} is shorter than --transformer.context-frames "
                f"{context}; make clips as long, or longer"
            )


@dataclass
class MaskGitMemory:
    """Keys and values of the C - 1 frames before the state's, and what led to the state's own:
    actions (B, A), and whether there was one, (B,) bool."""

    cache: FrameCache
    action: Tensor
    known: Tensor

    def select(self, index: Tensor) -> MaskGitMemory:
        return MaskGitMemory(self.cache.select(index), self.action[index], self.known[index])


class MaskGit(CodesInTurn, Dynamics):
    """Predict the masked codes of the next frame."""

    needs = frozenset({"latents", "actions"})
    has_rewards = False

    def __init__(self, config: MaskGitConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        super().__init__()
        if latents.kind != "discrete":
            raise ValueError(
                "this dynamics model predicts codes, but the run's tokenizer makes vectors; give a "
                "recipe of codes (--preset genie), or another --run"
            )
        self.config, self.latents, self.actions = config, latents, actions
        self.context = config.transformer.context_frames - 1
        """Frames that the predicted one sees."""
        self.sampling = Sampling()
        self.mask = latents.codebook_size
        """The code of a masked one, in every codebook."""
        dim = config.transformer.dim
        self.vectors = CodebookEmbedding(latents)
        self.input_proj = nn.Linear(latents.dim, dim)
        self.before_proj = nn.Linear(latents.dim, dim)
        self.code_emb = nn.Embedding(latents.num_codebooks * (latents.codebook_size + 1), dim)
        nn.init.normal_(self.code_emb.weight, std=0.02)
        self.pos_emb = nn.Parameter(0.02 * torch.randn(latents.num_patches, dim))
        self.action_emb = ActionEmbedding(actions, dim)
        # as large as what a patch shows: a faint action is not heard for many steps
        self.action_norm = RmsNorm(dim)
        self.added_action = nn.Linear(dim, dim)
        self.pointer_emb = PointerEmbedding(latents.grid, dim) if actions.pointer else None
        self.no_action = nn.Parameter(0.02 * torch.randn(dim))
        self.transformer = SpaceTimeTransformer(
            config.transformer, grid_positions(latents.grid, extra=1)
        )
        self.make_code_head(dim)
        self._gaps: deque[float] = deque(maxlen=LOOK_BACK)
        self._said_deaf = False

    @property
    def clip_length(self) -> int:
        return self.config.clip_length

    def load_codebook(self, source: HasCodebooks) -> None:
        """Copy the vectors of the tokenizer's codes, and what they are rounded from, where that is
        something else; they are not trained."""
        self.vectors.load_codebook(source)
        self.code_numbers.copy_(getattr(source, "code_numbers", source.codebooks))

    def compile_steps(self, compile_fn: CompileFn) -> None:
        self.transformer.forward = compile_fn(self.transformer, self.transformer.forward)

    # -- training ---------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of masked codes."""
        latents, actions = batch.require("latents", "actions")
        return self.masked_loss(latents, actions[:, : latents.shape[1] - 1])

    def masked_loss(self, latents: Tensor, actions: Tensor) -> Losses:
        """latents (B, T, N), the actions between them (B, T - 1, A): the frames behind the first
        C - 1 are predicted, each from the C - 1 before it."""
        past, known = self._shorten(self._add_noise(latents[:, :-1]))
        led = torch.cat([actions[:, :1], actions], dim=1)  # to each frame; unknown for the first
        _, cache = self._blocks(past, led[:, :-1], known)
        target, before = latents[:, self.context :], past[:, self.context - 1 :]
        masked = self._random_mask(target)
        inputs = torch.where(masked, self.mask, target)
        rows = [rearrange(x, "B W ... -> (B W) 1 ...") for x in (inputs, before, target)]
        led = rearrange(led[:, self.context :], "B W ... -> (B W) 1 ...")
        windows = cache.windows(self.context)
        out = self._predict(rows[0], rows[1], led, windows)
        out = rearrange(out, "(B W) 1 P D -> B W P D", B=len(target))
        cross_entropy, predicted = self.cross_entropy(out, before, target)
        # of what was there, not of the noise; a patch with its codes together
        changed = masked & self._changed(latents[:, self.context - 1 : -1], target)
        weights = masked + (self.config.changed_token_weight - 1) * changed.float()
        with torch.no_grad():
            # sums under a mask: indexing by one would wait for the GPU
            correct = (predicted == target) & changed
            changed_accuracy = correct.sum() / changed.sum().clamp(min=1)
        return {
            # a plain mean: the means of processes and micro-batches average to the whole
            "cross_entropy": (cross_entropy * weights).mean(),
            "changed_accuracy": changed_accuracy,
            "action_gap": self._action_gap(rows, led, windows, cross_entropy, changed),
        }

    @torch.no_grad()
    def _action_gap(
        self,
        rows: list[Tensor],
        actions: Tensor,
        past: FrameCache,
        cross_entropy: Tensor,
        changed: Tensor,
    ) -> Tensor:
        """How much less a masked code that changes costs with its own action than with that of
        another clip, in nats: near 0 the dynamics are deaf.

        rows: inputs, codes before and target, (R, 1, N) each.  actions: (R, 1, A).  cross_entropy,
        changed: (B, W, N), with their own actions, of the same rows.
        """
        compared = torch.arange(min(COMPARED_WINDOWS, len(actions)), device=actions.device)
        inputs, before, target = (row[compared] for row in rows)
        out = self._predict(inputs, before, actions.flip(0)[compared], past.select(compared))
        other = self.cross_entropy(out, before, target)[0][:, 0]
        own, counted = (x.flatten(0, 1)[compared] for x in (cross_entropy, changed))
        return ((other - own) * counted).sum() / counted.sum().clamp(min=1)

    def advise(self, losses: dict[str, float]) -> list[str]:
        """Say once that the dynamics do not listen to their actions."""
        if "action_gap" not in losses:
            return []
        self._gaps.append(losses["action_gap"])
        if len(self._gaps) < (self._gaps.maxlen or 0) or self._said_deaf:
            return []
        gap = sum(self._gaps) / len(self._gaps)
        if gap >= DEAF_GAP:
            return []
        self._said_deaf = True
        return [
            f"dynamics: deaf to actions, with another clip's a changed code costs only {gap:.3f} "
            f"nats more; raise --model.all-masked, --model.changed-token-weight or "
            f"--train.steps, or give frames that are farther apart"
        ]

    def _changed(self, before: Tensor, target: Tensor) -> Tensor:
        """Codes of patches that show something else: (..., N) twice -> (..., N) bool."""
        other = (before != target).unflatten(-1, (-1, self.latents.num_codebooks))
        return other.any(-1, keepdim=True).expand_as(other).flatten(-2)

    def _add_noise(self, latents: Tensor) -> Tensor:
        """Replace some codes by random ones."""
        noisy = torch.rand(latents.shape, device=latents.device) < self.config.token_noise
        return torch.where(noisy, torch.randint_like(latents, self.latents.codebook_size), latents)

    def _shorten(self, past: Tensor) -> tuple[Tensor, Tensor]:
        """Repeat a later frame in place of the first ones of some clips: (B, T, N).  Also whether
        the action that led to each frame is known, (B, T)."""
        index = torch.arange(past.shape[1], device=past.device).expand(past.shape[:2])
        first = torch.randint(0, self.context, (len(past), 1), device=past.device)
        short = torch.rand(first.shape, device=past.device) < self.config.short_past
        first = torch.where(short, first, 0)
        source = torch.maximum(index, first)
        return past.gather(1, source[..., None].expand_as(past)), index > first

    def _random_mask(self, target: Tensor) -> Tensor:
        """(B, W, N) bool, each frame at a rate of its own: whole patches, since a code that is
        shown would tell the others of its patch."""
        low, device = self.config.min_mask_rate, target.device
        rate = low + (1 - low) * torch.rand(*target.shape[:2], 1, device=device)
        whole = torch.rand(rate.shape, device=device) < self.config.all_masked
        drawn = torch.rand(*target.shape[:2], self.latents.num_patches, device=device)
        return ((drawn < rate) | whole).repeat_interleave(self.latents.num_codebooks, dim=-1)

    # -- rollouts ---------------------------------------------------------------------------

    def start(self, latents: Tensor, actions: Tensor) -> State:
        latents = latents[:, -self.context :]
        actions = actions[:, max(0, actions.shape[1] - latents.shape[1] + 1) :]
        missing = self.context + 1 - latents.shape[1]  # before the oldest, repeats of it
        past = torch.cat([latents[:, :1].expand(-1, missing, -1), latents], dim=1)
        none = self.actions.empty(len(latents), missing + 1).to(latents.device)
        led = torch.cat([none.to(actions.dtype), actions], dim=1)
        known = torch.arange(past.shape[1], device=latents.device) > missing
        known = known.expand(len(latents), -1)
        _, cache = self._blocks(past, led, known)
        return self._state(past[:, -1], cache.between(0, -1), led[:, -1], known[:, -1])

    def step(self, state: State, action: Tensor) -> State:
        """Predict the next frame, in several passes."""
        memory = state.memory
        assert isinstance(memory, MaskGitMemory)
        led = torch.stack([memory.action, action.to(memory.action.dtype)], dim=1)
        known = torch.stack([memory.known, torch.ones_like(memory.known)], dim=1)
        codes = torch.full_like(state.latents, self.mask)
        # the first pass takes the state's own frame along, whose keys and values are kept
        both = torch.stack([state.latents, codes], dim=1)
        before = state.latents[:, None].expand_as(both)
        out, cache = self._blocks(both, led, known, memory.cache, before)
        past = cache.between(-1 - self.context, -1)
        weight = self.output_weight()
        patches = self.latents.num_patches
        steps = min(self.sampling.steps or self.config.sampling_steps, patches)
        for index, num_masked in enumerate(masked_after(patches, steps)):
            if index:
                out = self._predict(codes[:, None], before[:, 1:], led[:, 1:], past)
            else:
                out = out[:, -1:, 1:]
            chosen, score = self.choose(out[:, 0], state.latents, weight, self.sampling)
            codes = self._keep_surest(codes, chosen, score, num_masked, 1 - (index + 1) / steps)
        return self._state(codes, past, led[:, 1], known[:, 1])

    def observe(self, state: State, action: Tensor, latents: Tensor) -> State:
        memory = state.memory
        assert isinstance(memory, MaskGitMemory)
        action = action.to(memory.action.dtype)
        _, cache = self._blocks(
            state.latents[:, None], memory.action[:, None], memory.known[:, None], memory.cache
        )
        cache = cache.between(-self.context)
        return self._state(latents, cache, action, torch.ones_like(memory.known))

    def _keep_surest(
        self, codes: Tensor, chosen: Tensor, score: Tensor, num_masked: int, noise: float
    ) -> Tensor:
        """Keep what was chosen but for the `num_masked` least sure patches: (B, N) twice, scores
        (B, P).  `noise` falls to 0 in the course of the passes."""
        masked = codes[:, :: self.latents.num_codebooks] == self.mask
        if num_masked:
            if self.sampling.order == "random":
                score = torch.rand_like(score)
            elif self.sampling.temperature:  # the surest alone would copy the frame before
                gumbel = -torch.empty_like(score).exponential_().log()
                score = score + noise * self.sampling.temperature * gumbel
            score = score.masked_fill(~masked, float("inf"))
            kept = score.topk(score.shape[1] - num_masked).indices
            masked = masked & torch.zeros_like(masked).scatter(1, kept, True)
        masked = masked.repeat_interleave(self.latents.num_codebooks, dim=1)
        return torch.where(masked, chosen, codes)

    def _state(self, codes: Tensor, cache: FrameCache, action: Tensor, known: Tensor) -> State:
        ones = torch.ones(len(codes), device=codes.device)
        return State(codes, 0 * ones, ones, MaskGitMemory(cache, action, known))

    # -- pieces -----------------------------------------------------------------------------

    def _predict(self, codes: Tensor, before: Tensor, actions: Tensor, past: FrameCache) -> Tensor:
        """Codes or masks of a frame, those of the frame before it (B, 1, N) each, and the action
        between them (B, 1, A) -> outputs, (B, 1, P, D)."""
        known = torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device)
        return self._blocks(codes, actions, known, past, before)[0][:, :, 1:]

    def _blocks(
        self,
        latents: Tensor,
        actions: Tensor,
        known: Tensor,
        cache: FrameCache | None = None,
        before: Tensor | None = None,
    ) -> tuple[Tensor, FrameCache]:
        """Codes or masks (B, T, N), the action that led to each frame (B, T, A), whether there was
        one (B, T) -> outputs (B, T, 1 + P, D), and the cache with these frames.

        before: (B, T, N), codes of the frame before a predicted one, a complete one's own.
        """
        action = self.action_norm(self.action_emb(actions))
        token = torch.where(known[..., None], action, self.no_action.to(action.dtype))
        added = self.added_action(action)[:, :, None]
        if self.pointer_emb is not None:
            added = added + self.pointer_emb(actions)
        patches = (
            self._embed(latents, latents if before is None else before)
            + added * known[..., None, None]
        )
        return self.transformer(torch.cat([token[:, :, None], patches], dim=2), cache)

    def _embed(self, latents: Tensor, before: Tensor) -> Tensor:
        """(..., N) twice -> (..., P, D): codebook vectors, zeros for masked codes, rows of a table
        that has one more for a masked code in each codebook, and vectors of the codes before."""
        spec = self.latents
        by_book = latents.unflatten(-1, (-1, spec.num_codebooks))
        vectors = self.vectors(latents.clamp(max=self.mask - 1))
        shown = (by_book != self.mask).repeat_interleave(spec.dim // spec.num_codebooks, dim=-1)
        offsets = (self.mask + 1) * torch.arange(spec.num_codebooks, device=latents.device)
        table = self.code_emb(by_book + offsets).sum(-2)
        shown_before = self.before_proj(self.vectors(before))
        return self.input_proj(vectors * shown) + shown_before + table + self.pos_emb


def masked_after(num_patches: int, steps: int) -> list[int]:
    """How many patches are still masked after each pass: a cosine (MaskGIT, section 3.3) that keeps
    at least one a pass and masks none after the last."""
    counts, left = [], num_patches
    for step in range(1, steps + 1):
        cosine = math.floor(num_patches * math.cos(math.pi / 2 * step / steps) + 1e-6)
        left = max(min(cosine, left - 1), steps - step)
        counts.append(left)
    return counts
