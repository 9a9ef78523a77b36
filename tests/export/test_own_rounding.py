"""Laws of what an export may differ by: as much as the network itself rounds in float32, and not a wrong weight more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raymat.errors import ExportError
from raymat.export import check
from raymat.export.check import Case
from raymat.export.formats import Run
from raymat.export.own_rounding import Rounding
from raymat.model.matting import MattingBase
from raymat.model.ops import resize
from tests.support.small import SmallMatting

CASE = Case("picture", 1, 96, 96)
TOLERANCE = 1e-5


def network_that_rounds(loud: float = 300.0) -> MattingBase:
    """A network whose features are `loud` and a little, of which its last layer takes the loudness away again."""
    network = SmallMatting()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = max(1, parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
        norm, last = network.aspp[1], network.decoder.conv4
        norm.bias.fill_(loud)
        last.bias.copy_(0.5 - loud * last.weight[:, :24].sum((1, 2, 3)))
    return network.eval().requires_grad_(False)


def in_another_order(network: MattingBase) -> MattingBase:
    """The same network, which adds its channels the other way round: it rounds in another way."""
    other = network_that_rounds()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name in ("aspp.0.weight", "aspp.1.weight", "aspp.1.bias", "aspp.1.running_mean"):
        state[name] = state[name].flip(0)
    state["aspp.1.running_var"] = state["aspp.1.running_var"].flip(0)
    last = state["decoder.conv4.weight"]
    state["decoder.conv4.weight"] = torch.cat([last[:, :24].flip(1), last[:, 24:]], dim=1)
    other.load_state_dict(state)
    return other


def test_an_export_may_differ_as_the_network_itself_does_from_its_result_in_float64() -> None:
    network = network_that_rounds()
    export = in_another_order(network)
    (outcome,) = check.check(network, export, [CASE], TOLERANCE)
    assert outcome.rounding is not None
    assert 1e-4 < outcome.differences["pha"] < 2e-3
    told = outcome.rounding["pha"]
    assert 1e-4 < told.network < 1e-3
    assert 0.25 < told.export / told.network < 4


def test_a_tolerance_that_was_asked_for_is_kept_to() -> None:
    network = network_that_rounds()
    with pytest.raises(ExportError, match=r"tolerance 1e-05: it was removed"):
        check.check(network, in_another_order(network), [CASE], TOLERANCE, own_rounding=False)


def test_float64_is_not_asked_where_nothing_differs_by_more_than_the_tolerance() -> None:
    network = network_that_rounds()
    (outcome,) = check.check(network, network, [CASE], TOLERANCE)
    assert outcome.rounding is None


def wrong(kind: str, network: MattingBase) -> Run:
    """An export of this network that is not quite it."""
    export = in_another_order(network)
    if kind == "a weight":
        with torch.no_grad():
            export.decoder.conv4.weight[0, 29, 1, 1] += 0.01  # type: ignore[union-attr, index]
        return export

    def run(src: torch.Tensor, bgr: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: list[Any] = list(export(src, bgr))
        pha = outputs[0]
        if kind == "a resize":
            # As a resize whose half pixel is elsewhere: moved by a quarter of a pixel.
            outputs[0] = 0.75 * pha + 0.25 * pha.roll(1, -1)
        if kind == "an edge":
            outputs[0] = torch.cat([pha[..., :-1], pha[..., -2:-1]], dim=-1)
        if kind == "a little everywhere":
            outputs[0] = pha + 1e-3
        if kind == "half the size":
            outputs[0] = resize(resize(pha, (48, 48)), (96, 96))
        return tuple(outputs)

    return run


@pytest.mark.parametrize(
    "kind", ["a weight", "a resize", "an edge", "a little everywhere", "half the size"]
)
def test_an_export_of_a_network_that_rounds_is_still_refused_if_it_is_wrong(kind: str) -> None:
    network = network_that_rounds()
    with pytest.raises(ExportError) as refused:
        check.check(network, wrong(kind, network), [CASE], TOLERANCE)
    start, own = str(refused.value).split(", the network's own rounding is ")
    assert start.startswith("the export is not the network: pha differs by ")
    assert start.endswith(" at 1 x 96 x 96 (picture), tolerance 1e-05")
    assert own.endswith(": it was removed")
    assert 1e-4 < float(own.split(":")[0]) < 1e-3


def test_what_four_times_its_own_rounding_explains_passes_and_no_more() -> None:
    def passes(export: float, export_mean: float) -> bool:
        return Rounding(2e-3, export, 1e-5, export_mean).explains(1e-4)

    assert passes(export=8e-3, export_mean=4e-5)
    assert not passes(export=9e-3, export_mean=4e-5)
    assert not passes(export=8e-3, export_mean=5e-5)


def test_without_the_memory_for_float64_the_line_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check, "available_memory", lambda: 1e7)
    network = network_that_rounds()
    with pytest.raises(ExportError) as refused:
        check.check(network, in_another_order(network), [CASE], TOLERANCE)
    assert str(refused.value).endswith(
        " at 1 x 96 x 96 (picture), tolerance 1e-05; whether the network itself rounds so takes 55.3 MB of memory to see: "
        "it was removed; choose less by --check-size"
    )
