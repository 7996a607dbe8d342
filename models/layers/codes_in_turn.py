"""The codes of a patch in turn, each given those before it (as the depth of RQ-Transformer,
arXiv:2203.01941).  Chosen independently, a patch would get one half of one thing that may come and
one of another.

Letters: P patches, N = P G codes of G codebooks, K codes of each, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from kernels import linear_cross_entropy
from models.layers.heads import CodeHead
from models.layers.sampling import Sampling


class CodesInTurn(CodeHead):
    """The joint distribution of a patch's codes, by the chain rule."""

    code_numbers: Tensor

    def make_code_head(self, dim: int) -> None:
        super().make_code_head(dim)
        num_codebooks, _, code_dim = self.vectors.codebook.shape
        self.given = nn.ModuleList(
            nn.Sequential(
                nn.Linear(dim + book * code_dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim)
            )
            for book in range(1, num_codebooks)
        )
        self.register_buffer("code_numbers", torch.zeros_like(self.vectors.codebook))

    def cross_entropy(
        self, out: Tensor, prev_codes: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and the likeliest codes, given the target's codes before them in a patch:
        (..., P, D), (..., N) -> (..., N) each."""
        books = self.latents.num_codebooks
        codes, before = (x.unflatten(-1, (-1, books)) for x in (target, prev_codes))
        weight, found = self.output_weight(), []
        for book in range(books):
            x, copy = self._after(out, codes[..., :book])
            bias, prev, bonus = self.head_bias[book], before[..., book].flatten(), copy.flatten()
            code = codes[..., book].flatten()
            found.append(
                linear_cross_entropy(x.flatten(0, -2), weight[book], code, bias, prev, bonus)
            )
        losses, likeliest = (
            torch.stack(x, dim=-1).view(target.shape) for x in zip(*found, strict=True)
        )
        return losses, likeliest

    def choose(
        self, out: Tensor, prev_codes: Tensor, weight: Tensor, sampling: Sampling
    ) -> tuple[Tensor, Tensor]:
        """Choose codes, (..., N), and give the log-probability of each patch's, (..., P).  At a
        temperature of 0 they are those of least risk.

        out: (..., P, D).  weight: of `output_weight`.
        """
        books = self.latents.num_codebooks
        before = prev_codes.unflatten(-1, (-1, books))
        chosen, score = before[..., :0], torch.zeros(out.shape[:-1], device=out.device)
        for book in range(books):
            x, copy = self._after(out, chosen)
            logits = linear(x, weight[book], self.head_bias[book])
            prev = before[..., book, None]
            logits = logits.scatter_add(-1, prev, copy[..., None].to(logits.dtype)).float()
            if sampling.temperature:
                code = sampling.sample(logits)[..., None]
            else:
                code = self._least_risk(logits, book)[..., None]
            score = score + torch.log_softmax(logits, dim=-1).gather(-1, code)[..., 0]
            chosen = torch.cat([chosen, code], dim=-1)
        return chosen.flatten(-2), score

    def _least_risk(self, logits: Tensor, book: int) -> Tensor:
        """The code nearest to the expected numbers (minimum Bayes risk under squared error): of a
        thing whose place is not certain no code is likely, and the likeliest may be that of no
        thing at all.  (..., K) -> (...)."""
        numbers = self.code_numbers[book]
        expected = torch.softmax(logits, dim=-1) @ numbers
        return (numbers.square().sum(-1) - 2 * expected @ numbers.mT).argmin(-1)

    def _after(self, out: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The vector that the next code of each patch is predicted from, (..., P, D), and the bonus
        of its previous one, (..., P).  codes: (..., P, g), the patch's first ones."""
        book = codes.shape[-1]
        if book:
            books = self.vectors.codebook[:book].flatten(0, 1)
            ids = codes + len(self.vectors.codebook[0]) * torch.arange(book, device=codes.device)
            vectors = books[ids].flatten(-2).to(out.dtype)
            out = out + self.given[book - 1](torch.cat([out, vectors], dim=-1))
        copy = self.copy_logit
        bonus = linear(out, copy.weight[book : book + 1], copy.bias[book : book + 1])
        return out, bonus[..., 0]
