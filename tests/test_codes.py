import torch

from models.tokenizers.codes import CodebookEmbedding, code_counts, flat_ids, perplexity
from models.tokenizers.tokenizer import LatentSpec

LATENTS = LatentSpec("discrete", (1, 2), dim=6, codebook_size=4, num_codebooks=3)


class Tokenizer:
    codebooks = torch.arange(24.0).view(3, 4, 2) ** 1.5


def test_codes_become_the_normalized_vectors_of_their_codebooks():
    vectors = CodebookEmbedding(LATENTS)
    vectors.load_codebook(Tokenizer())  # type: ignore[arg-type]
    assert torch.allclose(vectors.codebook.mean(1), torch.zeros(3, 2), atol=1e-6)
    assert torch.allclose(vectors.codebook.std(1), torch.ones(3, 2), atol=1e-6)
    codes = torch.tensor([[0, 1, 2, 3, 3, 0]])  # three codes for each of two patches
    seen = vectors(codes)
    assert seen.shape == (1, 2, 6)
    for patch in range(2):
        for book in range(3):
            expected = vectors.codebook[book, codes[0, 3 * patch + book]]
            assert torch.equal(seen[0, patch, 2 * book : 2 * book + 2], expected)


def test_continuous_latents_are_unchanged():
    latents = LatentSpec("continuous", (1, 2), dim=6)
    x = torch.randn(5, 2, 6)
    assert latents.tokens_per_frame == 2 and torch.equal(CodebookEmbedding(latents)(x), x)


def test_codes_of_different_codebooks_are_counted_separately():
    codes = torch.tensor([[0, 0, 0, 3, 0, 1]])
    assert flat_ids(codes, LATENTS).tolist() == [[[0, 4, 8], [3, 4, 9]]]
    counts = code_counts(codes, LATENTS)
    assert counts.tolist() == [[1, 0, 0, 1], [2, 0, 0, 0], [1, 1, 0, 0]]
    assert torch.allclose(perplexity(counts).float(), torch.tensor((2 + 1 + 2) / 3))
