"""`raymat matte`: cut people out of pictures and videos with a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from raymat.cli.inputs import device_of, print_note
from raymat.config.command_line import parse_options
from raymat.config.options import THREADS, Check, OptionGroup, Spelling, at_least
from raymat.config.sections import Device, Precision, RefineMode
from raymat.config.settled import precision_on
from raymat.console import ProgressBar, count
from raymat.errors import ConfigError
from raymat.inference.job import MattingJob, MattingReport, MattingRequest
from raymat.inference.matter import Matter
from raymat.inference.rendering import OUTPUT_TYPES, OutputType
from raymat.storage.urls import here
from raymat.train.run.refine_options import OVERRIDES, configured, refining_as
from raymat.train.run.selected_weights import Selected, read_weights

_What = Annotated[str, Spelling("WHAT", positional=True)]


KNOWN_TYPES = Check(
    lambda text: all(name.strip() in OUTPUT_TYPES for name in text.split(",")),
    f"takes {', '.join(OUTPUT_TYPES)}, separated by commas",
)


def _types(text: str) -> tuple[OutputType, ...]:
    asked = [name.strip() for name in text.split(",")]
    return tuple(kind for kind in OUTPUT_TYPES if kind in asked)


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """Cut the subject out of pictures or a video, given the same scene without it.

    WHAT is a weights file or a run's checkpoint: FILE.pth, STORAGE/NAME (newest), STORAGE/NAME@1200, STORAGE/NAME@best,
    STORAGE/NAME/checkpoints/step-..., all but a file also with @ema at the end.

    OUT's ending decides the format: .png for one picture, .mp4 (H.264) or .mov (ProRes 4444, with alpha) for a video, and
    a folder of PNGs for many pictures or a video's frames. Several output types go to OUT-TYPE.mp4, or OUT/TYPE/. A file
    appears once it is whole. Sound is not copied. Exit code: 0, or 2 if something could not be read or written.
    """

    what: _What
    """The network."""
    source: Annotated[str, Spelling("FILE|FOLDER|VIDEO")]
    """Pictures with the subject: a picture, a folder of them, or a video."""
    background: Annotated[str, Spelling("FILE|FOLDER|VIDEO")]
    """The same scene without the subject: a picture for all, a folder with one of each source's name, or, behind a video, a
    video frame by frame."""
    output: Annotated[str, Spelling("OUT", short="-o")]
    """A .png, .mp4 or .mov of this machine, or a folder."""
    output_type: Annotated[
        str,
        Spelling("TYPE,..."),
        KNOWN_TYPES,
    ] = "com"
    """com: the subject, cut out with alpha, or before --composite; pha: alpha; fgr: the subject's colours, without the
    background in them; err: predicted error; ref: which patches were refined."""
    composite: Annotated[str | None, Spelling("COLOUR|PICTURE")] = None
    """What stands behind com: white, #78ff9b, or a picture, which fills the frame. Default: nothing where the file can hold
    alpha, else the green #78ff9b."""
    alpha_bits: Literal[8, 16] = 8
    """Bits of pha in PNGs."""
    background_fit: bool = False
    """Resize a background of the same shape but another size."""
    align: bool = False
    """Align each background with its source by a homography, for a camera that moved a little."""
    hold_background: bool = False
    """Go on with the last frame of a background video that is shorter than the source."""
    batch_size: Annotated[int, at_least(1)] = 1
    """Pictures of one size that the network gets at a time."""
    overwrite: bool = False
    """Replace outputs that exist."""
    resume: bool = False
    """Keep outputs that exist and make only the others."""
    refine_mode: RefineMode | None = None
    """Refine mode: full, sampling or thresholding. Default here and for the next three: the run's."""
    backbone_scale: float | None = None
    """Scale of the picture at which the base network works, at most 0.5."""
    refine_sample_pixels: int | None = None
    """Pixels refined per picture when sampling."""
    refine_threshold: float | None = None
    """Predicted error above which a patch is refined when thresholding."""
    device: Device = "auto"
    """Device to compute on; auto is cuda if torch finds one."""
    precision: Precision | None = None
    """Precision of the arithmetic. Default: fp16 on cuda, fp32 on cpu."""
    threads: Annotated[int | None, THREADS] = None
    """CPU threads for computing. Default: torch's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overwrite and self.resume:
            raise ConfigError("--overwrite replaces what exists and --resume keeps it: give one")

    @property
    def request(self) -> MattingRequest:
        """What to matte, and where to."""
        return MattingRequest(
            source=here(self.source),
            background=here(self.background),
            output=here(self.output),
            types=_types(self.output_type),
            composite=None if self.composite is None else here(self.composite),
            alpha_bits=self.alpha_bits,
            batch_size=self.batch_size,
            existing="overwrite" if self.overwrite else "resume" if self.resume else "refuse",
            align=self.align,
            background_fit=self.background_fit,
            hold_background=self.hold_background,
        )


def main(argv: Sequence[str]) -> int:
    """Run `raymat matte WHAT ...` and return the exit code. Raises RaymatError if something cannot be read or written."""
    options = parse_options(Options, argv, "raymat matte")
    device = device_of(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    job = MattingJob.open(options.request)  # before the weights: what is wrong here is said at once
    selected = read_weights(
        options.what, on_skip=lambda c, reason: print_note(f"passed over: {reason}")
    )
    overrides = {n: v for n in OVERRIDES if (v := getattr(options, n)) is not None}
    network = configured(selected, refining_as(selected, overrides))
    matter = Matter(network, device, options.precision or precision_on(device.type))
    noun = "frames" if job.footage.timing else "pictures"
    try:
        with ProgressBar("matte", noun=noun) as progress:
            progress.begin(job.footage.count)
            report = job.run(matter, progress.add)
    finally:
        for line in job.notes.lines:
            print_note(line)
    print(text(options, selected, report, noun))
    return 0


def text(options: Options, selected: Selected, report: MattingReport, noun: str) -> str:
    """Format the network, what was written, and where the time went."""
    lines = [f"{selected.what}: {selected.checkpoint}" if selected.checkpoint else selected.what]
    kept = f", {report.skipped} were there" if report.skipped else ""
    if not report.shots:
        return "\n".join([*lines, f"{options.output}: nothing to do{kept}"])
    height, width = report.size
    rate = f"{report.shots / report.seconds:.1f} {noun}/s"
    shares = ", ".join(f"{kind} {100 * s / report.seconds:.0f}%" for kind, s in report.work.items())
    made = f"{count(report.shots, noun.removesuffix('s'))} of {width} x {height}{kept}"
    types = ", ".join(_types(options.output_type))
    return "\n".join(
        [*lines, f"{options.output}: {made}, {types}", f"{rate}; of the time: {shares}"]
    )
