"""Laws of batch-norm statistics that are computed anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raymat.analysis.averaging.batchnorm_recalibration import recompute_statistics
from raymat.errors import DataError
from tests.support.small import build_small


def pictures(batches: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(3, 3, 16, 16, generator=made), torch.rand(3, 3, 16, 16, generator=made))
        for _ in range(batches)
    ]


def test_they_are_the_means_over_the_batches_of_what_each_layer_sees() -> None:
    network = build_small("base", None, 3)
    shown = pictures(4)
    assert recompute_statistics(network, shown) == 4
    # By hand: the first layer's from its convolution, the second's from what the first then makes of each batch alone.
    encoder, (conv, bn, *_) = network.backbone, network.aspp.children()
    first, second = [], []
    with torch.no_grad():
        for src, bgr in shown:
            x = encoder.conv(torch.cat([src, bgr], dim=1))
            first.append((x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)))
            wide = x.double()
            mean, var = wide.mean((0, 2, 3)), wide.var((0, 2, 3), unbiased=False)
            y = (wide - mean.view(1, -1, 1, 1)) / (var + encoder.bn.eps).sqrt().view(1, -1, 1, 1)
            y = y * encoder.bn.weight.view(1, -1, 1, 1) + encoder.bn.bias.view(1, -1, 1, 1)
            z = conv(y.clamp(min=0).float())
            second.append((z.mean((0, 2, 3)), z.var((0, 2, 3), unbiased=True)))
    for norm, expected in ((encoder.bn, first), (bn, second)):
        for buffer, values in zip(
            (norm.running_mean, norm.running_var), zip(*expected, strict=True), strict=True
        ):
            torch.testing.assert_close(buffer, torch.stack(values).mean(0), rtol=1e-4, atol=1e-5)
        assert norm.num_batches_tracked == 4


def test_what_was_there_before_does_not_matter_and_the_weights_stay() -> None:
    a, b = build_small("base", None, 3), build_small("base", None, 3)
    for norm in (m for m in b.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.fill_(7.0)
        norm.running_var.fill_(0.1)
    weights = {n: p.clone() for n, p in a.named_parameters()}
    for network in (a, b):
        recompute_statistics(network, pictures(3))
        assert not any(module.training for module in network.modules())
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert [norm.momentum for norm in norms] == [0.1, 0.1]
    assert all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items())
    assert all(torch.equal(p, weights[n]) for n, p in a.named_parameters())


def test_dropout_stays_out_of_the_way() -> None:
    network = build_small("base", None, 3)
    after = nn.BatchNorm2d(24)
    network.aspp.append(after)  # behind the dropout, which without seeds raises in training
    recompute_statistics(network, pictures(2))
    before = network.aspp[1]
    with torch.no_grad():
        seen = before(network.aspp[0](network.backbone(torch.cat(pictures(1)[0], dim=1))[0])).clamp(
            min=0
        )
    assert after.running_var.mean() < 2 * seen.var()


def test_without_pictures_there_are_none_and_the_network_is_as_it_was() -> None:
    network = build_small("base", None, 3)
    with pytest.raises(DataError, match="at least one example"):
        recompute_statistics(network, [])
    assert not network.training
