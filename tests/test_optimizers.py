"""NAdam against its paper's formulas, and each image of a batch by itself."""

import pytest
import torch

from vizrobust.features import OPTIMIZERS, NAdam


def test_nadam_climbs_by_dozat_s_formulas():
    """Momentum .9 that warms up as .9 (1 - .5 * .96^(.004 t)), second moments .999 (Dozat 2016)."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 2, 5, 4, generator=generator, dtype=torch.float64)
    step, expected = NAdam(lr=0.3).begin(z), z.clone()
    m, v, product = torch.zeros_like(z), torch.zeros_like(z), 1.0
    for t in range(1, 6):
        grad = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        z = step(z, grad)
        mu, ahead = (0.9 * (1 - 0.5 * 0.96 ** (0.004 * k)) for k in (t, t + 1))
        product *= mu
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        look = ahead * m / (1 - product * ahead) + (1 - mu) * grad / (1 - product)
        expected = expected + 0.3 * look / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        assert torch.allclose(z, expected, atol=1e-12)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("shape", [(5, 3, 9, 7), (5, 41)], ids=str)
def test_images_of_a_batch_never_meet(make, shape):
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(shape, generator=generator)
    grads = [torch.randn(shape, generator=generator) for _ in range(4)]
    order = [3, 0, 4, 1, 2]

    def climbed(z, grads):
        step = make().begin(z)
        for grad in grads:
            z = step(z, grad)
        return z

    assert torch.equal(climbed(z[order], [grad[order] for grad in grads]), climbed(z, grads)[order])
    others = [torch.cat((grad[:1], 100 * torch.rand_like(grad[1:]))) for grad in grads]
    assert torch.equal(climbed(z, others)[0], climbed(z, grads)[0])
