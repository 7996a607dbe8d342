import pytest
import torch

from models.layers.first_batch import FirstBatch


def test_it_is_the_mean_and_deviation_of_all_micro_batches_of_the_first_batch():
    values = torch.randn(12, 5, 3) * 4 + 2
    stats = FirstBatch((3,))
    assert not stats.known and torch.equal(stats.scale, torch.ones(3))
    for part in values.split(4):
        stats.collect(part)
    stats.update()
    assert torch.allclose(stats.mean, values.flatten(0, 1).mean(0), atol=1e-5)
    assert torch.allclose(stats.scale, values.flatten(0, 1).std(0, correction=0), atol=1e-5)


def test_only_the_first_batch_counts_also_after_a_resume():
    stats = FirstBatch((3,))
    stats.collect(torch.randn(8, 3))
    stats.update()
    again = FirstBatch((3,))
    again.load_state_dict(stats.state_dict())
    for module in (stats, again):
        before = module.mean.clone()
        module.collect(torch.randn(8, 3) + 100)
        module.update()
        assert module.known and torch.equal(module.mean, before)


def test_a_number_that_hardly_changes_is_not_blown_up():
    stats = FirstBatch((2,))
    stats.collect(torch.stack([torch.randn(100), torch.full((100,), 3.0)], 1))
    stats.update()
    assert stats.scale[1] == pytest.approx(FirstBatch.SMALLEST * float(stats.std[0]))


def test_the_median_is_not_shifted_by_what_passes_by():
    stats = FirstBatch((2,), median=True)
    stats.collect(torch.tensor([[1.0, 5.0], [1.0, 5.0], [1.0, 5.0], [90.0, 5.0], [70.0, 5.0]]))
    stats.update()
    assert stats.mean.tolist() == [1.0, 5.0] and stats.known
