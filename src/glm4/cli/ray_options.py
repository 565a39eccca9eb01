"""Options of the commands that can run on a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from glm4.cli.parameters import Option, UsageError

if TYPE_CHECKING:
    from glm4.batch.ray.cluster import Wanted

PANEL = "Ray cluster"


@dataclass(frozen=True)
class RayOptions:
    """Whether to run on a cluster, and what each process that holds the model gets there."""

    ray: Annotated[
        str | None,
        Option(
            "--ray",
            metavar="HOST:PORT",
            panel=PANEL,
            bare="local",
            help="Run on the Ray cluster with this head node, on the one that this machine is part of (--ray=auto), or"
            " on one that is started here (--ray).",
        ),
    ] = None
    ray_cpus: Annotated[
        int | None,
        Option(
            "--ray-cpus",
            metavar="N",
            panel=PANEL,
            min=1,
            max=4096,
            help="Processors for each; otherwise all of a node, or an equal share.",
        ),
    ] = None
    ray_gpus: Annotated[
        float | None,
        Option(
            "--ray-gpus",
            metavar="N",
            panel=PANEL,
            min=0,
            max=1024,
            help="GPUs for each; otherwise one where there are any, or as many as the model is split over.",
        ),
    ] = None

    def check(self, **others: int | None) -> None:
        """Refuse options that mean nothing without a cluster.

        Args:
            others: further such options of the command.

        Raises:
            UsageError: one was given without --ray.
        """
        given = {"ray_cpus": self.ray_cpus, "ray_gpus": self.ray_gpus, **others}
        for name, value in given.items():
            if value is not None and self.ray is None:
                raise UsageError(f"--{name.replace('_', '-')} is for a Ray cluster; add --ray")

    def wanted(self, count: int | None) -> Wanted:
        """The same for `share_out`."""
        from glm4.batch.ray.cluster import Wanted

        return Wanted(count, self.ray_cpus, self.ray_gpus)
