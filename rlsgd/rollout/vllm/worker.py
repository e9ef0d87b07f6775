# pyright: reportMissingImports=false
"""What rlsgd adds to the workers of a vLLM engine: loading a weight update from a file.

vLLM imports this inside its worker processes (`worker_extension_cls`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from rlsgd.functional.patches import decode_patch
from rlsgd.rollout.vllm.weight_sync import WeightUpdate, apply_update_, read_update

RECEIVER = f"{__name__}.WeightReceiver"


class WeightReceiver:
    """Mixed into vLLM's worker; its methods are called with `collective_rpc`.

    Weights go through the model's own `load_weights`, which fuses projections (qkv, gate and up)
    and takes this worker's slice under tensor parallelism. On a GPU an update changes the weights
    in place. vLLM's CPU backend packs them for its kernels and frees the originals, so there the
    worker keeps the unpacked weights beside them and loads all of them for every update.
    """

    model_runner: Any
    unpacked_weights: dict[str, Tensor] | None = None

    def receive_update(self, path: str, is_whole: str) -> None:
        """Load an update written by `weight_sync.write_update`.

        Args:
            path: of the file, as this process sees it.
            is_whole: `yes` if the file holds every tensor; strings are all that HTTP carries.
        """
        from vllm.platforms import current_platform

        update = read_update(Path(path))
        if current_platform.is_cpu():
            if is_whole == "yes" or self.unpacked_weights is None:
                self.unpacked_weights = {}
            apply_update_(self.unpacked_weights, update)
            self._reload(self.unpacked_weights)
            pack_embeddings(self.model_runner.get_model())
        elif is_whole == "yes":
            self._reload(update.tensors)
        else:
            patch_in_place(self.model_runner.get_model(), update)

    def _reload(self, weights: dict[str, Tensor]) -> None:
        """Load every weight.

        Raises:
            ValueError: the policy lacks one that the engine's model has.
        """
        model = self.model_runner.get_model()
        expected = {name for name, _ in model.named_parameters()}
        loaded: set[str] = set()
        original = model.load_weights

        def load_and_note(pairs: Any) -> Any:
            names = original(pairs)
            loaded.update(names or ())
            return names

        model.load_weights = load_and_note
        try:
            self.model_runner.reload_weights(weights_iterator=iter(weights.items()))
        finally:
            del model.load_weights
        if missing := sorted(expected - loaded):
            raise ValueError(
                f"vLLM's {type(model).__name__} has weights that the policy does not name: "
                f"{', '.join(missing[:3])} ({len(missing)} in all)"
            )


def pack_embeddings(model: Any) -> None:
    """Pack embeddings and head anew for the CPU's kernels.

    A head that is tied to the embedding is packed apart from it, and vLLM 0.32 repacks only layers
    that were loaded by name: the head would go on serving the weights it started with.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding):
            layer.quant_method.process_weights_after_loading(layer)


def patch_in_place(model: Any, update: WeightUpdate) -> None:
    """Assign the changed weights of an engine's model, wherever its layout keeps them."""
    from vllm.model_executor.model_loader.checkpoint_weight_patch import (
        CheckpointWeightPatch,
        load_checkpoint_weight_patches,
    )

    device, dtype = next(model.parameters()).device, update.dtype
    if update.tensors:  # not as patches: 8 bytes of position for each weight, outside vLLM's budget
        model.load_weights((name, tensor.to(device)) for name, tensor in update.tensors.items())
    for name, encoded in update.patches.items():  # one at a time, for the same reason
        shape = tuple(update.shapes[name])
        patch = decode_patch(encoded, math.prod(shape), dtype)
        values, places = patch.values.to(device), patch.positions.to(device)
        one = CheckpointWeightPatch(name, shape, dtype, values, places)
        load_checkpoint_weight_patches(model, [one], validate_unique_indices=False)
