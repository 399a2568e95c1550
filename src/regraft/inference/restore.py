"""The network of a finished run, put together again."""

from __future__ import annotations

import safetensors

from regraft.errors import UserError
from regraft.models.backbone import Backbone, load_backbone
from regraft.models.network import TransferNetwork
from regraft.runs.folder import Run, verify_run


def restore_network(run: Run, device: str, backbone: Backbone | None = None) -> TransferNetwork:
    """Return the network of a run with its trained weights, in eval mode on a device.

    Args:
        run: The run.
        device: "cpu" or "cuda".
        backbone: A backbone of the run's name and resolution that may be given the run's weights;
            else one is made.

    Raises:
        UserError: When the run was altered, or the weights do not belong to the plan.
    """
    verify_run(run)
    plan = run.plan
    if backbone is None:
        backbone = load_backbone(plan.backbone, "random", plan.resolution)
    network = TransferNetwork(backbone, plan, run.classes)
    try:
        network.load_state(run.weights())
    except (RuntimeError, ValueError, OSError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The weights in {run.path} do not belong to its plan ({reason}). Fit it again with "
            "--overwrite."
        ) from error
    network.to(device)
    network.eval()
    return network
